"""The log of a run directory: which piece of work was finished when, and what it took."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from math import isfinite
from pathlib import Path
from typing import Any

from gpo.storage.files import append_row, whole_rows
from gpo.types import Stage


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a stage is. `tokens` (sampled) and `seconds` are those of the last piece of work."""

    stage: str
    arm: str | None
    done: int
    total: int
    unit: str
    tokens: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Partial(Progress):
    """A piece of work that is not finished, and is nowhere noted.

    `done` is what was finished before it began, `tokens` and `seconds` are its own so far.
    """

    piece: int = 0  # what it adds to `done` once it is finished
    expected: int = 0  # tokens that it takes, as far as can be told; 0: that cannot be told


@dataclass(frozen=True)
class Events:
    """The rows of `events.jsonl`; lines that tell of no piece of work are passed over."""

    path: Path

    def log(
        self, progress: Progress, trouble: Mapping[str, int] | None = None, policy: str | None = None, worker: int = 0
    ) -> None:
        """Note a finished piece of work; times are nowhere else but in `tokens_per_second` of `training.jsonl`.

        All other files are so the same in every run.

        Args:
            trouble: what went wrong meanwhile and was done again, by kind.
            policy: the model that sampled what is counted.
            worker: which of those that work side by side has done it; 0 is the process of the command.
        """
        more = {"trouble": dict(trouble or {}), "policy": policy, "worker": worker}
        told = {name: value for name, value in more.items() if value}
        append_row(self.path, {"time": round(time.time(), 3), **asdict(progress), **told})

    def version(self, version: str) -> bool:
        """Note that a run goes on with another version of GPO than the one that began it; whether that is new."""
        noted = [event["gpo"] for event in self._rows() if "gpo" in event]
        if noted[-1:] == [version]:
            return False
        append_row(self.path, {"time": round(time.time(), 3), "gpo": version})
        return True

    def trouble(self) -> dict[str, int]:
        """What went wrong with engines elsewhere and was done again, by kind, over all processes; most first."""
        counts: Counter[str] = Counter()
        for event in self._rows():
            told = event.get("trouble")
            for kind, count in told.items() if isinstance(told, Mapping) else ():
                counts[kind] += count if isinstance(count, int) else 0
        return dict(counts.most_common())

    def seconds(self) -> dict[str, float]:
        """Time of the clock spent in each stage; pieces of work that ran side by side have shared theirs."""
        events, spent = self._rows(), dict[str, float]()
        for event, seconds in zip(events, _by_the_clock(events), strict=True):
            spent[event["stage"]] = spent.get(event["stage"], 0.0) + seconds
        return spent

    def seconds_of(self, arm: str) -> dict[str, float]:
        """Time spent in each stage for an arm, the rollouts of all arms included; other arms may have run meanwhile."""
        spent: dict[str, float] = {}
        for event in self._of(arm):
            spent[event["stage"]] = spent.get(event["stage"], 0.0) + event["seconds"]
        return spent

    def seconds_of_search(self, arm: str) -> float:
        """Of the search of an arm's first round, which `random_matched` takes over."""
        return float(sum(row["seconds"] for row in self._rows() if (row["stage"], row["arm"]) == (Stage.LOCATE, arm)))

    def tokens_per_second(self, arm: str) -> float | None:
        """Speed of what an arm has sampled to train on, the rollouts of all arms included; None if nothing was timed.

        By the clock, with all that sampling takes: search, grading and writing.
        """
        pieces = [event for event in self._of(arm) if event["stage"] in ("rollout", "locate", "reset")]
        seconds = sum(event["seconds"] for event in pieces)
        return sum(event["tokens"] for event in pieces) / seconds if seconds > 0 else None

    def _of(self, arm: str) -> list[dict[str, Any]]:
        """Those of an arm, and of what all arms share; "gpo 2" is the second round of arm gpo."""
        return [row for row in self._rows() if row["arm"] is None or row["arm"].partition(" ")[0] == arm]

    def _rows(self) -> list[dict[str, Any]]:
        """Those of the lines that tell of a piece of work: times are worth no failure."""
        return [row for row in whole_rows(self.path) if _is_event(row)]


def _is_event(row: Mapping[str, Any]) -> bool:
    numbers = row.get("seconds"), row.get("tokens")
    return (
        row.get("stage") in tuple(Stage)
        and (row.get("arm") is None or isinstance(row["arm"], str))
        and all(isinstance(number, int | float) and isfinite(number) for number in numbers)
    )


def _by_the_clock(events: Sequence[Mapping[str, Any]]) -> list[float]:
    """Seconds of each event, in order; of those that ran side by side, each moment is divided among them."""
    ends = [event.get("time") for event in events]
    beside = any(event.get("worker") for event in events)
    if not beside or not all(isinstance(end, int | float) and isfinite(end) for end in ends):
        return [event["seconds"] for event in events]
    marks = [(end - event["seconds"], i) for i, (event, end) in enumerate(zip(events, ends, strict=True))]
    marks += [(end, i) for i, end in enumerate(ends)]
    shares, active = [0.0] * len(events), set[int]()
    for (now, i), (then, _) in pairwise(sorted(marks)):
        active ^= {i}
        for each in active:
            shares[each] += (then - now) / len(active)
    return shares
