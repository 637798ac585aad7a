"""What the processes that accelerate has launched tell each other."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor


def add_up(accelerator: Accelerator, parameters: Iterable[Tensor], totals: dict[str, float]) -> dict[str, float]:
    """Add up the gradients of all processes in each of them, and their metrics; of `ratio_error` the largest counts."""
    for parameter in parameters:
        own = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        parameter.grad = accelerator.reduce(own, "sum")
    every: list[dict[str, float]] = gather_object([totals])
    keys = next(each for each in every if each)  # a process without rows has none
    added = {key: sum(each.get(key, 0.0) for each in every) for key in keys}
    return added | {"ratio_error": max(each.get("ratio_error", 0.0) for each in every)}
