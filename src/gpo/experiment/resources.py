"""What the stages of a run share: its directory and who holds it, problems, model, engine, samplers, progress."""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cached_property
from pathlib import Path
from threading import get_ident
from typing import Any

from gpo.config.check import check
from gpo.config.components import made
from gpo.config.models import resolve_model, search_of
from gpo.config.options import resolve, with_defaults
from gpo.config.run import RunConfig, describe, settled
from gpo.config.trust import refuse_strangers
from gpo.contracts import Estimator, MergingTask, Method, Task
from gpo.errors import ConfigError, DataError
from gpo.experiment.budget import allowance
from gpo.experiment.changes import begin, changed_settings, stored_settings
from gpo.experiment.engine import RunEngine
from gpo.experiment.teller import Teller
from gpo.images.tokenizer import keep_images
from gpo.rollout.prompting import Conclusions
from gpo.rollout.sampler import Sampler
from gpo.storage.codec import to_json
from gpo.storage.directory import BASE, RunDirectory
from gpo.storage.events import Partial, Progress
from gpo.storage.files import remove
from gpo.storage.lock import Held, Lock, joined, locked
from gpo.storage.rounds import RoundState, Sampled
from gpo.types import ModelRef, Problem, Split, Stage, Start


class Resources:
    """The directory, the configuration and what both make; loaded when it is needed, and kept.

    Nothing is written before the first stage, and then only once every component was made, the problems were chosen
    and the model was loaded: a call that cannot work leaves no directory behind.
    """

    def __init__(
        self,
        directory: Path | str,
        config: RunConfig | None = None,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> None:
        """Checks the configuration, and writes nothing.

        Args:
            directory: made by the first stage if it is not there.
            config: None takes that of the directory.
            on_progress: called after every piece of work.

        Raises:
            ConfigError: the directory was made with another configuration, or has none and none is given; or a
                component refuses its settings.
        """
        self.files = RunDirectory(Path(directory))
        self.teller = Teller(self.files.events.log, on_progress)
        self._problems: dict[Split, list[Problem]] = {}
        self.given: dict[Split, list[Problem]] = {}  # the problems of a run that has them from elsewhere than its task
        self._conclusions: Conclusions | None = None
        self.memory_beside: dict[int, int] = {}  # most that each other worker has held, in kB
        self._holding: Lock | None = None  # held; complains once the directory is gone
        self._holder = 0  # the thread that holds it
        self._begun = False
        self._spent: dict[tuple[str, int], int] = {}
        stored = stored_settings(self.files)
        if config is None:
            if stored is None:
                stored = self.files.config()
            refuse_strangers(self.files.path, stored)
        self.config = settled(
            resolve({}, stored) if config is None else config, None if stored is None else with_defaults(stored)
        )
        self.described: dict[str, Any] = json.loads(json.dumps(to_json(describe(self.config))))
        check(self.config)
        changed_settings(self.files, stored, self.described)
        self.engine = RunEngine(self.config, self.files.path, self.model_of, self._sampled)

    def problems(self, split: Split) -> list[Problem]:
        """The training or test problems; chosen once, and read from the directory from then on.

        Raises:
            DataError: they are not there any more.
        """
        if split not in self._problems:
            with nullcontext() if self._begun else self.held():
                chosen = self.files.problems(split)
            if chosen is None:
                raise DataError(f"{self.files.path / 'problems.jsonl'} was removed. Put it back as it was.")
            self._problems[split] = chosen
        return self._problems[split]

    def forget_problems(self) -> None:
        """Choose the problems again next time, where none was answered: their task is to be mended."""
        answered = [self.files.rollouts, *(self.files.evaluation(name) for name in (BASE, *self.config.arms))]
        if not any(file.read() for file in answered):
            remove(self.files.path / "problems.jsonl")
            self._problems.clear()
            self._begun = False

    @cached_property
    def task(self) -> Task:
        task: Task = made("task", self.config.task)
        return task

    @property
    def meaning(self) -> Callable[[str], Hashable] | None:
        """Which steps are one for credit; None: those of equal tokens."""
        return self.task.meaning if isinstance(self.task, MergingTask) else None

    @cached_property
    def model(self) -> ModelRef:
        """The model before training."""
        return resolve_model(self.config)

    def model_of(self, checkpoint: Path | None) -> ModelRef:
        """A checkpoint of this run, or the model before training."""
        return self.model if checkpoint is None else ModelRef(str(checkpoint), str(checkpoint))

    @cached_property
    def trains_on_pairs(self) -> bool:
        method: Method = made("method", self.config.method)
        return method.trains_on == "pairs"

    def estimator(self, arm: str, checkpoint: Path | None) -> Estimator:
        """The search of an arm; one that reads a model reads the one that samples.

        Raises:
            ConfigError: there is no such arm.
        """
        self.check_arm(arm)
        ref = self.model_of(checkpoint)
        estimator: Estimator = search_of(
            self.config,
            arm,
            model=ref.source if ref.revision is None else ref,
            conclusion=self.conclusion,
            seed=self.config.seed,
        )
        return estimator

    def conclusion(self, start: Start, answer: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """How a response to a training question says its answer; see `Conclusions`."""
        if self._conclusions is None:
            engine = self.engine() if self.engine.present is None else self.engine.present
            problems = {problem.id: problem for problem in self.problems("train")}
            self._conclusions = Conclusions(self.task, problems, engine.tokenizer)
        return self._conclusions(start, answer)

    def check_arm(self, arm: str) -> None:
        """Raises: ConfigError if there is no such arm."""
        if arm not in self.config.arms:
            raise ConfigError(f"This run has no arm {arm!r}. Its arms: {', '.join(self.config.arms)}.")

    def check_round(self, number: int) -> None:
        """Raises: ConfigError if there is no such round; they count from 1."""
        if type(number) is not int or not 1 <= number <= self.config.rounds:
            rounds = "1, its only round" if self.config.rounds == 1 else f"a round from 1 to {self.config.rounds}"
            raise ConfigError(f"This run has no round {number!r}. Expected {rounds}.")

    def sampler(
        self,
        stage: Stage,
        split: Split,
        first: int,
        checkpoint: Path | None,
        number: int = 1,
        arm: str | None = None,
        limit: int | None = None,
    ) -> Sampler:
        """Samples a chunk; stage, round, arm and the number of the chunk's first row name its random numbers."""
        names = [f"round{number}" if number > 1 else "", stage, arm or "", str(first)]
        engine = self.engine.sampling(checkpoint)
        keep_images(engine.tokenizer, self.files.images)
        return Sampler(
            engine,
            self.task,
            {problem.id: problem for problem in self.problems(split)},
            segmenter=made("segmenter", self.config.segmenter),
            temperature=self.config.temperature,
            max_tokens=self.config.max_tokens,
            seed=self.config.seed,
            stream="/".join(filter(None, names)),
            # Log-probabilities of what is searched tell an estimator how often a rollout would repeat it; those of all
            # that is sampled are the behaviour policy's of an online method.
            logprobs=stage == Stage.ROLLOUT or (split == "train" and not self.trains_on_pairs),
            limit=limit,
            policy_version=self.policy_version(checkpoint),
        )

    def policy_version(self, checkpoint: Path | None) -> int:
        """Rounds of training behind a checkpoint of this run; 0 is the model before training."""
        if checkpoint is None:
            return 0
        return int(checkpoint.name) if checkpoint.parent.name == "checkpoints" else self.config.rounds

    def _sampled(self, done: int, wanted: int, tokens: int, seconds: float) -> None:
        """Tell the teller of the moment: a journal outlives the one that workers put in its place."""
        self.teller.sampled(done, wanted, tokens, seconds)

    def allowance(self, state: RoundState) -> int:
        """Tokens that an arm may sample in a round."""
        first = self.files.rollouts.summary(Sampled.of).tokens
        return allowance(first, self.config.budget, state.number, self.spent(state.arm, state.number - 1))

    def spent(self, arm: str, number: int) -> int:
        """Tokens that an arm has sampled in its rounds up to this one, all of which have sampled."""
        for each in range(1, number + 1):
            if (arm, each) not in self._spent:
                self._spent[arm, each] = sum(RoundState.of(self.files, arm, each).tokens().values())
        return sum(self._spent[arm, each] for each in range(1, number + 1))

    @contextmanager
    def piece(
        self, stage: Stage, label: str | None, done: int = 0, total: int = 0, unit: str = "", size: int = 0
    ) -> Iterator[Callable[[int, int, str, int], None]]:
        """Time a piece of work; the function says what came of it: done, total, unit, sampled tokens.

        Args:
            done, total, unit: what is finished before it, of how much.
            size: what it adds.
        """
        partial = Partial(stage, label, done, total, unit, 0, 0.0, size)
        self.teller.begin(partial, show=bool(self.config.piece_seconds and total))

        def report(done: int, total: int, unit: str, tokens: int) -> None:
            if self._holding is not None:
                self._holding()
            self.engine.written()
            policy = self.engine.present.model_ref.name if tokens and self.engine.present is not None else None
            self.teller.end(done, total, unit, tokens, self.engine.new_trouble(), policy)

        yield report

    @contextmanager
    def joined(self, descriptor: int) -> Iterator[None]:
        """Work in a run that the process which started this one holds (`storage.lock.joined`)."""
        self._holder = get_ident()
        with joined(self.files.path, descriptor) as self._holding:
            self._begun = True
            yield

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the run directory; a stage that calls another holds it already.

        Raises:
            Held: another thread does, or another process.
        """
        if self._holding is not None:
            if self._holder != get_ident():
                raise Held(
                    f"Another thread works in {self.files.path}. Wait for it to end, or give this one a directory of "
                    "its own."
                )
            yield
            return
        with locked(self.files.path) as check:
            self._holder = get_ident()
            self._holding = check
            try:
                if not self._begun:
                    begin(self)
                    self._begun = True
                yield
                # All that was asked for is written; what a kill left of a chunk that nobody went on with is, too.
                remove(self.files.path / "journal.jsonl")
                check()
            finally:
                self._holding = None
