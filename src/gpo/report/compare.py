"""Two runs on the same questions: which critical steps are mended, which are new."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gpo.directory import RunDirectory
from gpo.errors import DataError
from gpo.report.looks import Look, load_looks
from gpo.statistics import Interval, paired_difference


@dataclass(frozen=True, slots=True)
class Critical:
    """A critical step, found in one or more trajectories of a question."""

    kind: str
    text: str
    look: Look
    trajectories: int


@dataclass(frozen=True, slots=True)
class Changed:
    """A question that both runs searched."""

    question: str
    problem_id: str
    before: float  # success of its first rollouts, which no step was chosen by
    after: float
    mended: tuple[Critical, ...]  # critical before, and not any more
    new: tuple[Critical, ...]
    kept: tuple[Critical, ...]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Questions in common, the largest change of success first."""

    before: str
    after: str
    difference: Interval  # of success in first rollouts, over all questions in common
    questions: int
    changed: tuple[Changed, ...]


def compare(before: RunDirectory, after: RunDirectory, looks: Sequence[Look]) -> Comparison:
    """Compare the critical steps of `before` with those of `after`, whose looks are given.

    Steps are the same if they are of one kind on one question.

    Raises:
        DataError: the runs have no question in common.
    """
    problems = {p.id: p for p in before.problems("train") or []}
    same = {
        p.id: p for p in after.problems("train") or [] if p.id in problems and problems[p.id].question == p.question
    }
    first, second = _scores(before), _scores(after)
    common = [name for name in same if name in first and name in second]
    if not common:
        raise DataError(
            f"{before.path} and {after.path} have no sampled question in common. "
            "Compare runs of the same task and seed."
        )
    old, new = _critical(load_looks(before)), _critical(looks)
    changed = []
    for name in common:
        if name in old and name in new:
            old_kinds, new_kinds = old[name], new[name]
            changed.append(
                Changed(
                    question=same[name].question,
                    problem_id=name,
                    before=_mean(first[name]),
                    after=_mean(second[name]),
                    mended=tuple(step for kind, step in old_kinds.items() if kind not in new_kinds),
                    new=tuple(step for kind, step in new_kinds.items() if kind not in old_kinds),
                    kept=tuple(step for kind, step in new_kinds.items() if kind in old_kinds),
                )
            )
    return Comparison(
        before=before.path.name,
        after=after.path.name,
        difference=paired_difference([first[name] for name in common], [second[name] for name in common]),
        questions=len(common),
        changed=tuple(sorted(changed, key=lambda row: row.before - row.after)),
    )


def _scores(files: RunDirectory) -> dict[str, list[float | None]]:
    return {group.start.problem_id: [t.score.value for t in group.trajectories] for group in files.rollouts.read()}


def _mean(values: Sequence[float | None]) -> float:
    graded = [value for value in values if value is not None]
    return sum(graded) / len(graded) if graded else float("nan")


def _critical(looks: Sequence[Look]) -> dict[str, dict[str, Critical]]:
    """For each question its critical steps by kind; the text is that of the largest advantage."""
    found: dict[str, dict[str, Critical]] = {}
    for look in looks:
        step = look.scores.critical_step
        if step is None:
            continue
        kinds = found.setdefault(look.problem.id, {})
        known = kinds.get(look.kinds[step])
        kinds[look.kinds[step]] = Critical(
            kind=look.kinds[step],
            text=known.text if known else look.steps[step],
            look=known.look if known else look,
            trajectories=known.trajectories + 1 if known else 1,
        )
    return found
