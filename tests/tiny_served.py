"""A tiny model with memory that can be served: it chats, and its texts may be long."""

from pathlib import Path

import torch
from example_models import write_example
from tiny_models import tiny_memory
from transformers import AutoModelForCausalLM, AutoTokenizer

from memory_layers.models import add_memory

CONTEXT = 4096
TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' and not loop.first %}"
    "{{ raise_exception('a system message comes first') }}{% endif %}"
    "<|endoftext|>{{ message['role'] }} {{ message['content'] | trim }}"
    "{% endfor %}{% if add_generation_prompt %}<|endoftext|>assistant {% endif %}"
)


def write_served(folder: Path, name: str = "llama", **changes: object) -> Path:
    """Write the folder of a model and return it."""
    base, _ = write_example(folder, name, max_position_embeddings=CONTEXT, **changes)
    torch.manual_seed(0)
    model = add_memory(AutoModelForCausalLM.from_pretrained(base), tiny_memory())
    model.save_pretrained(folder / "model")
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder / "model")
    return folder / "model"
