"""MemoryAdamW: one torch optimizer for dense parameters and value tables.

Dense parameters take torch.optim.AdamW's own step. The rows of a table take ops.write.row_step_,
fed from the table's pending reads.
"""

import inspect
import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from memory_layers.layers import ValueTable
from memory_layers.ops.huge_pages import advise_huge_pages
from memory_layers.ops.write import RowGradient, RowState, row_norm, row_step_
from memory_layers.optim.clip import clip_dense_
from memory_layers.optim.gradients import take_row_gradient
from memory_layers.optim.groups import by_mesh, find_tables, split_parameters
from memory_layers.optim.sharded_rows import step_sharded_rows


class MemoryAdamW(torch.optim.AdamW):
    """AdamW for a model with memory layers.

    The moments of a row advance in the steps that touch it ("lazy"), the bias is corrected with
    the global step. When every step touches every row, this is torch.optim.AdamW.

    Parameter groups: decayed dense, plain dense, and one group of tables with `memory=True` and
    its own `lr`, `betas`, `eps` and `weight_decay`. Any learning-rate scheduler works on them.

    Args:
        model: The model. Its trainable parameters are found here.
        lr: Learning rate of the dense parameters.
        value_lr: Learning rate of the tables. None: `lr`.
        betas: Decay rates of the moments (arXiv 2412.09764's code: 0.9, 0.95).
        eps: Added to the root.
        weight_decay: On dense matrices.
        value_weight_decay: On tables. A touched row is decayed for all steps since it was last
            touched.
        value_state: "full" keeps two moments of the table's size, "row" keeps one number a row
            (the mean square of its gradient) and no first moment.
        bf16_rows: How a bfloat16 table takes small updates: "stochastic" rounding, or an fp32
            "master" copy.
        seed: Seed of the stochastic rounding.

    Raises:
        ValueError: A number is out of range, a choice unknown, or the model has no parameters.
    """

    def __init__(
        self,
        model: nn.Module,
        lr: float = 1e-3,
        value_lr: float | None = None,
        *,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.1,
        value_weight_decay: float = 0.0,
        value_state: Literal["full", "row"] = "full",
        bf16_rows: Literal["stochastic", "master"] = "stochastic",
        seed: int = 0,
    ) -> None:
        if value_state not in ("full", "row"):
            raise ValueError(f'value_state must be "full" or "row", got {value_state!r}')
        if bf16_rows not in ("stochastic", "master"):
            raise ValueError(f'bf16_rows must be "stochastic" or "master", got {bf16_rows!r}')
        # torch checks the defaults of all groups, not what a group sets for itself.
        numbers = {
            "value_lr": value_lr or 0.0,
            "weight_decay": weight_decay,
            "value_weight_decay": value_weight_decay,
        }
        for name, number in numbers.items():
            if not number >= 0:
                raise ValueError(f"{name} must be >= 0, got {number}")
        decayed, plain = split_parameters(model)
        self._tables = find_tables(model)
        for table in self._tables:
            table.pending.is_awaited = True
        groups: list[dict[str, Any]] = [
            *({"params": same, "weight_decay": weight_decay} for same in by_mesh(decayed)),
            *({"params": same, "weight_decay": 0.0} for same in by_mesh(plain)),
            {
                "params": [table.weight for table in self._tables],
                "lr": lr if value_lr is None else value_lr,
                "weight_decay": value_weight_decay,
                "memory": True,
                "value_state": value_state,
                "bf16_rows": bf16_rows,
                "seed": seed,
            },
        ]
        groups = [group for group in groups if group["params"]]
        if not groups:
            raise ValueError("model has no trainable parameter. hint: check requires_grad")
        fused = all(p.device.type in ("cpu", "cuda") for g in groups for p in g["params"])
        super().__init__(groups, lr=lr, betas=betas, eps=eps, weight_decay=0.0, fused=fused)
        for group in self.param_groups:
            group.setdefault("memory", False)

    @property
    def memory_group(self) -> dict[str, Any] | None:
        """The parameter group of the tables, None for a model without."""
        return next((group for group in self.param_groups if group.get("memory")), None)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # noqa: ANN401
        """Step the dense parameters and the touched rows, and consume the pending reads.

        Args:
            closure: Recomputes the loss, as for every torch optimizer.
        """
        # GradScaler leaves both to the step of a fused optimizer.
        if self._tables and getattr(self, "found_inf", None) is not None:
            raise RuntimeError(
                "loss scaling does not reach the gradient of a value table. hint: train in bf16, "
                "without a GradScaler"
            )
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        gradients = self._table_gradients()
        kept = [table.weight.grad for table in self._tables]
        for table in self._tables:
            table.weight.grad = None
        # torch wraps the step of every class that was instantiated, to run the hooks of `self`:
        # through super().step() they would run twice.
        inspect.unwrap(torch.optim.AdamW.step)(self)
        group = self.memory_group or {}
        for table, gradient, grad in zip(self._tables, gradients, kept, strict=True):
            self._step_table(table, gradient, group)
            table.weight.grad = grad
            table.pending.clear()
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget all gradients, the pending reads included."""
        super().zero_grad(set_to_none)
        for table in self._tables:
            table.pending.clear()

    @torch.no_grad()
    def clip_grad_norm_(
        self, max_norm: float | None, value_max_norm: float | None = None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Clip dense gradients and table gradients apart, as arXiv 2412.09764's code does.

        Does not wait for a GPU while the tables' gradients are factored: the norms are tensors, to
        be read when they are logged.

        Args:
            max_norm: Largest norm of all dense gradients together. None: leave them alone.
            value_max_norm: Largest norm of all table gradients together. None: leave them alone.

        Returns:
            Both norms before clipping, 0-dim, None for what was left alone.
        """
        dense_norm = value_norm = None
        if max_norm is not None:
            dense = [p for g in self.param_groups if not g.get("memory") for p in g["params"]]
            dense_norm = clip_dense_(dense, max_norm)
        if value_max_norm is not None:
            pairs = zip(self._tables, self._table_gradients(), strict=True)
            squares = [
                table.sum_over_shards(row_norm(gradient).square())
                for table, gradient in pairs
                if gradient is not None
            ]
            value_norm = torch.stack(squares).sum().sqrt() if squares else torch.zeros(())
            self._scale_tables((value_max_norm / (value_norm + 1e-6)).clamp(max=1.0))
        return dense_norm, value_norm

    def _table_gradients(self) -> list[RowGradient | None]:
        for table in self._tables:
            table.reduce_gradient()
        return [take_row_gradient(table) for table in self._tables]

    def _scale_tables(self, factor: Tensor) -> None:
        for table in self._tables:
            if table.weight.grad is None:
                table.pending.scale(factor)
            else:
                table.weight.grad.mul_(factor)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state dict exactly, fp32 state of bf16 tables included.

        Args:
            state_dict: What `state_dict()` returned.
        """
        super().load_state_dict(state_dict)
        group = self.memory_group
        if group is None:
            return
        # torch casts floating-point state to the type of the parameter: take it as it was saved.
        saved = next(g for g in state_dict["param_groups"] if g.get("memory"))
        for index, weight in zip(saved["params"], group["params"], strict=True):
            loaded = dict(state_dict["state"].get(index, {}))
            if "row_decay_sum" in loaded:
                # Their names in states that were saved before these were renamed.
                loaded["decayed"] = loaded.pop("row_decay_sum")
                loaded["decay_total"] = float(loaded.pop("decay_sum"))
            self.state[weight] = {
                name: _copy(value, weight) if isinstance(value, Tensor) else value
                for name, value in loaded.items()
            }

    def __getstate__(self) -> dict[str, Any]:
        """Return what pickle and deepcopy need: torch's own list leaves the tables out."""
        return {**super().__getstate__(), "_tables": self._tables}

    def _step_table(
        self, table: ValueTable, gradient: RowGradient | None, group: dict[str, Any]
    ) -> None:
        weight = table.weight
        state = self.state[weight]
        if not state:
            self.init_table_state(weight)
        state["step"] += 1
        if "decayed" in state:
            # The logarithm of the decay of a row that was touched in every step so far.
            state["decay_total"] += math.log1p(-group["lr"] * group["weight_decay"])
        if gradient is None:
            return
        seed = group["seed"] * 1_000_003 + state["step"] + 7919 * table.first_column
        rounds = weight.dtype == torch.bfloat16 and "master" not in state
        rounding = seed % 2**31 if rounds else None
        if group["value_state"] == "row" and weight.shape[1] != table.value_dim:
            step_sharded_rows(table, state, gradient, group, rounding)
            return
        row_step_(
            weight,
            RowState(**state),
            gradient,
            lr=group["lr"],
            betas=group["betas"],
            eps=group["eps"],
            seed=rounding,
        )

    def init_table_state(self, weight: Tensor) -> None:
        """Make the state of a table as it is before the first step.

        Args:
            weight: Of one of the tables.
        """
        state, group = self.state[weight], self.memory_group or {}
        state["step"] = 0
        wide = group["value_state"] == "full"
        if wide:
            state["exp_avg"] = _zeros(weight, weight.shape[1])
        state["exp_avg_sq"] = _zeros(weight, weight.shape[1] if wide else 1)
        if weight.dtype == torch.bfloat16 and group["bf16_rows"] == "master":
            state["master"] = weight.detach().float()
        if group["weight_decay"]:
            state["decay_total"] = 0.0
            state["decayed"] = weight.new_zeros(len(weight), dtype=torch.float64)


def _copy(value: Tensor, weight: Tensor) -> Tensor:
    state = torch.empty_like(value, device=weight.device)
    advise_huge_pages(state)
    return state.copy_(value)


def _zeros(weight: Tensor, width: int) -> Tensor:
    dtype = torch.promote_types(weight.dtype, torch.float32)
    state = weight.new_empty((len(weight), width), dtype=dtype)
    advise_huge_pages(state)
    return state.zero_()
