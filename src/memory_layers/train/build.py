"""The model of a run and its optimizer, from the configuration."""

import torch
from transformers import LlamaForCausalLM, PreTrainedModel

from memory_layers.common.errors import UserError
from memory_layers.data.prepare import PreparedData
from memory_layers.data.tokenizer import vocabulary_size
from memory_layers.layers.experts import scale_balance
from memory_layers.layers.walk import freeze_keys
from memory_layers.models import add_experts, add_memory
from memory_layers.models.initialize import materialize
from memory_layers.optim import MemoryAdamW
from memory_layers.parallel.apply import parallelize
from memory_layers.parallel.world import World
from memory_layers.train.config import RunConfig


def make_model(config: RunConfig, data: PreparedData, world: World) -> PreTrainedModel:
    """Build the model of a run, or the share of this rank: initial values come from the seed."""
    shape = config.model.to_preset().to_config()
    shape.vocab_size = vocabulary_size(data.tokenizer)
    shape.eos_token_id = shape.bos_token_id = data.tokenizer.eos_token_id
    shape.pad_token_id = data.tokenizer.pad_token_id
    with torch.device("meta"):
        model = LlamaForCausalLM(shape)
        if config.memory is not None:
            # None: the model's own type, in which it can be loaded as well.
            dtype = None if config.optim.value_dtype == "float32" else torch.bfloat16
            model = add_memory(model, config.memory, value_dtype=dtype)
        model = model if config.moe is None else add_experts(model, config.moe)
    if not config.optim.train_keys:
        freeze_keys(model)
    # The gradients of all micro-batches and readers are added up.
    scale_balance(model, 1 / (config.train.accumulate * world.layout.readers))
    seed = config.train.seed
    if world.meshes is None:
        materialize(model, seed, world.device)
    else:
        try:
            parallelize(model, world.meshes, config.parallel, seed=seed, device=world.device)
        except ValueError as error:
            raise UserError(str(error)) from error
    if config.train.gradient_checkpointing:
        # Its name in transformers since 5.23, which warns of the older one.
        enable = getattr(model, "activation_checkpointing_enable", None)
        (enable or model.gradient_checkpointing_enable)({"use_reentrant": False})
    return model


def make_optimizer(config: RunConfig, model: PreTrainedModel) -> MemoryAdamW:
    """Build the optimizer of a run."""
    optim = config.optim
    optimizer = MemoryAdamW(
        model,
        optim.lr,
        optim.peak_value_lr,
        betas=(optim.beta1, optim.beta2),
        eps=optim.eps,
        weight_decay=optim.weight_decay,
        value_weight_decay=optim.value_weight_decay,
        value_state=optim.value_state,
        bf16_rows=optim.bf16_rows,
        seed=config.train.seed,
    )
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    return optimizer
