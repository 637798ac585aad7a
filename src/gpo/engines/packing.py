"""Projections whose weights are laid out once as oneDNN's matrix product on a CPU reads them.

torch lays them out anew at each product, or leaves them as they are; with the few rows of a decode batch either takes
as long as the arithmetic.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

ROWS = 64  # for which the layout is chosen; others are computed with it too


class PackedLinear(nn.Module):
    """What an `nn.Linear` computes without gradients, its weight in oneDNN's layout."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight: Tensor = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), ROWS)
        self.bias = linear.bias

    def forward(self, inputs: Tensor) -> Tensor:
        product: Tensor = torch.ops.mkldnn._linear_pointwise(inputs, self.weight, self.bias, "none", [], "")
        return product


def pack(model: Any) -> None:
    """Replace the projections of a model on a CPU that is only sampled from; a tied head gets a weight of its own.

    Projections of adapters stay: some of them read the weight that they adapt.
    """
    for name, module in list(model.named_modules()):
        of_adapter = "base_layer" in name or "lora_" in name
        if type(module) is nn.Linear and not of_adapter and packs(module.weight):
            model.set_submodule(name, PackedLinear(module))


def packs(weight: Tensor) -> bool:
    """Whether oneDNN has a product of this type for this machine; not so for tensors that are quantised."""
    available = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if weight.device.type != "cpu" or type(weight.data) is not Tensor or not available:
        return False
    if weight.dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return weight.dtype == torch.float32
