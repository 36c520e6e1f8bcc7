"""Teach the memory of a model a text, or facts, with transformers' Trainer.

python examples/hf_trainer.py MODEL TEXTS OUT [KEEP]
torchrun --nproc-per-node 2 examples/hf_trainer.py MODEL TEXTS OUT [KEEP]

MODEL is a folder, a name on the hub, or smollm2. TEXTS is a text file, each line a document, or a
folder of facts. KEEP likewise, texts that the model should not forget: as many are mixed in. The
base is frozen, OUT/memory is the adapter. Given again after it was stopped, the same command goes
on from the last checkpoint.
"""

import sys
from pathlib import Path

import torch.distributed as dist
from lines import collator, encode, load_with_memory, mixed, read_texts
from transformers import Trainer, TrainingArguments, set_seed
from transformers.trainer_utils import get_last_checkpoint

from memory_layers import MemoryAdamW
from memory_layers.integrations.trainer import MemoryCallback
from memory_layers.models import save_memory


def main(
    name: str, path: str, out: str, keep: str | None = None, seed: int = 0, **arguments: object
) -> Trainer:
    """Train and save.

    Args:
        name: Of the base.
        path: Of TEXTS.
        out: Folder for checkpoints and the memory.
        keep: Of KEEP.
        seed: Of the initial memory and the order of the texts.
        **arguments: Of TrainingArguments, instead of those below.
    """
    # The memory starts at random, on all processes alike.
    set_seed(seed)
    model, tokenizer = load_with_memory(name)
    settings = {
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 2,
        "num_train_epochs": 8,
        "weight_decay": 0.1,
        "seed": seed,
        "save_total_limit": 1,
        "logging_steps": 10,
    }
    trainer = Trainer(
        model,
        TrainingArguments(out, **{**settings, **arguments}),
        collator(tokenizer),
        encode(mixed(read_texts(path), keep), tokenizer),
        callbacks=[MemoryCallback()],  # for torchrun, where several processes train
        optimizer_cls_and_kwargs=(MemoryAdamW, {"lr": 3e-3, "value_lr": 6e-3}),
    )
    trainer.train(resume_from_checkpoint=Path(out).is_dir() and get_last_checkpoint(out))
    if trainer.is_world_process_zero():
        save_memory(trainer.accelerator.unwrap_model(trainer.model), Path(out) / "memory")
    return trainer


if __name__ == "__main__":
    if len(sys.argv) not in (4, 5):
        sys.exit(__doc__)
    main(*sys.argv[1:])
    if dist.is_initialized():
        # Without both, a process that ends early can stop the others.
        dist.barrier()
        dist.destroy_process_group()
