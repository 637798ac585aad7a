"""A hand-written decoding step for models of the Llama kind (Llama, Mistral, Qwen2, Qwen3) on CPU.

A small model's time goes into dispatch and into reading caches. Here norm weights and the attention scale are folded
into fused projections, rotary embedding is one complex product, and a prefix is read once for all rows that share it
(see `batch_cache`). Weights are read anew for each `generate`, LoRA adapters merged into them, so a model
that is being trained is followed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, linear, rms_norm, silu

from gpo.engines.adapters import is_plain, weight_of
from gpo.engines.batch_cache import BatchCache
from gpo.engines.library import prefill
from gpo.engines.prefixes import DecodeRow, Layers, SharedPrompt

FAMILIES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
FIXED_ROTATIONS = ("default", "linear", "llama3", "yarn")  # angles that do not depend on the sequence's length
LARGEST = 200_000_000  # parameters; fusing copies the weights, and the gain is gone where arithmetic dominates


def is_supported(model: Any) -> bool:
    """Whether `LlamaDecoder` computes what the model's own forward pass does."""
    if type(model).__name__ not in FAMILIES or model.device.type != "cpu" or model.num_parameters() > LARGEST:
        return False
    config, attentions = model.config, [layer.self_attn for layer in model.model.layers]
    mlps = [layer.mlp for layer in model.model.layers]
    projections = [getattr(each, f"{name}_proj") for each in attentions for name in "qkvo"]
    projections += [getattr(each, f"{name}_proj") for each in mlps for name in ("gate", "up", "down")]
    return (
        all(parameter.dtype == torch.float32 for parameter in model.parameters())
        and all(is_plain(each) for each in [*projections, model.lm_head])
        and type(model.model.embed_tokens) is nn.Embedding
        and all(attention.o_proj.bias is None for attention in attentions)
        and all(mlp.gate_proj.bias is None for mlp in mlps)
        and config.hidden_act == "silu"
        and getattr(config, "sliding_window", None) is None
        and config.rope_parameters.get("rope_type", "default") in FIXED_ROTATIONS
        and config.rope_parameters.get("partial_rotary_factor", 1.0) == 1.0
        and attentions[0].head_dim % 2 == 0
    )


@dataclass(frozen=True, slots=True)
class Weights:
    """One layer, with what can be folded into its projections (transposed where they add to the residual)."""

    qkv: Tensor  # ((heads + 2 kv heads) * d, hidden); input norm, scale and rotary order folded in
    qkv_bias: Tensor | None
    qk_norm: Tensor | None  # (heads + kv heads, d)
    output: Tensor  # (heads * d, hidden)
    gate_up: Tensor  # (2 * intermediate, hidden); norm folded in
    down: Tensor  # (intermediate, hidden)


class LlamaDecoder:
    """Decodes one batch of rows."""

    def __init__(self, model: Any) -> None:
        self.model = model
        first = model.model.layers[0].self_attn
        self.size: int = first.head_dim
        self.heads: int = first.q_proj.out_features // self.size
        self.kv_heads: int = first.k_proj.out_features // self.size
        self.eps: float = model.config.rms_norm_eps
        # Rotary pairs are (i, i + d/2) in the library; side by side they are one complex number each.
        self.order = torch.arange(self.size).view(2, -1).t().flatten()
        self.layers = [self.fuse(layer) for layer in model.model.layers]
        self.embedding: Tensor = model.model.embed_tokens.weight
        self.head = weight_of(model.lm_head) * model.model.norm.weight
        self.head_bias: Tensor | None = model.lm_head.bias
        self.rotations = self.embedding.new_zeros(0, self.size // 2, dtype=torch.complex64)
        self.cache: BatchCache | None = None

    def fuse(self, layer: Any) -> Weights:
        attention = layer.self_attn
        scale = self.size**-0.5
        q_norm, k_norm = getattr(attention, "q_norm", None), getattr(attention, "k_norm", None)
        fold = 1.0 if q_norm is not None else scale  # a norm would undo a scale that comes before it

        def ordered(rows: Tensor) -> Tensor:
            return rows.view(-1, self.size, *rows.shape[1:])[:, self.order].flatten(0, 1)

        def joined(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return torch.cat((ordered(q) * fold, ordered(k), v))

        projections = (attention.q_proj, attention.k_proj, attention.v_proj)
        biased = attention.q_proj.bias is not None
        qk_norm = None
        if q_norm is not None and k_norm is not None:
            query = (q_norm.weight[self.order] * scale).expand(self.heads, -1)
            qk_norm = torch.cat((query, k_norm.weight[self.order].expand(self.kv_heads, -1)))
        return Weights(
            qkv=joined(*(weight_of(each) for each in projections)) * layer.input_layernorm.weight,
            qkv_bias=joined(*(each.bias for each in projections)) if biased else None,
            qk_norm=qk_norm,
            output=weight_of(attention.o_proj).t(),
            gate_up=torch.cat((weight_of(layer.mlp.gate_proj), weight_of(layer.mlp.up_proj)))
            * layer.post_attention_layernorm.weight,
            down=weight_of(layer.mlp.down_proj).t(),
        )

    def prefill(self, prompts: Sequence[SharedPrompt], keep: int) -> Tensor:
        logits = prefill(self.model, prompts, keep, len(self.layers))
        for prompt in prompts:
            assert prompt.layers is not None
            prompt.layers = [(keys[..., self.order], values) for keys, values in prompt.layers]
        return logits

    @property
    def room(self) -> int:
        return 0 if self.cache is None else self.cache.room

    def arrange(self, rows: Sequence[DecodeRow]) -> None:
        self.cache = BatchCache(rows, self.cache)
        self.positions = torch.tensor([row.cached for row in rows])
        self.extend_rotations(int(self.positions.max()) + self.room)

    def extend_rotations(self, end: int) -> None:
        if len(self.rotations) < end:
            cos, sin = self.model.model.rotary_emb(self.embedding, torch.arange(end).unsqueeze(0))
            half = self.size // 2
            self.rotations = torch.complex(cos[0, :, :half], sin[0, :, :half])

    @torch.inference_mode()  # a tenth faster than without gradients only
    def step(self, tokens: Tensor) -> Tensor:
        assert self.cache is not None, "rows are arranged before a step"
        hidden = embedding(tokens, self.embedding)  # (B, hidden)
        rotation = self.rotations[self.positions].unsqueeze(1)  # (B, 1, d / 2)
        width = (self.heads + self.kv_heads) * self.size
        for index, layer in enumerate(self.layers):
            qkv = linear(self.normed(hidden), layer.qkv, layer.qkv_bias)
            qk = qkv[:, :width].view(len(tokens), -1, self.size)  # (B, heads + kv heads, d)
            values = qkv[:, width:].view(len(tokens), -1, self.size)
            if layer.qk_norm is not None:
                qk = self.normed(qk) * layer.qk_norm
            pairs = torch.view_as_complex(qk.view(*qk.shape[:-1], -1, 2))
            qk = torch.view_as_real(pairs * rotation).flatten(-2)
            attended = self.cache.attend(index, qk[:, : self.heads], qk[:, self.heads :], values)
            hidden = torch.addmm(hidden, attended, layer.output)
            gate, up = linear(self.normed(hidden), layer.gate_up).chunk(2, -1)
            hidden = torch.addmm(hidden, silu(gate).mul_(up), layer.down)
        self.cache.used += 1
        self.positions += 1
        return linear(self.normed(hidden), self.head, self.head_bias)

    def cut(self, index: int) -> Layers:
        assert self.cache is not None, "rows are arranged before they branch"
        return self.cache.cut(index)

    def normed(self, values: Tensor) -> Tensor:
        return rms_norm(values, (values.shape[-1],), None, self.eps)
