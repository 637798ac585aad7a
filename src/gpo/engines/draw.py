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
SMALL = 4096  # tokens of a vocabulary whose cumulative probabilities are worked out whole
BLOCK = 128


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
        self.scores = logits.float() if temperature in (0.0, 1.0) else logits.float() / temperature
        self.most = self.scores.amax(-1)
        weights = (self.scores - self.most.unsqueeze(-1)).exp_()
        self.sums: WholeSums | BlockSums = WholeSums(weights) if logits.shape[1] <= SMALL else BlockSums(weights)
        self.total = self.sums.total
        check_finite(self.total)
        self.best = self.scores.argmax(-1) if temperature == 0.0 else None

    def draw(self, rows: NDArray[np.int64], uniform: NDArray[np.float64]) -> NDArray[np.int64]:
        """The tokens (M,) that uniform numbers (M,) draw from some of the rows (M,)."""
        where = torch.from_numpy(rows).to(self.total.device)
        if self.best is not None:
            return self.best[where].cpu().numpy()
        target = torch.from_numpy(uniform).to(self.total.device) * self.total[where]
        return self.sums.first_above(where, target).cpu().numpy()

    def draws(self, rows: Tensor, tokens: Tensor, uniform: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Whether uniform numbers (n, T) draw the tokens (T,) from rows (T,)."""
        rows, tokens = rows.to(self.total.device), tokens.to(self.total.device)
        if self.best is not None:
            return np.broadcast_to((self.best[rows] == tokens).cpu().numpy(), uniform.shape).copy()
        target = torch.from_numpy(uniform).to(self.total.device) * self.total[rows]
        before, behind = self.sums.around(rows, tokens)
        return ((before <= target) & (target < behind)).cpu().numpy()

    def logprobs(self, rows: Tensor, tokens: Tensor) -> Tensor:
        """Log-probabilities (M,) of tokens (M,) in rows (M,), in nats, float64."""
        rows, tokens = rows.to(self.total.device), tokens.to(self.total.device)
        return (self.scores[rows, tokens] - self.most[rows]).double() - self.total[rows].log()


class WholeSums:
    """Weights (B, V) added up from the first token on, in float64."""

    def __init__(self, weights: Tensor) -> None:
        self.cumulative = weights.cumsum(-1, dtype=torch.float64)
        self.total = self.cumulative[:, -1]

    def first_above(self, rows: Tensor, target: Tensor) -> Tensor:
        """For each of M rows the first token at which the sum is above a number (M,)."""
        # torch.searchsorted, for many targets in one row.
        low = torch.zeros_like(rows)
        high = torch.full_like(rows, self.cumulative.shape[1] - 1)
        for _ in range(self.cumulative.shape[1].bit_length()):
            middle = (low + high) // 2
            below = self.cumulative[rows, middle] <= target
            low, high = torch.where(below, middle + 1, low), torch.where(below, high, middle)
        return low

    def around(self, rows: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """The sums (T,) before tokens (T,) of rows (T,), and with them; before the first it is -1."""
        before = torch.where(tokens > 0, self.cumulative[rows, (tokens - 1).clamp(min=0)], -1.0)
        return before, self.cumulative[rows, tokens]


class BlockSums:
    """The same for large vocabularies: sums of blocks of tokens, and of the tokens of a block where one is asked for.

    A pass in float64 over a hundred thousand tokens takes longer than all else that is done with the logits.
    """

    def __init__(self, weights: Tensor) -> None:
        self.weights, size = weights, weights.shape[1]
        whole = size - size % BLOCK
        parts = weights[:, :whole].view(len(weights), -1, BLOCK).sum(-1, dtype=torch.float64)
        rest = weights[:, whole:].sum(-1, keepdim=True, dtype=torch.float64)
        self.blocks = torch.cat((torch.zeros_like(rest), parts, rest), -1).cumsum(-1)  # (B, blocks + 1), from 0 on
        self.total = self.blocks[:, -1]

    def first_above(self, rows: Tensor, target: Tensor) -> Tensor:
        """For each of M rows the first token at which the sum is above a number (M,)."""
        block = torch.searchsorted(self.blocks[rows], target.unsqueeze(-1), right=True).squeeze(-1) - 1
        sums = self.within(rows, block)
        above = torch.searchsorted(sums, target.unsqueeze(-1), right=True).squeeze(-1)
        # Sums of blocks and of their tokens round differently: never beyond the last token that has a weight.
        last = (sums < sums[:, -1:]).sum(-1)
        return block * BLOCK + torch.minimum(above, last)

    def around(self, rows: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """The sums (T,) before tokens (T,) of rows (T,), and with them; before the first it is -1."""
        block, place = tokens // BLOCK, (tokens % BLOCK).unsqueeze(-1)
        sums = self.within(rows, block)
        behind = sums.gather(-1, place).squeeze(-1)
        before = sums.gather(-1, (place - 1).clamp(min=0)).squeeze(-1)
        before = torch.where(place.squeeze(-1) > 0, before, self.blocks[rows, block])
        return torch.where(tokens > 0, before, -1.0), behind

    def within(self, rows: Tensor, block: Tensor) -> Tensor:
        """The sums (M, BLOCK) at the tokens of a block; behind the vocabulary's end they stay as they are."""
        tokens = block.unsqueeze(-1) * BLOCK + torch.arange(BLOCK, device=block.device)
        size = self.weights.shape[1]
        found = self.weights[rows.unsqueeze(-1), tokens.clamp(max=size - 1)].masked_fill(tokens >= size, 0.0)
        return self.blocks[rows, block].unsqueeze(-1) + found.cumsum(-1, dtype=torch.float64)


def check_finite(totals: Tensor) -> None:
    """Raises: EngineError if sums over the vocabulary are no numbers, because logits are not."""
    if not bool(torch.isfinite(totals).all()):
        raise EngineError(
            "The model's logits hold NaN or infinity, expected finite numbers. Check the checkpoint (a diverged "
            "training run?) or load it in float32 or bfloat16 instead of float16."
        )
