"""Trajectories of the toy engine and their exact values, for the tests of the estimators."""

from collections.abc import Sequence

import numpy as np

from gpo.contracts import Sample
from gpo.rollout.prompting import question_start
from gpo.rollout.sampler import Sampler
from gpo.toy import ChainEngine, ChainTask, Process
from gpo.types import Completion, Group, Score, Start, Trajectory

TASK = ChainTask(size=64)
PROBLEMS = {problem.id: problem for problem in TASK.problems("train")}


class Recorder:
    """A `Sample` that notes its calls: the starts of each, and n."""

    def __init__(self, sample: Sample) -> None:
        self.sample, self.starts, self.n = sample, [], []

    @property
    def left(self) -> int | None:
        return self.sample.left

    @property
    def calls(self) -> list[tuple[int, int]]:
        return [(len(starts), n) for starts, n in zip(self.starts, self.n, strict=True)]

    def __call__(self, starts: Sequence[Start], n: int) -> list[Group]:
        self.starts.append(list(starts))
        self.n.append(n)
        return self.sample(starts, n)


class Unused:
    """A `Sample` for searches that sample nothing."""

    left = None

    def __call__(self, starts: Sequence[Start], n: int) -> list[Group]:
        raise AssertionError(f"{len(starts)} rollouts of {n}; expected none")


class Planted:
    """A `Sample` that gives behind so many tokens the planted share of right rollouts, and notes where it was asked."""

    left = None

    def __init__(self, shares: Sequence[float]) -> None:
        self.shares, self.asked = shares, []

    def __call__(self, starts: Sequence[Start], n: int) -> list[Group]:
        self.asked += [len(start.prefix_ids) for start in starts]
        return [Group(start, tuple(self.rollout(start, i, n) for i in range(n))) for start in starts]

    def rollout(self, start: Start, i: int, n: int) -> Trajectory:
        kept = len(start.prefix_ids)
        score = Score(1.0, "right") if i < n * self.shares[kept] else Score(0.0, "wrong")
        return Trajectory(f"{kept}:{i}", start, Completion((9,), "", "stop"), score, (kept + 1,))


def make_sampler(engine: ChainEngine, stream: str = "search", seed: int = 0, **settings) -> Sampler:
    return Sampler(engine=engine, task=TASK, problems=PROBLEMS, stream=stream, seed=seed, **settings)


def first_rollouts(engine: ChainEngine, n: int, seed: int = 0, **settings) -> list[Trajectory]:
    """n trajectories of every process."""
    starts = [question_start(PROBLEMS[str(i)], TASK, engine.tokenizer) for i in range(len(engine.processes))]
    groups = make_sampler(engine, "rollout", seed, **settings)(starts, n)
    return [trajectory for group in groups for trajectory in group.trajectories]


def exact_values(engine: ChainEngine, trajectory: Trajectory) -> np.ndarray:
    """(K+1,) the value at each boundary."""
    return np.array([engine.value(trajectory.prefix(k).token_ids) for k in range(len(trajectory.boundaries))])


def mistake_chain(errors: Sequence[float]) -> Process:
    """A chain that is right if and only if no decision is "b"; decision k is "b" with probability errors[k]."""
    return Process(
        probabilities=tuple(((1 - error, error), (0.5, 0.5)) for error in errors),
        successors=tuple(((0, 1), (1, 1)) for _ in errors),
        right=(True, False),
    )
