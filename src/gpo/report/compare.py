"""Two runs on the same questions: which critical steps are mended, which are new."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from gpo.errors import DataError
from gpo.report.kinds import Kinds
from gpo.report.reading import Reading, Searched
from gpo.report.show import LEVELS
from gpo.statistics import Interval, paired_difference


@dataclass(frozen=True, slots=True)
class Critical:
    """A kind of critical step on one question, with the trajectory in which its advantage is largest."""

    kind: str
    item: Searched
    trajectories: int  # in which it is critical

    @property
    def text(self) -> str:
        return self.item.steps[self.item.critical or 0]


@dataclass(frozen=True, slots=True)
class Changed:
    """A question that both runs have searched, and at least one found a critical step in."""

    problem_id: str
    question: str
    before: float  # success of its first rollouts, which no step was chosen by
    after: float
    mended: tuple[Critical, ...]  # critical before, and not any more
    new: tuple[Critical, ...]
    kept: tuple[Critical, ...]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Questions in common, the largest gain of success first."""

    before: str
    after: str
    rounds: bool  # whether both are rounds of one run
    difference: Interval  # of success in first rollouts, over all questions in common
    questions: int
    changed: tuple[Changed, ...]

    def count(self, what: str) -> int:
        """All steps that are `mended`, `new` or `kept`."""
        return sum(len(getattr(row, what)) for row in self.changed)


def compare(before: Reading, after: Reading, kinds: Kinds) -> Comparison:
    """Compare the critical steps of two runs. Steps are the same if they are of one kind on one question.

    Raises:
        DataError: the runs have no sampled question in common.
    """
    common = in_common(before, after)
    if not common:
        raise DataError(
            f"{before.files.path} and {after.files.path} have no sampled question in common. "
            "Compare runs of the same task, seed and number of problems."
        )
    old, new = critical_kinds(before.searched, kinds), critical_kinds(after.searched, kinds)
    changed = [
        Changed(
            problem_id=name,
            question=after.problems[name].question,
            before=fmean(before.success(name)),
            after=fmean(after.success(name)),
            mended=tuple(step for kind, step in old[name].items() if kind not in new[name]),
            new=tuple(step for kind, step in new[name].items() if kind not in old[name]),
            kept=tuple(step for kind, step in new[name].items() if kind in old[name]),
        )
        for name in common
        if name in old and name in new and (old[name] or new[name])
    ]
    return Comparison(
        before=f"{before.run} ({before.label})",
        after=f"{after.run} ({after.label})",
        rounds=before.files.path == after.files.path,
        difference=paired_difference([before.success(q) for q in common], [after.success(q) for q in common]),
        questions=len(common),
        changed=tuple(sorted(changed, key=lambda row: row.before - row.after)),
    )


def in_common(before: Reading, after: Reading) -> list[str]:
    """The ids of questions that both runs have graded first rollouts of."""
    return [
        name
        for name, problem in after.problems.items()
        if name in before.problems and before.problems[name].question == problem.question
        if before.success(name) and after.success(name)
    ]


def critical_kinds(searched: Sequence[Searched], kinds: Kinds) -> dict[str, dict[str, Critical]]:
    """For each searched question its critical steps by kind. A step that changes next to nothing is none."""
    found: dict[str, dict[str, Critical]] = {}
    for item in sorted(searched, key=lambda item: -abs(item.gain or 0.0)):
        of_question = found.setdefault(item.problem.id, {})
        if item.critical is not None and (item.gain is None or abs(item.gain) >= LEVELS[0]):
            kind = kinds(item.steps[item.critical])
            known = of_question.get(kind)
            of_question[kind] = Critical(kind, known.item if known else item, known.trajectories + 1 if known else 1)
    return found
