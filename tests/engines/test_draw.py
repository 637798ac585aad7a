"""Counter-based uniforms and the inverse of the cumulative distribution."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import chisquare, kstest

from gpo.engines import draw
from gpo.engines.draw import GOLDEN, NextToken, mix, stream_keys, uniforms
from gpo.errors import EngineError


def test_mix_is_the_published_generator() -> None:
    """The first outputs of splitmix64 seeded with 1234567, as in the reference implementation's test vector."""
    state = np.array([1234567], dtype=np.uint64) + np.arange(1, 4, dtype=np.uint64) * GOLDEN
    assert mix(state).tolist() == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_uniforms_are_uniform_along_every_axis() -> None:
    seeds, continuations = list(range(4000)), [0] * 4000
    by_seed = uniforms(stream_keys(seeds, continuations), np.zeros(4000, dtype=np.uint64))
    by_continuation = uniforms(stream_keys(continuations, seeds), np.zeros(4000, dtype=np.uint64))
    by_position = uniforms(stream_keys([5], [0]), np.arange(4000, dtype=np.uint64))
    for sample in (by_seed, by_continuation, by_position):
        assert kstest(sample, "uniform").pvalue > 0.01
        assert abs(np.corrcoef(sample[:-1], sample[1:])[0, 1]) < 0.05
    assert len({*by_seed, *by_continuation, *by_position}) > 11_990


def test_any_integer_is_a_seed() -> None:
    keys = stream_keys([-1, 2**64 - 1, 2**70, 0], [0, 0, 0, 0])
    assert keys[0] == keys[1]
    assert keys[2] == keys[3] != keys[0]


def test_the_token_is_the_first_whose_cumulative_probability_exceeds_the_number() -> None:
    following = NextToken(torch.tensor([[0.0, 0.25, 0.0, 0.75, 0.0]]).log(), 1.0)
    numbers = np.array([0.0, 0.2499, 0.2501, 0.5, 1 - 2**-32])
    tokens = following.draw(np.zeros(5, dtype=np.int64), numbers)
    assert tokens.tolist() == [1, 1, 3, 3, 3]
    logprobs = following.logprobs(torch.zeros(5, dtype=torch.long), torch.from_numpy(tokens))
    assert logprobs.tolist() == pytest.approx([math.log(0.25)] * 2 + [math.log(0.75)] * 3)


@pytest.mark.parametrize("temperature", [0.0, 0.5, 1.0])
def test_many_draws_from_shared_rows_are_those_of_searchsorted(temperature: float) -> None:
    rng = np.random.default_rng(0)
    logits = torch.from_numpy(rng.normal(scale=3, size=(7, 33)))
    following = NextToken(logits, temperature)
    rows, numbers = rng.integers(7, size=2000), rng.random(2000)
    tokens = following.draw(rows, numbers)
    if temperature:
        sums = following.sums.cumulative[rows]
        assert tokens.tolist() == torch.searchsorted(
            sums, torch.from_numpy(numbers).unsqueeze(-1) * sums[:, -1:], right=True
        ).squeeze(-1).tolist()  # fmt: skip
    else:
        assert tokens.tolist() == logits.argmax(-1)[rows].tolist()
    for token in (0, 1, 32):
        said = following.draws(torch.from_numpy(rows), torch.full((2000,), token), numbers[None])
        assert said.tolist() == [(tokens == token).tolist()]


@pytest.mark.parametrize("size", [4097, 5000, 6016])
@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
def test_large_vocabularies_draw_as_small_ones(temperature: float, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    logits = torch.from_numpy(rng.normal(scale=5, size=(5, size)).astype(np.float32))
    logits[1, -200:] = logits[2, :300] = logits[3, 128:4000] = -math.inf
    logits[4] = 0.0  # sums are whole numbers, and some uniform numbers hit them
    rows, numbers = rng.integers(5, size=4000), rng.random(4000)
    numbers[:1000] = rng.integers(size, size=1000) / size
    numbers[-2:] = 0.0, 1 - 2**-32
    blocks = NextToken(logits, temperature)
    monkeypatch.setattr(draw, "SMALL", size)
    whole = NextToken(logits, temperature)
    assert (type(blocks.sums), type(whole.sums)) == (draw.BlockSums, draw.WholeSums)
    tokens = blocks.draw(rows, numbers)
    assert tokens.tolist() == whole.draw(rows, numbers).tolist()
    drawn = (torch.from_numpy(rows), torch.from_numpy(tokens))
    assert torch.allclose(blocks.logprobs(*drawn), whole.logprobs(*drawn), atol=1e-12)
    assert bool(torch.isfinite(blocks.logprobs(*drawn)).all())
    for other in (drawn[1], drawn[1] - 1, drawn[1] + 1, torch.zeros_like(drawn[1])):
        asked = (drawn[0], other.clamp(0, size - 1), numbers[None])
        assert blocks.draws(*asked).tolist() == whole.draws(*asked).tolist() == [(tokens == asked[1].numpy()).tolist()]


def test_temperature_divides_the_logits() -> None:
    n = 20_000
    following = NextToken(torch.tensor([[1.0, 0.0, -1.0]]), 0.5)
    tokens = torch.from_numpy(following.draw(np.zeros(n, dtype=np.int64), (np.arange(n) + 0.5) / n))
    expected = torch.tensor([2.0, 0.0, -2.0]).softmax(-1).double()
    counts = tokens.bincount(minlength=3).double()
    assert chisquare(counts.numpy(), (expected / expected.sum() * n).numpy()).pvalue > 0.99
    logprobs = following.logprobs(torch.zeros(3, dtype=torch.long), torch.arange(3))
    assert logprobs.tolist() == pytest.approx(expected.log().tolist(), abs=1e-6)


def test_greedy_takes_the_maximum_at_temperature_one() -> None:
    following = NextToken(torch.tensor([[0.0, 3.0, 1.0]]), 0.0)
    assert following.draw(np.array([0]), np.array([0.0])).tolist() == [1]
    logprob = following.logprobs(torch.tensor([0]), torch.tensor([1]))
    assert logprob.item() == pytest.approx(3 - math.log(1 + math.exp(3) + math.exp(1)))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_logits_that_are_no_numbers_are_refused(bad: float) -> None:
    for logits in ([[0.0, bad]], [[-math.inf, -math.inf]]):
        with pytest.raises(EngineError, match="NaN or infinity"):
            NextToken(torch.tensor(logits), 1.0)
