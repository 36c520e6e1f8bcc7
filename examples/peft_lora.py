"""Train low-rank changes of a model together with its memory table by PEFT.

python examples/peft_lora.py MODEL TEXTS OUT

MODEL has memory: a folder that a run of ours or `add_memory` and save_pretrained wrote. TEXTS is a
text file, each line a document, or a folder of facts. OUT/adapter is PEFT's folder, with the whole
table and its gates, OUT/merged the model with both taken in.
"""

import sys
from pathlib import Path

from lines import collator, encode, load_base, read_texts
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import Trainer, TrainingArguments, set_seed

from memory_layers import MemoryAdamW


def main(name: str, path: str, out: str, **arguments: object) -> PeftModel:
    """Train, save the adapter, and save the model with the adapter merged.

    Args:
        name: Of the model with memory.
        path: Of TEXTS.
        out: Folder for checkpoints and results.
        **arguments: Of TrainingArguments, instead of those below.
    """
    set_seed(0)
    model, tokenizer = load_base(name)
    lora = LoraConfig(
        task_type="CAUSAL_LM", r=8, target_modules=["q_proj", "v_proj"],
        # Beside a feed-forward block a memory begins with an output of zero: while its gate is
        # frozen, nothing reaches the table.
        modules_to_save=["memory_table", "gate"],
    )  # fmt: skip
    adapted = get_peft_model(model, lora)
    settings = {"per_device_train_batch_size": 8, "num_train_epochs": 20, "logging_steps": 10,
                "weight_decay": 0.1}  # fmt: skip
    Trainer(
        adapted,
        TrainingArguments(out, **{**settings, **arguments}),
        collator(tokenizer),
        encode(read_texts(path), tokenizer),
        optimizer_cls_and_kwargs=(MemoryAdamW, {"lr": 3e-3, "value_lr": 6e-3}),
    ).train()
    adapted.save_pretrained(Path(out) / "adapter")
    tokenizer.save_pretrained(Path(out) / "merged")
    merged = PeftModel.from_pretrained(load_base(name)[0], Path(out) / "adapter")
    merged.merge_and_unload().save_pretrained(Path(out) / "merged")
    return adapted


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    main(*sys.argv[1:])
