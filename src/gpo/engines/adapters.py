"""Models with LoRA adapters (peft): the weights with which a model without adapters computes the same.

    x W' + scale * (x A') B' = x (W + scale * B A)'

Source: Hu et al., "LoRA" (arXiv 2106.09685), section 4.1. Merged weights are made in float32 and cast to the type of W.
Other adapters, and variants of LoRA such as DoRA, are left to the library's forward pass.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from gpo.errors import EngineError


def without_wrapper(model: Any) -> Any:
    """The model of transformers that a peft model wraps: its modules hold the adapters, and it has a cache.

    Raises:
        EngineError: the adapters are virtual tokens, which are in no module.
    """
    if not hasattr(model, "get_base_model"):
        return model
    if model.active_peft_config.is_prompt_learning:
        kind = model.active_peft_config.peft_type.value
        raise EngineError(f"The engine cannot sample from a model with {kind}; expected LoRA, or merged weights.")
    return model.get_base_model()


def is_plain(linear: Any) -> bool:
    """Whether all that a projection does is to multiply by `weight_of` and to add its bias."""
    if type(linear) is nn.Linear:
        return True
    from peft.tuners.lora import Linear

    return (
        type(linear) is Linear
        and type(linear.base_layer) is nn.Linear
        and not linear.merged
        and not any(name in linear.lora_variant or linear.lora_B[name].bias is not None for name in active(linear))
    )


def active(linear: Any) -> list[str]:
    """The names of a projection's adapters that are in use."""
    return [] if linear.disable_adapters else [name for name in linear.active_adapters if name in linear.lora_A]


def weight_of(linear: Any) -> Tensor:
    """A projection's weight (out, in) with its adapters merged; the projection stays as it is."""
    weight: Tensor = linear.weight
    if type(linear) is nn.Linear or not active(linear):
        return weight
    merged = weight.float()
    for name in active(linear):
        up, down = linear.lora_B[name].weight, linear.lora_A[name].weight
        merged = merged + linear.scaling[name] * (up.float() @ down.float())
    return merged.to(weight.dtype)


def merge(model: Any) -> None:
    """Replace the projections of a model that have mergeable adapters by ones without."""
    if not hasattr(model, "peft_config"):
        return
    for name, module in list(model.named_modules()):
        if hasattr(module, "lora_A") and is_plain(module):
            projection = module.base_layer
            # A new parameter: a head that is tied to the embedding must not change it.
            projection.weight = nn.Parameter(weight_of(module).detach(), requires_grad=False)
            model.set_submodule(name, projection)
