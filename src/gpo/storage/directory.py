"""Where everything is in a run directory, and how to read it. Nothing here needs a model."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from gpo.errors import ConfigError, DataError
from gpo.storage.chunks import REMAKE, Chunks
from gpo.storage.codec import T, from_json, plain, to_json
from gpo.storage.disk import told
from gpo.storage.events import Events
from gpo.storage.files import lines_of, read_json, write_rows
from gpo.types import Group, Problem, Split, StepScores, Trajectory

SETTINGS: dict[str, tuple[type, ...]] = {  # that readers use, beside components
    **dict.fromkeys(("test_samples", "rounds", "buffer", "seed"), (int,)),
    **dict.fromkeys(("budget", "temperature"), (int, float)),
    **{"model": (str,), "pairs": (dict,)},
}
ARM = re.compile(r"[\w-]+")
FOLDERS = ("arms", "evaluation", "images", "plots", "logs", "wandb", "lost+found")  # of a run, or beside it
BASE = "base"  # the model before training, as an evaluated model beside the arms


@dataclass(frozen=True)
class RunDirectory:
    """The files of one run. One object parses each of them once.

    Every reader raises DataError, naming file and line, for content that it cannot use.
    """

    path: Path
    _files: dict[Path, Chunks[Any]] = field(default_factory=dict, init=False, repr=False, compare=False)
    _problems: dict[Split, list[Problem]] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def rollouts(self) -> Chunks[Group]:
        return self._chunks(self.path / "rollouts.jsonl", Group)

    def fresh(self, arm: str, number: int) -> Chunks[Group]:
        """What an arm begins a round with: rollouts from the questions. Those of the first round are of all arms."""
        return self.rollouts if number == 1 else self._chunks(self.arm(arm, number) / "rollouts.jsonl", Group)

    def earlier(self, arm: str, number: int, most: int | None = None) -> list[Chunks[Group]]:
        """The same of the rounds before, the last one first; of at most so many."""
        oldest = 1 if most is None else max(1, number - most)
        return [self.fresh(arm, each) for each in range(number - 1, oldest - 1, -1)]

    def scores(self, arm: str, number: int = 1) -> Chunks[StepScores]:
        return self._chunks(self.arm(arm, number) / "scores.jsonl", StepScores)

    def resets(self, arm: str, number: int = 1) -> Chunks[Group]:
        return self._chunks(self.arm(arm, number) / "resets.jsonl", Group)

    def more(self, arm: str, number: int = 1) -> Chunks[Group]:
        """Rollouts from the questions beside the resets, where these do not take all that is left."""
        return self._chunks(self.arm(arm, number) / "more.jsonl", Group)

    def evaluation(self, name: str) -> Chunks[Group]:
        """Answers to the test questions by the model of an arm, or by `base`."""
        return self._chunks(self.path / "evaluation" / f"{name}.jsonl", Group)

    def arm(self, arm: str, number: int = 1) -> Path:
        """The folder of an arm, which is that of its first round, or of a later round."""
        folder = self.path / "arms" / arm
        return folder if number == 1 else folder / "rounds" / str(number)

    def rounds(self, arm: str) -> list[int]:
        """The rounds that an arm has begun, from 1."""
        later = [int(path.name) for path in (self.arm(arm) / "rounds").glob("*") if path.name.isdecimal()]
        return [1, *sorted(number for number in later if number > 1)]

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
    def events(self) -> Events:
        """When each piece of work was finished, and what it took."""
        return Events(self.path / "events.jsonl")

    @property
    def traces(self) -> Path:
        """Says that the rollouts are solutions that somebody else wrote: they are searched, and not trained on."""
        return self.path / "traces.json"

    @property
    def results(self) -> Path:
        return self.path / "results.json"

    @property
    def images(self) -> Path:
        """The images that questions show, by name; absent where none does."""
        return self.path / "images"

    @property
    def plots(self) -> Path:
        return self.path / "plots"

    def arms(self) -> list[str]:
        """The names of the arms, in their order."""
        return list(self.config()["arms"])

    def check_arm(self, arm: str) -> None:
        """Raises: ConfigError if there is no such arm."""
        if arm not in (known := self.arms()):
            raise ConfigError(f"{self.path} has no arm {arm!r}. Its arms: {', '.join(known)}.")

    def config(self) -> dict[str, Any]:
        """The resolved configuration.

        Raises:
            ConfigError: this is no run directory.
        """
        config = self.config_or_none()
        if config is None:
            inside = runs_in(self.path)
            there = f"Runs are in it: {', '.join(inside[:5])}. Name one." if inside else ""
            raise ConfigError(f"{self.path} is no run directory. {there or f'Start one with: gpo run {self.path}'}")
        if not isinstance(config.get("arms"), Mapping):
            what = "an evaluation, whose tables are in table.md" if "models" in config else "a config.json without arms"
            raise ConfigError(f"{self.path} is no run directory: it holds {what}. Name a run.")
        return config

    def config_or_none(self) -> dict[str, Any] | None:
        file = self.path / "config.json"
        with told(file):  # of a name that no file can have
            if not file.exists():
                return None
        try:
            config = read_json(file)
        except DataError as error:
            raise DataError(f"{error}. Put it back as it was, or choose another directory.") from None
        if not isinstance(config, dict):
            raise DataError(f"{file} is no JSON object. Put it back as it was, or choose another directory.")
        config.pop("gpo", None)  # `version`
        if isinstance(config.get("arms"), Mapping):
            try:
                _check_settings(config)
            except DataError as error:
                raise DataError(f"{file}: {error} Put it back as it was.") from None
        return config

    @property
    def version(self) -> str:
        """Of GPO, that wrote the configuration."""
        return str(read_json(self.path / "config.json").get("gpo", "of an unknown version"))

    def searched_earlier(self, arm: str, number: int, most: int) -> list[StepScores]:
        """What the searches of so many rounds before have found: of each trajectory the last one."""
        found: dict[str, StepScores] = {}
        for each in range(max(1, number - most), number):
            found |= {score.trajectory_id: score for score in self.scores(arm, each).read()}
        return list(found.values())

    def searched(self, arm: str, number: int = 1) -> list[tuple[Trajectory, StepScores]]:
        """What an arm has searched in a round, each result with its trajectory.

        Raises:
            DataError: a result is of no trajectory of the round, or of one with another number of steps.
        """
        first, scores = self.fresh(arm, number), self.scores(arm, number)
        found = []
        files = iter([first, *self.earlier(arm, number)])  # read no further back than a search has looked
        known: dict[str, Trajectory] = {}
        for line, score in enumerate(scores.read(), 1):
            while score.trajectory_id not in known and (file := next(files, None)) is not None:
                known |= {trajectory.id: trajectory for group in file.read() for trajectory in group.trajectories}
            trajectory = known.get(score.trajectory_id)
            if trajectory is None:
                what = f"trajectory {score.trajectory_id!r} is not in {first.path}"
                raise DataError(f"{scores.path}:{line}: {what}. {REMAKE}")
            if misfit := score.misfit(len(trajectory.step_ends)):
                raise DataError(f"{scores.path}:{line}: of trajectory {trajectory.id!r}: {misfit}. {REMAKE}")
            found.append((trajectory, score))
        return found

    def problems(self, split: Split) -> list[Problem] | None:
        """The problems that were chosen for this run; None before they are."""
        file = self.path / "problems.jsonl"
        if not self._problems and file.exists():
            for number, line in enumerate(lines_of(file), 1):
                try:
                    data = json.loads(line)
                    self._problems.setdefault(data.pop("split"), []).append(from_json(Problem, data))
                except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
                    self._problems.clear()
                    raise DataError(f"{file}:{number}: not a problem with its split: {error}") from error
        return list(self._problems.get(split, ())) if file.exists() else None

    def write_problems(self, chosen: Mapping[Split, Sequence[Problem]]) -> None:
        rows = [{"split": split, **to_json(problem)} for split, problems in chosen.items() for problem in problems]
        write_rows(self.path / "problems.jsonl", rows)
        self._problems.clear()

    def forget(self, arm: str, number: int) -> None:
        """Keep the rows of a round in memory no longer; whoever asks for them reads them again."""
        for file in (self.fresh, self.scores, self.resets, self.more):
            file(arm, number).forget()

    def _chunks(self, path: Path, kind: type[T]) -> Chunks[T]:
        return cast(Chunks[T], self._files.setdefault(path, Chunks(path, kind)))


def _check_settings(config: Mapping[str, Any]) -> None:
    """The settings that readers of a run use are of their types, and the names of arms are no paths.

    Raises:
        DataError: one is not.
    """
    for name in ("task", "engine", "segmenter", "method"):
        if name in config:
            plain(plain(config[name], name, dict).get("name"), f"{name}.name", str)
    for arm, estimator in config["arms"].items():
        if not ARM.fullmatch(arm):
            raise DataError(f"arms has the name {arm!r}, expected letters, digits, - and _ only.")
        plain(plain(estimator, f"arms.{arm}", dict).get("name"), f"arms.{arm}.name", str)
    for name, kinds in SETTINGS.items():
        if name in config:
            plain(config[name], name, *kinds)


def answers_of(file: Chunks[Group], problems: Sequence[Problem], samples: int) -> list[Group]:
    """The groups of a file that asks each of these problems in turn, as far as it has got.

    A group without trajectories is of a question that left no room to answer.

    Raises:
        DataError: a question is missing or there twice, is none of the problems, or has another number of samples.
    """
    groups = file.read()
    if groups and not problems:
        raise DataError(f"{file.path} has answers, and their questions are gone. Put problems.jsonl back as it was.")
    for line, group in enumerate(groups, 1):
        found, expected = group.start.problem_id, problems[line - 1].id if line <= len(problems) else None
        if found != expected:
            wanted = "no other" if expected is None else repr(expected)
            what = f"problem {found!r} where {wanted} of problems.jsonl was expected"
            raise DataError(f"{file.path}:{line}: {what}. {REMAKE}")
        if len(group.trajectories) not in (0, samples):
            what = f"{len(group.trajectories)} samples of {found!r}, but config.json says {samples}"
            raise DataError(f"{file.path}:{line}: {what}. Put config.json back as it was, or delete this file.")
    return groups


def model_name(config: Mapping[str, Any]) -> str:
    """The model that a run began with, as its configuration names it: the engine's own if it has one."""
    engine = config.get("engine")
    own = engine.get("model") if isinstance(engine, Mapping) else None
    return str(own or config["model"])


def runs_in(folder: Path) -> list[str]:
    """The names of the run directories that a folder holds."""
    found = (path.parent for path in folder.glob("*/config.json"))
    return sorted(path.name for path in found if (path / "rollouts.jsonl").exists())
