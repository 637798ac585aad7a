"""Where everything is in a run directory, and how to read it. Nothing here needs a model."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gpo.errors import ConfigError, DataError
from gpo.storage.chunks import Chunks
from gpo.storage.codec import from_json, to_json
from gpo.storage.files import read_json, write_rows
from gpo.types import Group, Problem, Split, StepScores

BASE = "base"  # the model before training, as an evaluated model beside the arms


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


@dataclass(frozen=True)
class RunDirectory:
    """The files of one run.

    Every reader raises DataError, naming file and line, for content that it cannot use.
    """

    path: Path

    @property
    def rollouts(self) -> Chunks[Group]:
        return Chunks(self.path / "rollouts.jsonl", Group)

    def fresh(self, arm: str, number: int) -> Chunks[Group]:
        """What an arm begins a round with: rollouts from the questions. Those of the first round are of all arms."""
        return self.rollouts if number == 1 else Chunks(self.arm(arm, number) / "rollouts.jsonl", Group)

    def scores(self, arm: str, number: int = 1) -> Chunks[StepScores]:
        return Chunks(self.arm(arm, number) / "scores.jsonl", StepScores)

    def resets(self, arm: str, number: int = 1) -> Chunks[Group]:
        return Chunks(self.arm(arm, number) / "resets.jsonl", Group)

    def more(self, arm: str, number: int = 1) -> Chunks[Group]:
        """Rollouts from the questions beside the resets, where these do not take all that is left."""
        return Chunks(self.arm(arm, number) / "more.jsonl", Group)

    def evaluation(self, name: str) -> Chunks[Group]:
        """Answers to the test questions by the model of an arm, or by `base`."""
        return Chunks(self.path / "evaluation" / f"{name}.jsonl", Group)

    def arm(self, arm: str, number: int = 1) -> Path:
        """The folder of an arm, which is that of its first round, or of a later round."""
        folder = self.path / "arms" / arm
        return folder if number == 1 else folder / "rounds" / str(number)

    def rounds(self, arm: str) -> list[int]:
        """The rounds that an arm has begun, from 1."""
        later = (self.arm(arm) / "rounds").glob("*")
        return [1, *sorted(int(folder.name) for folder in later)]

    def model(self, arm: str) -> Path:
        """The model of the last round."""
        return self.arm(arm) / "model"

    def checkpoint(self, arm: str, number: int) -> Path:
        """The model after a round that is not the last one."""
        return self.arm(arm) / "checkpoints" / str(number)

    def pairs(self, arm: str, number: int = 1) -> Path:
        return self.arm(arm, number) / "pairs.jsonl"

    def dataset(self, arm: str, number: int = 1) -> Path:
        """The same pairs in Parquet, with a card."""
        return self.arm(arm, number) / "dataset"

    @property
    def traces(self) -> Path:
        """Says that the rollouts are solutions that somebody else wrote: they are searched, and not trained on."""
        return self.path / "traces.json"

    @property
    def results(self) -> Path:
        return self.path / "results.json"

    @property
    def plots(self) -> Path:
        return self.path / "plots"

    def arms(self) -> list[str]:
        """The names of the arms, in their order."""
        return list(self.config()["arms"])

    def groups(self, arm: str, number: int = 1, *, search: bool = True) -> list[Group]:
        """Everything an arm has sampled in a round: rollouts from the questions, search (if `search`) and resets."""
        scores = self.scores(arm, number).read() if search else []
        searched = [group for score in scores for group in score.rollouts]
        more = self.more(arm, number).read()
        return [*self.fresh(arm, number).read(), *searched, *self.resets(arm, number).read(), *more]

    def config(self) -> dict[str, Any]:
        """The resolved configuration.

        Raises:
            ConfigError: this is no run directory.
        """
        config = self.config_or_none()
        if config is None:
            raise ConfigError(f"{self.path} is no run directory. Start one with: gpo run {self.path}")
        return config

    def config_or_none(self) -> dict[str, Any] | None:
        file = self.path / "config.json"
        if not file.exists():
            return None
        config: dict[str, Any] = read_json(file)
        config.pop("gpo", None)  # the version that made it, which may differ
        return config

    def problems(self, split: Split) -> list[Problem] | None:
        """The problems that were chosen for this run; None before they are."""
        file = self.path / "problems.jsonl"
        if not file.exists():
            return None
        problems = []
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            try:
                data = json.loads(line)
                if data.pop("split") == split:
                    problems.append(from_json(Problem, data))
            except (ValueError, KeyError, AttributeError, TypeError) as error:
                raise DataError(f"{file}:{number}: not a problem with its split: {error}") from error
        return problems

    def write_problems(self, chosen: dict[Split, list[Problem]]) -> None:
        rows = [{"split": split, **to_json(problem)} for split, problems in chosen.items() for problem in problems]
        write_rows(self.path / "problems.jsonl", rows)

    def log(self, progress: Progress) -> None:
        """Note a finished piece of work; times are nowhere else but in `tokens_per_second` of `training.jsonl`.

        All other files are so the same in every run.
        """
        with (self.path / "events.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"time": round(time.time(), 3), **asdict(progress)}) + "\n")

    def seconds(self) -> dict[str, float]:
        """Time spent in each stage, over all processes that worked on this run."""
        spent: dict[str, float] = {}
        for event in self._events():
            spent[event["stage"]] = spent.get(event["stage"], 0.0) + event["seconds"]
        return spent

    def tokens_per_second(self, arm: str) -> float | None:
        """Speed of what an arm has sampled to train on, the rollouts of all arms included; None if nothing was timed.

        By the clock, with all that sampling takes: search, grading and writing.
        """
        pieces = [
            event
            for event in self._events()
            if event["stage"] in ("rollout", "locate", "reset")
            and (event["arm"] is None or event["arm"].partition(" ")[0] == arm)  # "gpo 2" is its second round
        ]
        seconds = sum(event["seconds"] for event in pieces)
        return sum(event["tokens"] for event in pieces) / seconds if seconds > 0 else None

    def _events(self) -> Iterator[dict[str, Any]]:
        file = self.path / "events.jsonl"
        for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else []:
            with suppress(ValueError):  # cut by a kill
                yield json.loads(line)
