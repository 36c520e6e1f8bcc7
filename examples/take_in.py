"""Load a memory on its base and save both as one model, which any tool of transformers loads.

python examples/take_in.py MODEL MEMORY OUT

MODEL is the base that MEMORY, a folder of save_memory, was trained on.
"""

import sys

from lines import load_base

from memory_layers.models import load_memory


def main(name: str, memory: str, out: str) -> None:
    """Load and save.

    Args:
        name: Of the base.
        memory: Folder of the memory.
        out: Folder for the model and its tokenizer.
    """
    model, tokenizer = load_base(name)
    load_memory(model, memory).save_pretrained(out)
    tokenizer.save_pretrained(out)


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    main(*sys.argv[1:])
