"""A run directory written by hand: a searched trajectory for each question, with values that a test chooses."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import isnan
from pathlib import Path

from gpo.storage.directory import RunDirectory
from gpo.storage.files import write_json
from gpo.types import Completion, Group, Problem, Score, Start, StepScores, Trajectory, Verdict

NAN = float("nan")


@dataclass
class Written:
    """A question with its first rollouts: the searched one, and others of which only the verdict matters."""

    question: str
    steps: Sequence[str]
    values: Sequence[float] = ()  # (K + 1,), () leaves it unsearched
    critical: int | None = None
    verdict: Verdict = "wrong"
    others: Sequence[Verdict] = ()
    task: str = ""
    search: dict[int, Sequence[tuple[str, Verdict]]] = field(default_factory=dict)  # continuations by boundary
    fresh: dict[int, Sequence[tuple[str, Verdict]]] = field(default_factory=dict)


def score(verdict: Verdict) -> Score:
    return Score({"right": 1.0, "failed": None}.get(verdict, 0.0), verdict, None if verdict == "failed" else "42")


def trajectory(start: Start, name: str, steps: Sequence[str], verdict: Verdict, first: int) -> Trajectory:
    """Two tokens for each step."""
    ids = tuple(range(first, first + 2 * len(steps)))
    ends = tuple(len(start.prefix_ids) + 2 * (k + 1) for k in range(len(steps)))
    return Trajectory(name, start, Completion(ids, "\n".join(steps), "stop"), score(verdict), ends)


def write_run(
    path: Path,
    questions: Sequence[Written],
    evaluated: bool = False,
    segmenter: str = "newline",
    searches: Sequence[tuple[str, int]] = (("gpo", 1),),
) -> Path:
    """A run whose `searches`, arms and rounds, all found the same."""
    files = RunDirectory(path)
    arms = {"plain": {"name": "none"}, "gpo": {"name": "monte_carlo"}}
    arms |= {arm: {"name": "monte_carlo"} for arm, _ in searches}
    config = {"task": {"name": "toy"}, "model": "m", "arms": arms, "budget": 4.0, "test_samples": 2}
    write_json(path / "config.json", {"gpo": "0", **config, "segmenter": {"name": segmenter}})
    problems = [Problem(f"p{i}", row.question, "42", {"subtask": row.task}) for i, row in enumerate(questions)]
    files.write_problems({"train": problems, "test": problems})
    groups, scores, resets = [], [], []
    for i, row in enumerate(questions):
        start = Start(f"p{i}", (i,))
        searched = trajectory(start, f"p{i}:0", row.steps, row.verdict, 1000)
        others = [trajectory(start, f"p{i}:{n}", ["x"], verdict, 5) for n, verdict in enumerate(row.others, 1)]
        groups.append(Group(start, (searched, *others)))
        if row.values:
            scores.append(scores_of(row, searched, rollouts(searched, row.search)))
            resets += rollouts(searched, row.fresh)
    files.rollouts.append(groups)
    for arm, number in searches:
        if number > 1:
            files.fresh(arm, number).append(groups)
        if scores:
            files.scores(arm, number).append(scores)
        if resets:
            files.resets(arm, number).append(resets)
    if evaluated:
        answers = [Group(group.start, (group.trajectories * 2)[:2]) for group in groups]
        files.evaluation("base").append(answers)
        files.evaluation("gpo").append(answers)
    return path


def rollouts(searched: Trajectory, of: dict[int, Sequence[tuple[str, Verdict]]]) -> tuple[Group, ...]:
    found = []
    for boundary, texts in of.items():
        start = searched.prefix(boundary)
        each = [trajectory(start, f"{boundary}/{n}", [text], verdict, 7) for n, (text, verdict) in enumerate(texts)]
        found.append(Group(start, tuple(each)))
    return tuple(found)


def scores_of(row: Written, searched: Trajectory, search: tuple[Group, ...]) -> StepScores:
    values = tuple(row.values)
    advantages = tuple(after - before for before, after in pairwise(values))
    lower, upper = (tuple(min(1.0, max(0.0, v + d)) for v in values) for d in (-0.1, 0.1))
    counts = tuple(0 if isnan(v) else 4 for v in values)
    return StepScores(searched.id, values, counts, lower, upper, advantages, row.critical, row.critical, 8, search)
