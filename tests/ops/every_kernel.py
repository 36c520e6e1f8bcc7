"""What each CPU kernel returns for fixed inputs: python every_kernel.py FILE."""

import sys

import torch
from torch import Tensor

from memory_layers import gather_dot, gather_sum, product_key_topk
from memory_layers.ops.read import scatter_sum
from memory_layers.ops.write import RowState, group_by_row, row_norm, row_step_, row_sums

ROWS, WIDTH, TOKENS, READS = 90, 37, 12, 19


def results(impl: str) -> dict[str, Tensor]:
    """Run FIND, READ and WRITE, forward and backward, in fp32 and bf16."""
    torch.manual_seed(0)
    found = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        table = torch.randn(ROWS, WIDTH).to(dtype)
        slots, weights = torch.randint(ROWS, (TOKENS, READS)), torch.randn(TOKENS, READS)
        x = torch.randn(TOKENS, WIDTH).to(dtype)
        found[f"gather_sum {name}"] = gather_sum(table, slots, weights, impl=impl)
        found[f"gather_sum, one token, {name}"] = gather_sum(table, slots[:1], weights[:1])
        found[f"gather_dot {name}"] = gather_dot(table, slots, x, impl=impl)
        found[f"scatter_sum {name}"] = scatter_sum(slots, weights, x, ROWS, impl=impl)
        gradient = group_by_row(slots, weights, x)
        gradient = gradient.joined(group_by_row(slots[:, :3], weights[:, :3], x))
        found[f"row_sums {name}"] = row_sums(gradient, impl=impl)[1]
        found[f"row_norm {name}"] = row_norm(gradient, impl=impl)
        for kind in ("adamw", "adamw, one moment a row", "sgd"):
            stepped, first, second = table.clone(), torch.zeros(ROWS, WIDTH), None
            if kind != "sgd":
                second = torch.zeros(ROWS, WIDTH if kind == "adamw" else 1)
            state = RowState(first if kind == "adamw" else None, second)
            seed = None if name == "fp32" else 3
            row_step_(stepped, state, gradient, kind[:5].strip(), lr=0.1, seed=seed, impl=impl)
            found[f"{kind} {name}"] = stepped
            found[f"first moment, {kind} {name}"] = first
        query = torch.randn(TOKENS, 2, 2, WIDTH).to(dtype).requires_grad_()
        sub_keys = torch.randn(2, 2, 150, WIDTH).to(dtype).requires_grad_()
        scores, found[f"slots {name}"] = product_key_topk(query, sub_keys, 20, impl=impl)
        scores.cumsum(2).sum().backward()
        found[f"scores {name}"] = scores.detach()
        found[f"d_query {name}"], found[f"d_sub_keys {name}"] = query.grad, sub_keys.grad
        one, slot = product_key_topk(query[:1].detach(), sub_keys.detach(), 20, impl=impl)
        found[f"scores of one token {name}"], found[f"slots of one token {name}"] = one, slot
    return found


if __name__ == "__main__":
    torch.save(results("cpu"), sys.argv[1])
