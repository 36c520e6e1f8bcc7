"""What the examples share: a base model with its tokenizer, and a text file as training data."""

from pathlib import Path

from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)


def load_base(name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a model and its tokenizer, which gets a padding token if it has none."""
    tokenizer = AutoTokenizer.from_pretrained(name)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    return AutoModelForCausalLM.from_pretrained(name), tokenizer


def read_lines(path: str, tokenizer: PreTrainedTokenizerBase) -> list[dict[str, list[int]]]:
    """Return each line of a file that is not empty as a document."""
    texts = Path(path).read_text("utf-8").splitlines()
    return [tokenizer(text + str(tokenizer.eos_token)) for text in texts if text]


def collator(tokenizer: PreTrainedTokenizerBase) -> DataCollatorForLanguageModeling:
    """Return what pads a batch, and leaves padding out of the loss."""
    return DataCollatorForLanguageModeling(tokenizer, mlm=False)
