"""Teach the memory of a model a text, or facts, with TRL's SFTTrainer.

python examples/trl_sft.py MODEL TEXTS OUT

MODEL is a folder, a name on the hub, or smollm2. TEXTS is a text file, each line a document, or a
folder of facts. The base is frozen, OUT/memory is the adapter.
"""

import sys
from pathlib import Path

from datasets import Dataset
from lines import load_with_memory, read_texts
from transformers import set_seed
from transformers.utils import is_torch_bf16_gpu_available
from trl import SFTConfig, SFTTrainer

from memory_layers import MemoryAdamW
from memory_layers.models import save_memory


def main(name: str, path: str, out: str, **arguments: object) -> None:
    """Train and save.

    Args:
        name: Of the base.
        path: Of TEXTS.
        out: Folder for checkpoints and the memory.
        **arguments: Of SFTConfig, instead of those below.
    """
    set_seed(0)
    model, tokenizer = load_with_memory(name)
    settings = {"per_device_train_batch_size": 8, "num_train_epochs": 20, "max_length": 64,
                # TRL's own choice is bf16, which the Trainer refuses without such a GPU.
                "weight_decay": 0.1, "bf16": is_torch_bf16_gpu_available()}  # fmt: skip
    trainer = SFTTrainer(
        model,
        SFTConfig(out, **{**settings, **arguments}),
        train_dataset=Dataset.from_dict({"text": read_texts(path)}),
        processing_class=tokenizer,
        optimizer_cls_and_kwargs=(MemoryAdamW, {"lr": 3e-3, "value_lr": 6e-3}),
    )
    trainer.train()
    save_memory(model, Path(out) / "memory")


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    main(*sys.argv[1:])
