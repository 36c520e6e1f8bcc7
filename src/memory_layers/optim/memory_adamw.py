"""MemoryAdamW: one torch optimizer for dense parameters and value tables.

Dense parameters take torch's own AdamW step. The rows of a table take ops.write.row_step_, fed
from the factors of its gradient.
"""

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw
from torch.optim.optimizer import ParamsT

from memory_layers.layers import ValueTable
from memory_layers.layers.factored import FactoredGradient
from memory_layers.layers.values import table_of
from memory_layers.ops.huge_pages import advise_huge_pages
from memory_layers.ops.write import RowGradient, RowState, row_norm, row_step_
from memory_layers.optim.clip import clip_dense_
from memory_layers.optim.groups import groups_of
from memory_layers.optim.options import check_group, check_options
from memory_layers.optim.sharded_rows import step_sharded_rows


class MemoryAdamW(torch.optim.Optimizer):
    """AdamW for dense parameters and value tables.

    Only the rows of a table that a step touches are moved. How far, and what is kept of a row for
    it, is `value_state`; ops.write.row_step_ has the equations.

    The tables among the parameters get groups of their own, with `memory=True`, which any
    learning-rate scheduler works on. They take `value_lr` and `value_weight_decay`, of their group
    or of the optimizer, and the rest of the options of their group. A group of tables alone may say
    `lr` for `value_lr`. Its `weight_decay` is not theirs: a Trainer gives that to every group.

    As long as the optimizer lives, the gradients of its trainable tables are FactoredGradients.
    `step` takes them: it leaves None in their place.

    Args:
        params: Parameters, named parameters or groups, as any torch optimizer takes them, or a
            model. Of a model, norms, biases and tables have no `weight_decay`.
        lr: Learning rate of the dense parameters.
        value_lr: Learning rate of the tables. None: `lr`.
        betas: Decay rates of the moments (arXiv 2412.09764's code: 0.9, 0.95).
        eps: Added to the root.
        weight_decay: On dense parameters.
        value_weight_decay: On tables. A touched row is decayed for all steps since it was last
            touched.
        value_state: "ahead" moves a touched row at once by all that AdamW would move it by from now
            on if no gradient followed, and keeps two moments of the table's size. "full" keeps
            these as well, and a row waits until it is touched again: if every step touches
            every row, it is torch.optim.AdamW. "row" keeps one number a row (the mean square of its
            gradient) and no first moment. With "ahead", as in AdamW of the whole table, a touch of
            a row that then rests is worth 5.8 learning rates if betas are (0.9, 0.95), and up to 32
            if they are (0.9, 0.999). With the others it is worth about 1.
        bf16_rows: How a bfloat16 table takes small updates: "stochastic" rounding, or an fp32
            "master" copy. A float16 table needs the copy.
        seed: Seed of the stochastic rounding.

    Raises:
        ValueError: A number is out of range, a choice unknown, there are no parameters, or FSDP has
            sharded a table.
    """

    def __init__(
        self,
        params: nn.Module | ParamsT,
        lr: float = 1e-3,
        value_lr: float | None = None,
        *,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.1,
        value_weight_decay: float = 0.0,
        value_state: Literal["ahead", "full", "row"] = "ahead",
        bf16_rows: Literal["stochastic", "master"] = "stochastic",
        seed: int = 0,
    ) -> None:
        self._tables: dict[Tensor, ValueTable] = {}
        self._of_tables: dict[str, Any] = {
            "value_lr": value_lr,
            "value_weight_decay": value_weight_decay,
            "value_state": value_state,
            "bf16_rows": bf16_rows,
            "seed": seed,
        }
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        check_options({**defaults, **self._of_tables})
        if isinstance(params, nn.Module):
            params = groups_of(params, weight_decay)
            if not params:
                raise ValueError("model has no trainable parameter. hint: check requires_grad")
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters, tables and others each in a group of its own.

        Args:
            param_group: `params`, and options that differ from those of the optimizer.

        Raises:
            ValueError: As for the optimizer, or a parameter is in another group. Nothing is added.
        """
        group = dict(param_group)
        params, names = group.pop("params"), group.pop("param_names", None)
        if isinstance(params, set):
            raise TypeError("params must be in order, got a set. hint: a list")
        entries = [params] if isinstance(params, Tensor) else list(params)
        if names is not None:
            entries = list(zip(names, entries, strict=True))
        tables = {}
        for entry in entries:
            parameter = entry[1] if isinstance(entry, tuple) else entry
            table = table_of(parameter)
            if table is not None and hasattr(parameter, "device_mesh"):
                raise ValueError(
                    "the weight of a value table is a DTensor, as fully_shard makes it, and "
                    "MemoryAdamW steps rows. hint: name it in ignored_params, or use "
                    "memory_layers.parallel, or torch.optim.AdamW"
                )
            if table is not None:
                tables[id(entry)] = table
        dense = [entry for entry in entries if id(entry) not in tables]
        options = {name: group.pop(name) for name in self._of_tables if name in group}
        if group.get("memory"):  # It is that of another MemoryAdamW.
            options.setdefault("value_weight_decay", group["weight_decay"])
        check_options({**group, **options})
        groups = [{**group, "params": dense, "memory": False}] if dense or not tables else []
        if tables:
            rows = [entry for entry in entries if id(entry) in tables]
            group |= self._options_of_tables(group, options, mixed=bool(dense))
            groups.append({**group, "params": rows, "memory": True})
        for table in tables.values():
            check_group(table.weight, {**self.defaults, **group})
        before = len(self.param_groups)
        try:
            for part in groups:
                super().add_param_group(part)
                added = self.param_groups[-1]
                devices = {parameter.device.type for parameter in added["params"]}
                added.setdefault("fused", devices <= {"cpu", "cuda"})
        except (TypeError, ValueError):
            del self.param_groups[before:]
            raise
        for table in tables.values():
            self._tables[table.weight] = table
            table.claim(self)

    def _options_of_tables(
        self, group: dict[str, Any], options: dict[str, Any], *, mixed: bool
    ) -> dict[str, Any]:
        own = {**self._of_tables, **options}
        value_lr, own["weight_decay"] = own.pop("value_lr"), own.pop("value_weight_decay")
        means_tables = "lr" in group and not mixed and "value_lr" not in options
        if value_lr is None or means_tables:
            value_lr = group.get("lr", self.defaults["lr"])
        return {**own, "lr": value_lr}

    @property
    def memory_group(self) -> dict[str, Any] | None:
        """The first group of tables, None without tables."""
        return next((group for group in self.param_groups if group.get("memory")), None)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # noqa: ANN401
        """Step the dense parameters and the touched rows, and take the tables' gradients.

        Args:
            closure: Recomputes the loss, as for every torch optimizer.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        memory = [group for group in self.param_groups if group.get("memory")]
        for group in memory:
            self._check_tables(group)
        gradients = {weight: table.row_gradient() for weight, table in self._tables.items()}
        for group in self.param_groups:
            if not group.get("memory"):
                self._step_dense(group)
        for group in memory:
            for weight in group["params"]:
                self._step_table(weight, gradients[weight], group)
                if isinstance(weight.grad, FactoredGradient):
                    weight.grad = None
        return loss

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
            tables = self._tables.values()
            pairs = [(table, table.row_gradient()) for table in tables]
            squares = [
                table.sum_over_shards(row_norm(gradient).square())
                for table, gradient in pairs
                if gradient is not None
            ]
            value_norm = torch.stack(squares).sum().sqrt() if squares else torch.zeros(())
            factor = (value_max_norm / (value_norm + 1e-6)).clamp(max=1.0)
            for table in tables:
                if table.weight.grad is not None:
                    table.weight.grad.mul_(factor)
        return dense_norm, value_norm

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state dict exactly, fp32 state of bf16 tables included.

        Options of groups are those that were saved, as with every torch optimizer: state from
        before there was "ahead" goes on as "full".

        Args:
            state_dict: What `state_dict()` returned.
        """
        super().load_state_dict(state_dict)
        # torch casts floating-point state to the type of the parameter: take it as it was saved.
        for group, saved in zip(self.param_groups, state_dict["param_groups"], strict=True):
            for index, weight in zip(saved["params"], group["params"], strict=True):
                if weight in self._tables:
                    self.state[weight] = {
                        name: _copy(value, weight) if isinstance(value, Tensor) else value
                        for name, value in state_dict["state"].get(index, {}).items()
                    }

    def __getstate__(self) -> dict[str, Any]:
        """Return what pickle and deepcopy need: torch's own list leaves the tables out."""
        return {
            **super().__getstate__(), "_tables": self._tables, "_of_tables": self._of_tables
        }  # fmt: skip

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore what pickle or deepcopy has made, or what load_state_dict has prepared."""
        super().__setstate__(state)
        for table in state.get("_tables", {}).values():
            table.claim(self)

    def _check_tables(self, group: dict[str, Any]) -> None:
        """Refuse what a step of a group of tables would end in, before any parameter has moved."""
        for weight in group["params"]:
            table = self._tables.get(weight)
            if table is None or table.weight is not weight:
                raise RuntimeError(
                    "a table was exchanged for another parameter after the optimizer was made, as "
                    "FSDP and load_state_dict(assign=True) do. hint: do that to the model first, "
                    "then MemoryAdamW(model)"
                )
            check_group(weight, group)

    def _step_dense(self, group: dict[str, Any]) -> None:
        params = [parameter for parameter in group["params"] if parameter.grad is not None]
        grads = [parameter.grad for parameter in params]
        if any(grad.layout == torch.sparse_coo for grad in grads):
            raise RuntimeError(
                "MemoryAdamW steps sparse gradients of value tables alone. hint: sparse=False, or "
                "torch.optim.SparseAdam for the other parameters with sparse gradients"
            )
        for parameter in params:
            if not self.state[parameter]:
                self.state[parameter] = _dense_state(parameter, group)
        states = [self.state[parameter] for parameter in params]
        adamw(
            params,
            grads,
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            fused=group["fused"],
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )

    def _step_table(
        self, weight: Tensor, gradient: RowGradient | None, group: dict[str, Any]
    ) -> None:
        if gradient is None and not weight.requires_grad:
            return
        table = self._tables[weight]
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
        groups = (group for group in self.param_groups if group.get("memory"))
        group = next(group for group in groups if any(weight is p for p in group["params"]))
        state = self.state[weight]
        state["step"] = 0
        wide = group["value_state"] != "row"
        if wide:
            state["exp_avg"] = _zeros(weight, weight.shape[1])
        state["exp_avg_sq"] = _zeros(weight, weight.shape[1] if wide else 1)
        if group["value_state"] == "ahead":
            state["last_step"] = weight.new_zeros(len(weight), dtype=torch.int32)
            state["last_lr"] = weight.new_zeros(len(weight), dtype=torch.float32)
        if weight.dtype in (torch.bfloat16, torch.float16) and group["bf16_rows"] == "master":
            state["master"] = weight.detach().float()
        if group["weight_decay"]:
            state["decay_total"] = 0.0
            state["decayed"] = weight.new_zeros(len(weight), dtype=torch.float64)


def _dense_state(parameter: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
    return {
        # As torch's AdamW has it: beside the parameter for the kernels that read it there.
        "step": torch.zeros(
            (), dtype=torch.float32, device=parameter.device if group["fused"] else "cpu"
        ),
        "exp_avg": torch.zeros_like(parameter),
        "exp_avg_sq": torch.zeros_like(parameter),
    }


def _copy(value: Tensor, weight: Tensor) -> Tensor:
    state = torch.empty_like(value, device=weight.device)
    advise_huge_pages(state)
    return state.copy_(value)


def _zeros(weight: Tensor, width: int) -> Tensor:
    dtype = torch.promote_types(weight.dtype, torch.float32)
    state = weight.new_empty((len(weight), width), dtype=dtype)
    advise_huge_pages(state)
    return state.zero_()
