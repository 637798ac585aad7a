"""The decoder of the reasoner: a Qwen3 of transformers, and the same written out so that it compiles well."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CONTEXT = 1024  # tokens


@dataclass(frozen=True)
class Shape:
    """The decoder's sizes; a Qwen3 configuration."""

    vocabulary: int = 1024
    width: int = 128
    layers: int = 5
    heads: int = 4
    head_size: int = 32
    hidden: int = 256
    context: int = CONTEXT
    rope_theta: float = 10000.0
    epsilon: float = 1e-6


def library_model(shape: Shape) -> Any:
    """An untrained transformers model of this shape, in float32."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        head_dim=shape.head_size,
        intermediate_size=shape.hidden,
        max_position_embeddings=shape.context,
        rope_parameters={"rope_type": "default", "rope_theta": shape.rope_theta},
        rms_norm_eps=shape.epsilon,
        tie_word_embeddings=True,
        use_cache=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=3,
    )
    return Qwen3ForCausalLM(config)


class Decoder(nn.Module):
    """The library model's parameters with a forward pass that compiles well.

    `logits(ids)` equals the library's for the same weights (a test compares them).
    """

    def __init__(self, model: Any, shape: Shape, dtype: torch.dtype = torch.bfloat16) -> None:
        super().__init__()
        self.model, self.shape, self.dtype = model, shape, dtype
        half = torch.arange(0, shape.head_size, 2).float() / shape.head_size
        angles = torch.arange(shape.context).float()[:, None] / shape.rope_theta**half
        angles = torch.cat([angles, angles], dim=-1)
        self.cos, self.sin = angles.cos().to(dtype), angles.sin().to(dtype)

    def norm(self, x: Tensor, weight: Tensor) -> Tensor:
        wide = x.float()
        scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.shape.epsilon)
        return (wide * scale * weight).to(x.dtype)

    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        first, second = x.chunk(2, dim=-1)
        return x * cos + torch.cat([-second, first], dim=-1) * sin

    def logits(self, ids: Tensor) -> Tensor:
        """(B, T) token ids -> (B, T, vocabulary)."""
        batch, length = ids.shape
        shape, dtype = self.shape, self.dtype
        cos, sin = self.cos[:length], self.sin[:length]
        later = torch.ones(length, length, dtype=torch.bool).triu(1)
        embedding = self.model.model.embed_tokens.weight
        x = F.embedding(ids, embedding).to(dtype)
        for layer in self.model.model.layers:
            attention, mlp = layer.self_attn, layer.mlp
            h = self.norm(x, layer.input_layernorm.weight)
            qkv = torch.cat([attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight]).to(dtype)
            q, k, v = (h @ qkv.t()).view(batch, length, 3 * shape.heads, -1).transpose(1, 2).chunk(3, dim=1)
            q = self.rotate(self.norm(q, attention.q_norm.weight), cos, sin)
            k = self.rotate(self.norm(k, attention.k_norm.weight), cos, sin)
            scores = (q @ k.transpose(-1, -2)) * shape.head_size**-0.5
            weights = torch.softmax(scores.float().masked_fill(later, float("-inf")), dim=-1).to(dtype)
            mixed = (weights @ v).transpose(1, 2).reshape(batch, length, -1)
            x = x + mixed @ attention.o_proj.weight.to(dtype).t()
            h = self.norm(x, layer.post_attention_layernorm.weight)
            both = torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight]).to(dtype)
            gate, up = (h @ both.t()).chunk(2, dim=-1)
            x = x + (F.silu(gate) * up) @ mlp.down_proj.weight.to(dtype).t()
        logits: Tensor = self.norm(x, self.model.model.norm.weight) @ embedding.to(dtype).t()
        return logits

    def forward(self, ids: Tensor, weights: Tensor) -> Tensor:
        """The weighted cross-entropy summed over tokens; `weights` (B, T) belongs to the predicted token."""
        logits = self.logits(ids)[:, :-1].float()
        losses = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
        return (losses * weights[:, 1:].flatten()).sum()
