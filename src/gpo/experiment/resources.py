"""What the stages of a run share: its directory and who holds it, problems, engine, samplers, progress."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

from gpo import __version__
from gpo.config.components import made
from gpo.config.options import resolve, with_defaults
from gpo.config.presets import model_path
from gpo.config.run import RunConfig, describe, differences
from gpo.errors import ConfigError, DataError
from gpo.experiment.budget import evenly
from gpo.experiment.rounds import trains_on_pairs
from gpo.methods.trackers import check_trackers
from gpo.rollout.sampler import Sampler
from gpo.storage.codec import to_json
from gpo.storage.directory import Progress, RunDirectory
from gpo.storage.files import locked, write_json
from gpo.types import Engine, Problem, Split, Task


class Resources:
    """The directory, the configuration and what both make; loaded when it is needed, and kept.

    Args:
        directory: made if it is not there.
        config: None takes that of the directory.
        on_progress: called after every piece of work.

    Raises:
        ConfigError: the directory was made with another configuration, or has none and none is given.
    """

    def __init__(
        self,
        directory: Path | str,
        config: RunConfig | None = None,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> None:
        self.files = RunDirectory(Path(directory))
        self.on_progress = on_progress
        self._problems: dict[Split, list[Problem]] = {}
        self._engine: tuple[Path | None, Engine] | None = None
        self._holding = False
        stored = self.files.config() if config is None else self.files.config_or_none()
        self.config = resolve({}, stored) if config is None else config
        self.described = json.loads(json.dumps(to_json(describe(self.config))))
        check_trackers(self.described["method"].get("trackers") or ())
        if stored is None:
            write_json(self.files.path / "config.json", {"gpo": __version__, **self.described})
        elif changed := differences(with_defaults(stored), self.described):
            raise ConfigError(
                f"{self.files.path} was made with other settings: {'; '.join(changed[:3])}. "
                "Leave these as they were, or choose another run directory."
            )

    def problems(self, split: Split) -> list[Problem]:
        """The training or test problems; chosen once, and read from the directory from then on."""
        if split not in self._problems:
            with self._held():
                known = self.files.problems(split)
                if known is None:
                    self._choose_problems()
                    known = self.files.problems(split)
            self._problems[split] = known or []
        return self._problems[split]

    def _choose_problems(self) -> None:
        chosen: dict[Split, list[Problem]] = {
            "train": evenly(self.task.problems("train"), self.config.problems),
            "test": evenly(self.task.problems(self.config.test_split), self.config.test_problems),
        }
        for name, problems in chosen.items():
            if not problems:
                raise DataError(f"The task has no {name} problems. Choose another task or another path.")
        self.files.write_problems(chosen)

    @cached_property
    def task(self) -> Task:
        task: Task = made("task", self.config.task)
        return task

    def engine(self, checkpoint: Path | None = None) -> Engine:
        """The engine with the weights of a checkpoint, or with those it begins with. One is kept at a time."""
        if self._engine is None or self._engine[0] != checkpoint:
            self._engine = None
            engine = made("engine", self.config.engine, model=model_path(self.config.model))
            if checkpoint is not None:
                engine.load(checkpoint)
            self._engine = (checkpoint, engine)
        return self._engine[1]

    def _sampler(self, stream: str, split: Split, checkpoint: Path | None = None) -> Sampler:
        # Log-probabilities of what is searched tell an estimator how often a rollout would repeat it; those of all that
        # is sampled are the behaviour policy's of an online method.
        wanted = "rollout/" in stream or (split == "train" and not trains_on_pairs(self.config.method))
        return Sampler(
            self.engine(checkpoint),
            self.task,
            {problem.id: problem for problem in self.problems(split)},
            segmenter=made("segmenter", self.config.segmenter),
            temperature=self.config.temperature,
            max_tokens=self.config.max_tokens,
            seed=self.config.seed,
            stream=stream,
            logprobs=wanted,
        )

    def _tell(self, stage: str, arm: str | None, done: int, total: int, unit: str) -> None:
        if self.on_progress is not None:
            self.on_progress(Progress(stage, arm, done, total, unit, 0, 0.0))

    @contextmanager
    def _piece(self, stage: str, arm: str | None, number: int = 1) -> Iterator[Callable[[int, int, str, int], None]]:
        """Time a piece of work; the function says what came of it: done, total, unit, sampled tokens."""
        began = time.monotonic()

        def report(done: int, total: int, unit: str, tokens: int) -> None:
            progress = Progress(
                stage, arm and label(arm, number), done, total, unit, tokens, round(time.monotonic() - began, 3)
            )
            self.files.log(progress)
            if self.on_progress is not None:
                self.on_progress(progress)

        yield report

    @contextmanager
    def _held(self) -> Iterator[None]:
        """Hold the run directory; a stage that calls another holds it already."""
        if self._holding:
            yield
            return
        with locked(self.files.path):
            self._holding = True
            try:
                yield
            finally:
                self._holding = False


def label(arm: str, number: int) -> str:
    """What progress and events call an arm in a round."""
    return arm if number == 1 else f"{arm} {number}"
