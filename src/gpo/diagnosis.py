"""The critical step of one trajectory, in one call."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from math import nan

from gpo.errors import DataError
from gpo.estimators.monte_carlo import MonteCarlo
from gpo.rollout.sampler import Sampler, question_start
from gpo.rollout.segmenters import Newline, Segmenter, pieces
from gpo.statistics import Interval, exact
from gpo.types import Engine, Estimator, Problem, StepScores, Task, Trajectory


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """One trajectory and what a search says of it."""

    trajectory: Trajectory
    scores: StepScores
    steps: tuple[str, ...]  # (K,) the text of each step
    fresh: tuple[Interval, Interval] | None = (
        None  # values before and after the critical step, sampled after its choice
    )

    def __str__(self) -> str:
        """A line for each step: the success probability before it, the critical step marked, the text.

        The last line has the values around the critical step by rollouts that had no part in its choice.
        """
        lines = []
        for k, text in enumerate(self.steps):
            mark = "->" if k == self.scores.critical_step else "  "
            lines.append(f"{self.scores.values[k]:5.2f} {mark} {text.strip()}")
        lines.append(f"{self.scores.values[-1]:5.2f}    ({self.trajectory.score.verdict})")
        return "\n".join([*lines, *([self.remark] if self.fresh else [])])

    @property
    def remark(self) -> str:
        """The values around the critical step by fresh rollouts; empty without any."""
        if self.fresh is None:
            return ""
        before, after = (f"{i.estimate:.2f} [{i.lower:.2f}, {i.upper:.2f}]" for i in self.fresh)
        return f"By {self.fresh[0].n} fresh rollouts the critical step leads from {before} to {after}."


def diagnose(
    problem: Problem,
    task: Task,
    engine: Engine,
    estimator: Estimator | None = None,
    *,
    seed: int = 0,
    segmenter: Segmenter | None = None,
    temperature: float = 1.0,
    max_tokens: int = 512,
    fresh: int = 16,
) -> Diagnosis:
    """Sample one trajectory of a problem and find its critical step, by default with the paper's Monte Carlo search.

    Args:
        segmenter: None takes lines as steps.
        max_tokens: of a response.
        fresh: rollouts from each side of the critical step once it is chosen, because the largest of several noisy
            advantages is too large; 0 samples none.

    Raises:
        DataError: the prompt leaves no room for a response.
    """
    sample = Sampler(
        engine,
        task,
        {problem.id: problem},
        segmenter=segmenter or Newline(),
        temperature=temperature,
        max_tokens=max_tokens,
        seed=seed,
        logprobs=True,  # some searches read them
    )
    [group] = sample([question_start(problem, task, engine.tokenizer)], 1)
    if not group.trajectories:
        raise DataError(f"The prompt of problem {problem.id!r} leaves no room for a response; take a shorter one.")
    [trajectory] = group.trajectories
    [scores] = (estimator or MonteCarlo())([trajectory], sample)
    texts = pieces(trajectory.response_ids, engine.tokenizer)
    steps = tuple("".join(texts[begin:end]) for begin, end in pairwise(trajectory.boundaries))
    chosen = scores.critical_step
    return Diagnosis(
        trajectory, scores, steps, _fresh(trajectory, chosen, sample, fresh) if chosen is not None and fresh else None
    )


def _fresh(trajectory: Trajectory, step: int, sample: Sampler, n: int) -> tuple[Interval, Interval]:
    """The values before and after a step, with 95% intervals; that of the last boundary is the observed reward."""
    last = len(trajectory.step_ends)
    groups = sample([trajectory.prefix(boundary) for boundary in (step, step + 1) if boundary < last], n)
    rewards = [[t.score.value for t in group.trajectories if t.score.value is not None] for group in groups]
    values = [exact(sum(each), len(each)) for each in rewards]
    if len(values) < 2:
        reward = nan if trajectory.score.value is None else trajectory.score.value
        values.append(Interval(reward, reward, reward, 1))
    return values[0], values[1]
