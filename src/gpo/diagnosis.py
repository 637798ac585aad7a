"""The critical step of one trajectory, in one call."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from math import ceil, floor, isnan, nan
from numbers import Integral
from typing import Any

from scipy import stats

from gpo.config.check import check_component, check_instance
from gpo.config.components import Spec
from gpo.contracts import Engine, Estimator, Sample, Task
from gpo.errors import ConfigError, DataError
from gpo.estimators.adaptive import Adaptive
from gpo.report.clean import visible
from gpo.rollout.pace import Paced
from gpo.rollout.sampler import Sampler, question_start
from gpo.rollout.segmenters import Newline, Segmenter, pieces
from gpo.statistics import Interval, exact
from gpo.types import Problem, Score, StepScores, Trajectory

OnSample = Callable[[str, int, int], None]
"""Gets what is sampled for, and the rollouts and tokens of each piece; 0 and 0 as it begins."""

CHANCE = 0.05  # of a step that changes nothing to be confirmed


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """One trajectory and what a search says of it."""

    trajectory: Trajectory
    scores: StepScores
    steps: tuple[str, ...]  # (K,) the text of each step
    fresh: tuple[Interval, Interval] | None = None  # values around the critical step, sampled after its choice

    @property
    def confirmed(self) -> bool | None:
        """Whether fresh rollouts bear out the critical step; None where there are none.

        Rule: Fisher's exact test between the fresh rollouts from before and from after the step says at 5% that the
        success probability changes, in the direction in which the search saw it change (one-sided; two-sided where the
        search has no values). The reward after the last step is known: it counts as that many equal rollouts.
        Fractional rewards are rounded so that the difference shrinks.
        """
        step = self.scores.critical_step
        if step is None or self.fresh is None or any(isnan(each.estimate) for each in self.fresh):
            return None
        before, after = self.fresh
        trials = before.n, before.n if step == len(self.steps) - 1 else after.n
        change, seen = after.estimate - before.estimate, self.scores.advantages[step]
        if change * seen < 0:
            return False
        sides = 1 if change * seen > 0 else 2
        (low, low_n), (high, high_n) = sorted(zip((before.estimate, after.estimate), trials, strict=True))
        least, most = floor(high * high_n + 1e-9), ceil(low * low_n - 1e-9)
        table = [[least, high_n - least], [most, low_n - most]]
        return bool(stats.fisher_exact(table, alternative="greater").pvalue <= CHANCE / sides)

    def __str__(self) -> str:
        """A line for each step: the success probability before it, the critical step marked, the text.

        The mark is "->" for a step that is `confirmed`, and "?" for a mere choice of the search. The last line has the
        values around it by rollouts that had no part in its choice. What steers a terminal is spelled out.
        """
        lines = []
        for k, text in enumerate(self.steps):
            mark = "  " if k != self.scores.critical_step else "->" if self.confirmed else " ?"
            lines.append(f"{self.scores.values[k]:5.2f} {mark} {' '.join(visible(text).split())}")
        lines.append(f"{self.scores.values[-1]:5.2f}    ({outcome(self.trajectory)})")
        return "\n".join([*lines, *([self.remark] if self.remark else [])])

    @property
    def remark(self) -> str:
        """What fresh rollouts say of the critical step; empty without any."""
        if self.fresh is None:
            return ""
        before, after = (f"{i.estimate:.2f} [{i.lower:.2f}, {i.upper:.2f}]" for i in self.fresh)
        what = f"By {self.fresh[0].n} fresh rollouts"
        if self.confirmed:
            return f"{what} the critical step leads from {before} to {after}: confirmed."
        return f"Not confirmed: {what.lower()} the step that the search chose (?) leads from {before} to {after}."


def outcome(trajectory: Trajectory) -> str:
    """The verdict, or "cut off" for a response that ran out of tokens before it came to an answer."""
    score = trajectory.score
    unanswered = score.answer is None and score.verdict in ("wrong", "ungradable")
    return "cut off" if unanswered and trajectory.completion.finish_reason == "length" else score.verdict


def default_estimator(score: Score) -> Adaptive:
    """The search of `diagnose` and of `gpo locate --question`, for a trajectory with this score.

    What is asked of a right trajectory is which step won it, the largest rise of the success probability (the paper's
    rule), and of any other which step lost it, the largest drop.
    """
    return Adaptive(rule="advantage" if score.right else "drop")


def diagnose(
    problem: Problem,
    task: Task,
    engine: Engine,
    estimator: Estimator | Spec | str | None = None,
    *,
    seed: int = 0,
    segmenter: Segmenter | Spec | str | None = None,
    temperature: float = 1.0,
    max_tokens: int = 512,
    fresh: int = 16,
    on_sample: OnSample | None = None,
) -> Diagnosis:
    """Sample one trajectory of a problem and find its critical step.

    Args:
        estimator: an instance or a name; None takes `default_estimator`.
        segmenter: likewise; None takes lines as steps.
        max_tokens: of a response.
        fresh: rollouts from each side of the critical step once it is chosen, because the largest of several noisy
            advantages is too large; 0 samples none, and then nothing is confirmed.
        on_sample: called for "solution", "search" and "check".

    Raises:
        ConfigError: there is no such estimator or segmenter, something else is none, or a number is out of its range.
        DataError: the prompt leaves no room for a response.
    """
    check_instance("engine", engine)
    if not isinstance(problem, Problem):
        raise ConfigError(f"The problem is {problem!r}, expected a gpo.Problem such as those of task.problems('dev').")
    if not isinstance(fresh, Integral) or fresh < 0:
        raise ConfigError(f"fresh is {fresh!r}, expected a whole number of rollouts of at least 0.")
    search: Estimator | None = _made("estimator", estimator, model=engine.model_ref.source)
    cut: Segmenter | None = _made("segmenter", segmenter)
    part = ""

    def tell(rollouts: int, tokens: int) -> None:
        if on_sample is not None:
            on_sample(part, rollouts, tokens)

    sampler = Sampler(
        engine,
        task,
        {problem.id: problem},
        segmenter=cut or Newline(),
        temperature=temperature,
        max_tokens=max_tokens,
        seed=seed,
        logprobs=True,  # some searches read them
    )
    sample = Paced(sampler, tell)
    part = "solution"
    tell(0, 0)
    [group] = sample([question_start(problem, task, engine.tokenizer)], 1)
    if not group.trajectories:
        raise DataError(f"The prompt of problem {problem.id!r} leaves no room for a response; take a shorter one.")
    [trajectory] = group.trajectories
    part = "search"
    tell(0, 0)
    [scores] = (search or default_estimator(trajectory.score))([trajectory], sample)
    texts = pieces(trajectory.response_ids, engine.tokenizer)
    steps = tuple("".join(texts[begin:end]) for begin, end in pairwise(trajectory.boundaries))
    if scores.critical_step is None or not fresh:
        return Diagnosis(trajectory, scores, steps)
    part = "check"
    tell(0, 0)
    return Diagnosis(trajectory, scores, steps, _fresh(trajectory, scores.critical_step, sample, fresh))


def _made(kind: str, given: Any, **more: Any) -> Any:
    """What was given by its name; an instance is not copied."""
    if isinstance(given, str | Spec):
        return check_component(kind, given, **more)
    if given is not None:
        check_instance(kind, given)
    return given


def _fresh(trajectory: Trajectory, step: int, sample: Sample, n: int) -> tuple[Interval, Interval]:
    """The values before and after a step, with 95% intervals; that of the last boundary is the observed reward."""
    last = len(trajectory.step_ends)
    groups = sample([trajectory.prefix(boundary) for boundary in (step, step + 1) if boundary < last], n)
    rewards = [[t.score.value for t in group.trajectories if t.score.value is not None] for group in groups]
    values = [exact(sum(each), len(each)) for each in rewards]
    if len(values) < 2:
        reward = nan if trajectory.score.value is None else trajectory.score.value
        values.append(Interval(reward, reward, reward, 1))
    return values[0], values[1]
