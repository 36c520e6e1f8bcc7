"""Where other projects call us: transformers' Trainer, vLLM, and an OpenAI-protocol server."""
