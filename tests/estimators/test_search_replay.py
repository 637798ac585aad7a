"""The process that `benchmarks/search_replay.py` replays has the values it says; its bound is the formula's."""

from math import log
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpo.estimators.monte_carlo import MonteCarlo
from gpo.types import Completion, Problem, Score, Start, Trajectory


@pytest.fixture
def replay(monkeypatch: pytest.MonkeyPatch) -> Any:
    pytest.importorskip("torch")
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    import search_replay

    return search_replay


def row(replay: Any, follow: tuple[float, ...], right: tuple[int, ...], reward: float, name: str = "q") -> Any:
    """Steps of one token; 4 rollouts left in each, `right` of them right, with 10, 5, ... tokens."""
    steps = len(follow)
    trajectory = Trajectory(
        id=f"t:{name}",
        start=Start(name, (1, 2)),
        completion=Completion(tuple(range(5, 5 + steps)), "", "stop", tuple(log(p) if p else -1e9 for p in follow)),
        score=Score(reward, "right" if reward else "wrong"),
        step_ends=tuple(range(1, steps + 1)),
    )
    counts = (4,) * steps
    return replay.Valued(Problem(name, "?", "!"), trajectory, counts, counts, right, (10.0, 5.0)[:steps], counts, right)


def test_rollouts_have_the_values_of_the_recursion(replay: Any) -> None:
    """V_1 = .8 x 0 + .2 x 1 = .2 and V_0 = .5 x .2 + .5 x .25 = .225."""
    one = row(replay, (0.5, 0.8), (1, 4), 0.0)
    assert one.values.tolist() == pytest.approx([0.225, 0.2, 0.0])
    sample = replay.Replay([one])
    [scores] = MonteCarlo(rollouts=20_000)([one.trajectory], sample)
    assert scores.values == pytest.approx((0.225, 0.2, 0.0), abs=0.012)
    # From boundary 0: half leave at once with 10 tokens, then .2 of the rest with 1 + 5, the others have both tokens.
    # From boundary 1: .2 leave with 5 tokens, the others have 1.
    assert sample.tokens["t:q"] / 20_000 == pytest.approx(5 + 0.5 * (0.2 * 6 + 0.8 * 2) + 0.2 * 5 + 0.8, abs=0.06)


def test_shared_paths_have_the_same_values(replay: Any) -> None:
    one = row(replay, (0.5, 0.8), (1, 4), 0.0)
    [scores] = MonteCarlo(rollouts=20_000, share_path=True)([one.trajectory], replay.Replay([one], seed=1))
    assert scores.values == pytest.approx((0.225, 0.2, 0.0), abs=0.012)
    assert scores.counts[1] == pytest.approx(30_000, rel=0.02)


def test_two_trajectories_of_a_question_are_never_together(replay: Any) -> None:
    rows = [row(replay, (0.5, 0.8), (1, 4), 0.0, name) for name in ("a", "b", "a", "c", "a")]
    parts = replay.batches(rows)
    assert [[r.problem.id for r in part] for part in parts] == [["a", "b", "c"], ["a"], ["a"]]


def test_the_bound_of_two_independent_values(replay: Any) -> None:
    """Steps that are never repeated: D = A_1 - A_0 = 1 - 2 V_1 + V_0, each rollout says something of one value only.

    With 10 and 5 tokens a rollout Var(D) T is (sqrt(1 x .25 x 10) + sqrt(4 x .25 x 5))^2 at best, and D is 1/2.
    """
    one = row(replay, (0.0, 0.0), (2, 2), 1.0)
    effect = replay.told_which_two(one, 1)
    assert effect == pytest.approx(0.25 / (2.5**0.5 + 5**0.5) ** 2, rel=1e-3)


def test_tokens_go_where_they_help(replay: Any) -> None:
    """One trajectory that nothing can help and one that any token decides: 10 tokens each are 20 for the second."""
    effects = np.array([1e-12, 0.1])
    hits = replay.best_spending(effects, 10.0)
    assert hits == pytest.approx((0.5 + replay.norm.cdf((20 * 0.1) ** 0.5)) / 2, abs=0.003)
    assert replay.best_spending(np.array([np.inf]), 1.0) == 1.0
