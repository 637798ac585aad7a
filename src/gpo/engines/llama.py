"""A hand-written decoding step for models of the Llama kind (Llama, Mistral, Qwen2, Qwen3).

A small model's time goes into dispatch and into reading caches. Here projections are fused, rotary embedding is one
complex product, and a prefix is read once for all rows that share it (see `batch_cache`). In float32 norm weights and
the attention scale are folded into the projections; in shorter types that would round the weights once more. On a GPU
the steps between two arrangements of the batch are one graph. Weights are read anew for each `generate`, LoRA adapters
merged into them, so a model that is being trained is followed.
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
from gpo.engines.graph import Graph
from gpo.engines.library import prefill
from gpo.engines.prefixes import DecodeRow, SharedPrompt

FAMILIES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
FIXED_ROTATIONS = ("default", "linear", "llama3", "yarn")  # angles that do not depend on the sequence's length
# Parameters; fusing copies the weights, and the gain is gone where arithmetic dominates.
LARGEST = 200_000_000  # on a CPU
LARGEST_CUDA = 3_000_000_000


def is_supported(model: Any) -> bool:
    """Whether `LlamaDecoder` computes what the model's own forward pass does."""
    limits = {"cpu": (LARGEST, (torch.float32,)), "cuda": (LARGEST_CUDA, (torch.float32, torch.bfloat16))}
    largest, dtypes = limits.get(model.device.type, (0, ()))
    if type(model).__name__ not in FAMILIES or model.num_parameters() > largest:
        return False
    config, attentions = model.config, [layer.self_attn for layer in model.model.layers]
    mlps = [layer.mlp for layer in model.model.layers]
    projections = [getattr(each, f"{name}_proj") for each in attentions for name in "qkvo"]
    projections += [getattr(each, f"{name}_proj") for each in mlps for name in ("gate", "up", "down")]
    return (
        model.dtype in dtypes
        and all(each.dtype == model.dtype and each.device == model.device for each in model.parameters())
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
    """One layer, projections transposed where they add to the residual; norms that are folded in are None."""

    qkv: Tensor  # ((heads + 2 kv heads) * d, hidden); in rotary order
    qkv_bias: Tensor | None
    qk_norm: Tensor | None  # (heads + kv heads, d)
    output: Tensor  # (heads * d, hidden)
    gate_up: Tensor  # (2 * intermediate, hidden)
    down: Tensor  # (intermediate, hidden)
    before: Tensor | None  # (hidden,) norm of the attention's input
    between: Tensor | None  # (hidden,) norm of the multilayer perceptron's input


class LlamaDecoder:
    """Decodes one batch of rows."""

    def __init__(self, model: Any, before: Graph | None = None) -> None:
        """`before` is the graph of a decoder that is not used any more."""
        self.model = model
        first = model.model.layers[0].self_attn
        self.size: int = first.head_dim
        self.heads: int = first.q_proj.out_features // self.size
        self.kv_heads: int = first.k_proj.out_features // self.size
        self.eps: float = model.config.rms_norm_eps
        # Rotary pairs are (i, i + d/2) in the library; side by side they are one complex number each.
        self.order = torch.arange(self.size, device=model.device).view(2, -1).t().flatten()
        self.folds: bool = model.dtype == torch.float32
        self.scale: float = self.size**-0.5
        self.layers = [self.fuse(layer) for layer in model.model.layers]
        self.embedding: Tensor = model.model.embed_tokens.weight
        self.head, self.last = self.folded(weight_of(model.lm_head), model.model.norm.weight)
        self.head_bias: Tensor | None = model.lm_head.bias
        self.rotations = self.embedding.new_zeros(0, self.size // 2, dtype=torch.complex64)
        self.cache: BatchCache | None = None
        self.graph = before
        self.steps = 0  # of the graph since the batch was arranged
        self.warm = before is not None
        self.patience: float = 1 / 4 if model.device.type == "cuda" else 1 / 12

    def folded(self, projection: Tensor, norm: Tensor) -> tuple[Tensor, Tensor | None]:
        """A projection, and the norm's weight that its input is to be multiplied by, if it is not folded in."""
        return (projection * norm, None) if self.folds else (projection, norm)

    def fuse(self, layer: Any) -> Weights:
        attention, mlp = layer.self_attn, layer.mlp
        q_norm, k_norm = getattr(attention, "q_norm", None), getattr(attention, "k_norm", None)
        fold = self.scale if self.folds and q_norm is None else 1.0  # a norm would undo a scale that comes before it

        def ordered(rows: Tensor) -> Tensor:
            return rows.view(-1, self.size, *rows.shape[1:])[:, self.order].flatten(0, 1)

        def joined(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return torch.cat((ordered(q) * fold, ordered(k), v))

        projections = (attention.q_proj, attention.k_proj, attention.v_proj)
        biased = attention.q_proj.bias is not None
        qk_norm = None
        if q_norm is not None and k_norm is not None:
            query = q_norm.weight[self.order] * (self.scale if self.folds else 1.0)
            key = k_norm.weight[self.order]
            qk_norm = torch.cat((query.expand(self.heads, -1), key.expand(self.kv_heads, -1)))
        qkv = joined(*(weight_of(each) for each in projections))
        gate_up = torch.cat((weight_of(mlp.gate_proj), weight_of(mlp.up_proj)))
        qkv, before = self.folded(qkv, layer.input_layernorm.weight)
        gate_up, between = self.folded(gate_up, layer.post_attention_layernorm.weight)
        return Weights(
            qkv=qkv,
            qkv_bias=joined(*(each.bias for each in projections)) if biased else None,
            qk_norm=qk_norm,
            output=weight_of(attention.o_proj).t(),
            gate_up=gate_up,
            down=weight_of(mlp.down_proj).t(),
            before=before,
            between=between,
        )

    def prefill(self, prompts: Sequence[SharedPrompt], keep: int) -> Tensor:
        logits, layers = prefill(self.model, prompts, keep, len(self.layers))
        keys, values = (torch.stack([pair[part] for pair in layers]) for part in (0, 1))
        states = torch.stack((keys[..., self.order], values), 1)  # (layers, 2, G, kv heads, T, d)
        for index, prompt in enumerate(prompts):
            prompt.layers = states[:, :, index, :, : len(prompt.token_ids)]
        return logits

    @property
    def room(self) -> int:
        return 0 if self.cache is None else self.cache.room

    def arrange(self, rows: Sequence[DecodeRow]) -> None:
        self.cache, self.steps = BatchCache(rows, self.cache, self.heads // self.kv_heads), 0
        lengths = [row.cached for row in rows]
        self.positions = torch.tensor(lengths, device=self.model.device)
        self.extend_rotations(max(lengths) + self.room)

    def extend_rotations(self, end: int) -> None:
        if len(self.rotations) < end:
            positions = torch.arange(end, device=self.model.device).unsqueeze(0)
            cos, sin = self.model.model.rotary_emb(self.embedding.new_zeros(1, dtype=torch.float32), positions)
            half = self.size // 2
            self.rotations = torch.complex(cos[0, :, :half], sin[0, :, :half])

    @torch.inference_mode()  # a tenth faster than without gradients only
    def step(self, tokens: Tensor) -> Tensor:
        """On a GPU the logits are overwritten by the next step."""
        assert self.cache is not None, "rows are arranged before a step"
        if not tokens.is_cuda or not self.warm:
            logits, self.warm = self.compute(tokens), True  # what a first step sets up cannot be recorded
        else:
            if self.steps == 0:
                self.graph = Graph(self.compute, tokens, self.graph)
            assert self.graph is not None, "recorded at the first step"
            logits = self.graph(tokens)
            self.steps += 1
        self.cache.used += 1
        return logits

    def compute(self, tokens: Tensor) -> Tensor:
        """The step, but for what Python counts."""
        assert self.cache is not None, "rows are arranged before a step"
        self.cache.begin()
        hidden = embedding(tokens, self.embedding)  # (B, hidden)
        rotation = self.rotations[self.positions].unsqueeze(1)  # (B, 1, d / 2)
        width = (self.heads + self.kv_heads) * self.size
        for index, layer in enumerate(self.layers):
            qkv = linear(self.normed(hidden, layer.before), layer.qkv, layer.qkv_bias)
            qk = qkv[:, :width].view(len(tokens), -1, self.size)  # (B, heads + kv heads, d)
            values = qkv[:, width:].view(len(tokens), -1, self.size)
            if layer.qk_norm is not None:
                qk = self.normed(qk) * layer.qk_norm
            pairs = torch.view_as_complex(qk.float().view(*qk.shape[:-1], -1, 2))
            turned = torch.view_as_real(pairs * rotation).flatten(-2)
            if not self.folds:
                turned[:, : self.heads] *= self.scale
            qk = turned.to(values.dtype)
            attended = self.cache.attend(index, qk[:, : self.heads], qk[:, self.heads :], values)
            hidden = torch.addmm(hidden, attended, layer.output)
            gate, up = linear(self.normed(hidden, layer.between), layer.gate_up).chunk(2, -1)
            hidden = torch.addmm(hidden, silu(gate).mul_(up), layer.down)
        self.cache.end()
        self.positions += 1
        return linear(self.normed(hidden, self.last), self.head, self.head_bias)

    def cut(self, index: int) -> Tensor:
        assert self.cache is not None, "rows are arranged before they branch"
        return self.cache.cut(index)

    def normed(self, values: Tensor, weight: Tensor | None = None) -> Tensor:
        return rms_norm(values, (values.shape[-1],), weight, self.eps)
