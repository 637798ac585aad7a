"""What a page shows of each trajectory, within a limit of bytes whatever the model wrote."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from math import isnan

from gpo.report.clean import clip, one_line
from gpo.report.pictures import Picture
from gpo.report.reading import Searched, success
from gpo.statistics import Interval
from gpo.types import Trajectory, Verdict

STEPS = 30  # of a trajectory, around its critical step
STEPS_SIZE = 5000  # bytes of their texts
QUESTION_SIZE = 1200
CONTINUATIONS = 2  # right ones, and as many that are not, from one prefix
CONTINUATION_SIZE = 400
LEVELS = (0.05, 0.25, 0.5)  # sizes of an advantage from which its colour is stronger
SIGNS: dict[Verdict, str] = {"right": "✓", "wrong": "✗", "ungradable": "?", "failed": "!"}


@dataclass(frozen=True, slots=True)
class Step:
    """A row. Values are at its upper and lower edge; between known boundaries they are drawn as a straight line."""

    number: int
    text: str
    tone: str  # "p1" to "p3" for a rise, "m1" to "m3" for a fall, "" else
    advantage: str  # with a sign that is not colour
    critical: bool
    told: bool  # whether the search has values at both edges
    band: str  # SVG path of the interval, in percent of the cell
    line: str
    value: str  # what the cell says in words


@dataclass(frozen=True, slots=True)
class Continuation:
    """How the model went on from a prefix."""

    sign: str
    verdict: Verdict
    answer: str
    text: str


@dataclass(frozen=True, slots=True)
class Prefix:
    """A boundary beside the critical step, with what was sampled from it."""

    title: str
    search: Interval  # the share of right ones among the rollouts that the step was chosen by
    fresh: Interval  # among those sampled after the choice
    continuations: tuple[Continuation, ...]


@dataclass(frozen=True, slots=True)
class Shown:
    """One trajectory as the page has it."""

    anchor: str  # the same in every report of the same run
    id: str
    task: str
    verdict: Verdict
    sign: str
    gain: float  # size of the advantage of the critical step; 0 without one
    headline: str  # which step is critical
    question: str
    pictures: tuple[Picture, ...]  # of the question
    brief: str
    answer: str
    reference: str
    start: str  # the value at the question
    steps: tuple[Step, ...]
    before: int  # steps left out above, and below
    after: int
    prefixes: tuple[Prefix, ...]


def anchor_of(item: Searched, key: str = "") -> str:
    """Where on the page the trajectory is, as the search with this key sees it."""
    name = f"{key} {item.trajectory.id}"
    return "t-" + blake2b(name.encode("utf-8", "backslashreplace"), digest_size=5).hexdigest()


def show(item: Searched, key: str = "", pictures: Sequence[Picture] = ()) -> Shown:
    """Make one trajectory fit to be shown, with the pictures of its question."""
    critical, trajectory = item.critical, item.trajectory
    headline = "no step stands out"
    if item.scores is None:
        headline = "not searched"
    elif critical is not None:
        headline = f"critical step {critical + 1} of {len(item.steps)}"
        headline += "" if item.gain is None else f", {signed(item.gain)}"
    steps = _steps(item)
    return Shown(
        anchor=anchor_of(item, key),
        id=one_line(trajectory.id, 120),
        task=one_line(item.problem.subtask, 60),
        verdict=trajectory.score.verdict,
        sign=SIGNS[trajectory.score.verdict],
        gain=round(abs(item.gain or 0.0), 3),
        headline=headline,
        question=clip(item.problem.question, QUESTION_SIZE),
        pictures=tuple(pictures),
        brief=one_line(item.problem.question, 110),
        answer=clip(trajectory.score.answer or "none", 300),
        reference=clip(item.problem.answer, 300),
        start="" if item.scores is None else _value(item, 0),
        steps=steps,
        before=steps[0].number - 1 if steps else 0,
        after=len(item.steps) - steps[-1].number if steps else 0,
        prefixes=_prefixes(item),
    )


def signed(advantage: float) -> str:
    """An advantage with a sign that needs no colour."""
    if isnan(advantage):
        return "?"
    arrow = "▲" if advantage >= LEVELS[0] else "▼" if advantage <= -LEVELS[0] else "·"
    return f"{arrow}\u00a0{round(advantage, 2) + 0.0:+.2f}".replace("-", "−")


def tone(advantage: float) -> str:
    """Direction and strength of an advantage, as the name of a colour."""
    level = sum(abs(advantage) >= size for size in LEVELS)
    return f"{'p' if advantage > 0 else 'm'}{level}" if level else ""


def level_lengths(lengths: Sequence[int], total: int) -> int:
    """The largest limit on each length with which their sum is at most `total`."""
    left, limit = total, total
    for i, length in enumerate(sorted(lengths)):
        limit = left // (len(lengths) - i)
        if length > limit:
            return limit
        left -= length
    return max(limit, *lengths, 1)


def _steps(item: Searched) -> tuple[Step, ...]:
    count = len(item.steps)
    first = max(0, min((item.critical or 0) - STEPS // 2, count - STEPS))
    shown = range(first, min(count, first + STEPS))
    limit = level_lengths([min(len(item.steps[k]), STEPS_SIZE) for k in shown], STEPS_SIZE)
    block_of = {k: block for block in item.blocks for k in range(*block)}
    return tuple(_step(item, k, block_of.get(k), limit) for k in shown)


def _step(item: Searched, k: int, block: tuple[int, int] | None, limit: int) -> Step:
    text = clip(item.steps[k].strip("\n"), limit)
    if block is None or item.scores is None:
        return Step(k + 1, text, "", "", k == item.critical, False, "", "", "")
    begin, end = block
    told = end == begin + 1
    scores = item.scores

    def at(row: Sequence[float], boundary: int) -> float:
        share = (boundary - begin) / (end - begin)
        return round(100 * (row[begin] + share * (row[end] - row[begin])), 1)

    value, lower, upper = ((at(row, k), at(row, k + 1)) for row in (scores.values, scores.lower, scores.upper))
    advantage = scores.values[end] - scores.values[begin]
    return Step(
        number=k + 1,
        text=text,
        tone=tone(advantage),
        advantage=signed(advantage) if told else f"{signed(advantage)} over steps {begin + 1} to {end}",
        critical=k == item.critical,
        told=told,
        band=f"M{lower[0]:g} 0L{upper[0]:g} 0L{upper[1]:g} 100L{lower[1]:g} 100Z",
        line=f"M{value[0]:g} 0L{value[1]:g} 100",
        value=f"after it {_value(item, k + 1)}" if not isnan(scores.values[k + 1]) else "not estimated",
    )


def _value(item: Searched, boundary: int) -> str:
    """Such as "0.75 [0.30, 0.95]"; the last value was observed."""
    assert item.scores is not None
    value = item.scores.values[boundary]
    if isnan(value):
        return "not estimated"
    if boundary == len(item.steps):
        return f"{value:.2f}, the reward"
    return f"{value:.2f} [{item.scores.lower[boundary]:.2f}, {item.scores.upper[boundary]:.2f}]"


def _prefixes(item: Searched) -> tuple[Prefix, ...]:
    if item.critical is None:
        return ()
    found = []
    for boundary, place in ((item.critical, "before"), (item.critical + 1, "after")):
        search, fresh = item.search.get(boundary, ()), item.fresh.get(boundary, ())
        if search or fresh:
            title = f"{place.capitalize()} the critical step"
            found.append(Prefix(title, success(search), success(fresh), _examples([*fresh, *search])))
    return tuple(found)


def _examples(rollouts: Sequence[Trajectory]) -> tuple[Continuation, ...]:
    """Different ones, some right, some not."""
    different = list({t.completion.text: t for t in reversed(rollouts)}.values())[::-1]
    chosen = [t for right in (True, False) for t in [t for t in different if t.score.right is right][:CONTINUATIONS]]
    return tuple(
        Continuation(
            SIGNS[t.score.verdict],
            t.score.verdict,
            clip(t.score.answer or "none", 100),
            clip(t.completion.text.strip("\n"), CONTINUATION_SIZE),
        )
        for t in chosen
    )
