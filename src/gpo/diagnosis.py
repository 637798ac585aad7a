"""The critical step of one trajectory, in one call."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from gpo.errors import DataError
from gpo.estimators.monte_carlo import MonteCarlo
from gpo.sampling import Sampler, question_start
from gpo.segment import Newline, Segmenter, pieces
from gpo.types import Engine, Estimator, Problem, StepScores, Task, Trajectory


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """One trajectory and what a search says of it."""

    trajectory: Trajectory
    scores: StepScores
    steps: tuple[str, ...]  # (K,) the text of each step

    def __str__(self) -> str:
        """A line for each step: the success probability before it, the critical step marked, the text."""
        lines = []
        for k, text in enumerate(self.steps):
            mark = "->" if k == self.scores.critical_step else "  "
            lines.append(f"{self.scores.values[k]:5.2f} {mark} {text.strip()}")
        return "\n".join([*lines, f"{self.scores.values[-1]:5.2f}    ({self.trajectory.score.verdict})"])


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
) -> Diagnosis:
    """Sample one trajectory of a problem and find its critical step, by default with the paper's Monte Carlo search.

    Args:
        segmenter: None takes lines as steps.
        max_tokens: of a response.

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
    return Diagnosis(trajectory, scores, steps)
