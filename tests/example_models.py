"""A tiny model with its tokenizer, and lines to teach it, as folders that examples read."""

from pathlib import Path

from tiny_families import tiny_model

from memory_layers.data.tokenizer import train_tokenizer

LINES = [f"The code of town {n} is {n * 37 % 1000:03d}." for n in range(32)]


def write_example(folder: Path, name: str = "llama", **changes: object) -> tuple[str, str]:
    """Write a base model and a text file, and return their paths."""
    tokenizer = train_tokenizer(LINES, 300)
    ends = dict.fromkeys(("bos_token_id", "eos_token_id"), tokenizer.eos_token_id)
    model = tiny_model(
        name, vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, **ends, **changes
    )
    model.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    (folder / "lines.txt").write_text("\n".join(LINES), "utf-8")
    return str(folder / "base"), str(folder / "lines.txt")
