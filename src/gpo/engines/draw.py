"""Drawing tokens: counter-based uniform numbers and the inverse of the cumulative distribution."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gpo.errors import EngineError

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
MIX_2 = np.uint64(0x94D049BB133111EB)


def mix(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The output function of splitmix64: a bijection of 64-bit words in which every input bit moves every output bit.

    Source: Steele, Lea and Flood, "Fast splittable pseudorandom number generators" (2014).
    """
    words = (words ^ (words >> np.uint64(30))) * MIX_1
    words = (words ^ (words >> np.uint64(27))) * MIX_2
    return words ^ (words >> np.uint64(31))


def stream_keys(seeds: Sequence[int], continuations: Sequence[int]) -> NDArray[np.uint64]:
    """One 64-bit key (B,) for each pair of request seed (any integer, taken modulo 2^64) and continuation index."""
    seed = np.array([seed & 0xFFFFFFFFFFFFFFFF for seed in seeds], dtype=np.uint64)
    return mix(mix(seed + GOLDEN) + (np.array(continuations, dtype=np.uint64) + np.uint64(1)) * GOLDEN)


def uniforms(keys: NDArray[np.uint64], positions: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Uniform numbers (B,) in [0, 1), a pure function of key and token position.

    They are multiples of 2^-32, so that `u * total < total` holds exactly in float64.
    """
    return (mix(keys + (positions + np.uint64(1)) * GOLDEN) >> np.uint64(32)).astype(np.float64) * 2.0**-32


class NextToken:
    """Distributions of the next token after B sequences; any number of tokens is drawn from each.

    Temperature t samples from softmax(logits / t): the token is the first whose cumulative probability exceeds the
    uniform number, which a token of probability zero never is. Temperature 0 takes the maximum and states its
    log-probability at temperature 1.

    Raises:
        EngineError: the logits (B, V) hold NaN, +inf, or -inf only.
    """

    def __init__(self, logits: Tensor, temperature: float) -> None:
        scores = logits.float() if temperature in (0.0, 1.0) else logits.float() / temperature
        self.scores = scores - scores.amax(-1, keepdim=True)
        self.cumulative = self.scores.exp().cumsum(-1, dtype=torch.float64)
        self.total = self.cumulative[:, -1]
        check_finite(self.total)
        self.best = self.scores.argmax(-1) if temperature == 0.0 else None

    def draw(self, rows: NDArray[np.int64], uniform: NDArray[np.float64]) -> NDArray[np.int64]:
        """The tokens (M,) that uniform numbers (M,) draw from some of the rows (M,)."""
        where = torch.from_numpy(rows).to(self.total.device)
        if self.best is not None:
            return self.best[where].cpu().numpy()
        target = torch.from_numpy(uniform).to(self.total.device) * self.total[where]
        # torch.searchsorted, for many targets in one row: the first token whose cumulative probability is above.
        low = torch.zeros_like(where)
        high = torch.full_like(where, self.cumulative.shape[1] - 1)
        for _ in range(self.cumulative.shape[1].bit_length()):
            middle = (low + high) // 2
            below = self.cumulative[where, middle] <= target
            low, high = torch.where(below, middle + 1, low), torch.where(below, high, middle)
        return low.cpu().numpy()

    def draws(self, rows: Tensor, tokens: Tensor, uniform: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Whether uniform numbers (n, T) draw the tokens (T,) from rows (T,)."""
        rows, tokens = rows.to(self.total.device), tokens.to(self.total.device)
        if self.best is not None:
            return np.broadcast_to((self.best[rows] == tokens).cpu().numpy(), uniform.shape).copy()
        target = torch.from_numpy(uniform).to(self.total.device) * self.total[rows]
        before = torch.where(tokens > 0, self.cumulative[rows, (tokens - 1).clamp(min=0)], -1.0)
        return ((before <= target) & (target < self.cumulative[rows, tokens])).cpu().numpy()

    def logprobs(self, rows: Tensor, tokens: Tensor) -> Tensor:
        """Log-probabilities (M,) of tokens (M,) in rows (M,), in nats, float64."""
        rows, tokens = rows.to(self.total.device), tokens.to(self.total.device)
        return self.scores[rows, tokens].double() - self.total[rows].log()


def check_finite(totals: Tensor) -> None:
    """Raises: EngineError if sums over the vocabulary are no numbers, because logits are not."""
    if not bool(torch.isfinite(totals).all()):
        raise EngineError(
            "The model's logits hold NaN or infinity, expected finite numbers. Check the checkpoint (a diverged "
            "training run?) or load it in float32 or bfloat16 instead of float16."
        )
