"""What the stages of a run share: its directory and who holds it, problems, model, engine, samplers, progress."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from gpo import __version__
from gpo.config.check import check
from gpo.config.components import made
from gpo.config.models import resolve_model, search_of
from gpo.config.options import resolve, with_defaults
from gpo.config.run import RunConfig, describe, differences, settled
from gpo.config.trust import refuse_strangers, remember
from gpo.contracts import Engine, Estimator, MergingTask, Method, RemoteEngine, RestingEngine, Task
from gpo.errors import ConfigError, EngineError, TryLater
from gpo.experiment.budget import allowance
from gpo.experiment.changes import FREE, OF_QUESTIONS, too_late
from gpo.experiment.questions import choose_problems
from gpo.experiment.teller import Teller
from gpo.images.tokenizer import keep_images, shows_images
from gpo.rollout.journal import Journal
from gpo.rollout.prompting import Conclusions, question_start
from gpo.rollout.sampler import Sampler
from gpo.storage.codec import to_json
from gpo.storage.directory import BASE, RunDirectory
from gpo.storage.events import Partial, Progress
from gpo.storage.files import remove, write_json
from gpo.storage.lock import Lock, joined, locked
from gpo.storage.rounds import RoundState
from gpo.types import Group, ModelRef, Problem, Split, Stage, Start, tokens_of

log = logging.getLogger(__name__)


@contextmanager
def _own_checkpoint(checkpoint: Path | None) -> Iterator[None]:
    """Say what to do where a checkpoint of the run itself cannot be loaded."""
    try:
        yield
    except EngineError as error:
        if checkpoint is None or isinstance(error, TryLater):
            raise
        raise EngineError(f"{error} If {checkpoint} is damaged, delete it to have it trained again.") from error


class Resources:
    """The directory, the configuration and what both make; loaded when it is needed, and kept.

    Nothing is written before the first stage, and then only once every component was made, the problems were chosen
    and the model was loaded: a call that cannot work leaves no directory behind.

    Args:
        directory: made by the first stage if it is not there.
        config: None takes that of the directory.
        on_progress: called after every piece of work.

    Raises:
        ConfigError: the directory was made with another configuration, or has none and none is given; or a component
            refuses its settings.
    """

    def __init__(
        self,
        directory: Path | str,
        config: RunConfig | None = None,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> None:
        self.files = RunDirectory(Path(directory))
        self.teller = Teller(self.files.events.log, on_progress)
        self._problems: dict[Split, list[Problem]] = {}
        self.given: dict[Split, list[Problem]] = {}  # the problems of a run that has them from elsewhere than its task
        self._engine: tuple[Path | None, Engine] | None = None
        self._conclusions: Conclusions | None = None
        self._journal: Journal | None = None
        self.memory_beside: dict[int, int] = {}  # most that each other worker has held, in kB
        self._holding: Lock | None = None  # held; complains once the directory is gone
        self._begun = False
        self._spent: dict[tuple[str, int], int] = {}
        self._trouble: Counter[str] = Counter()  # of the engine, as far as it is noted
        stored = self._stored()
        if config is None:
            if stored is None:
                stored = self.files.config()
            refuse_strangers(self.files.path, stored)
        self.config = settled(
            resolve({}, stored) if config is None else config, None if stored is None else with_defaults(stored)
        )
        self.described: dict[str, Any] = json.loads(json.dumps(to_json(describe(self.config))))
        check(self.config)
        self._changes(stored)

    def _stored(self) -> dict[str, Any] | None:
        """The settings of the directory.

        Raises:
            ConfigError: it holds something else than a run.
        """
        stored = self.files.config_or_none()
        if stored is not None and "arms" not in stored:
            raise ConfigError(f"{self.files.path} is no run. Choose another directory.")
        return stored

    def _changes(self, stored: dict[str, Any] | None) -> list[str]:
        """The settings that differ from those of the directory, which then takes the new ones.

        Raises:
            ConfigError: one changed too late (`changes.too_late`).
        """
        known = {} if stored is None else with_defaults(stored)
        changed = [each for each in differences(known, self.described) if not each.startswith(FREE)] if known else []
        if not changed:
            return []
        refused = too_late(self.files, known, self.described, changed)
        if refused:
            raise ConfigError(
                f"{self.files.path} was made with other settings: {'; '.join(refused[:3])}. "
                "Leave these as they were, or choose another run directory."
            )
        return changed

    def _begin(self) -> None:
        """Write the problems and the configuration, once everything that they name has been found to work."""
        stored = self._stored()  # somebody else may have begun since
        changed = self._changes(stored)
        if stored is not None:
            self._note_version()
        asked = [group.start.problem_id for group in self.files.rollouts.read()]
        if stored is not None and not changed and self.files.problems("train") is not None:
            return
        # What was begun with other settings is not gone on with.
        for name in ("journal.jsonl", "pieces.json"):
            remove(self.files.path / name)
        if any(each.startswith(("credit ", "pairs.")) for each in changed):
            for arm in self.config.arms:
                remove(self.files.dataset(arm))
                remove(self.files.pairs(arm))
        if asked and stored is None:
            raise ConfigError(
                f"{self.files.path} has samples and no config.json, which says what they are. Put it back, or choose "
                "another run directory."
            )
        if not asked:
            chosen = self.given or choose_problems(self.task, self.config)
            engine = self.engine()
            every = (problem for problems in chosen.values() for problem in problems)
            if shown := next((each for each in every if shows_images(self.task.prompt(each))), None):
                question_start(shown, self.task, engine.tokenizer)  # an engine that takes none says so here
            self.files.write_problems(chosen)
        elif any(each.startswith(OF_QUESTIONS) for each in changed):
            if any(each.startswith("problems ") for each in changed):
                chosen = choose_problems(self.task, self.config)
            else:  # what is trained on stays what it is, wherever it came from
                chosen = {
                    "train": self.files.problems("train") or [],
                    **choose_problems(self.task, self.config, "test"),
                }
            if asked != [problem.id for problem in chosen["train"]][: len(asked)]:
                raise ConfigError(
                    f"{self.files.path} has asked {len(asked)} questions, which are not the first of the "
                    f"{len(chosen['train'])} that these settings choose. Choose another run directory."
                )
            self.files.write_problems(chosen)
        write_json(self.files.path / "config.json", {"gpo": __version__, **self.described})
        remember(self.files.path)

    def _note_version(self) -> None:
        version = self.files.version
        if version != __version__ and self.files.events.version(__version__):
            log.warning("%s was begun by GPO %s and goes on with %s.", self.files.path, version, __version__)

    def forget_problems(self) -> None:
        """Choose the problems again next time, where none was answered: their task is to be mended."""
        answered = [self.files.rollouts, *(self.files.evaluation(name) for name in (BASE, *self.config.arms))]
        if not any(file.read() for file in answered):
            remove(self.files.path / "problems.jsonl")

    def problems(self, split: Split) -> list[Problem]:
        """The training or test problems; chosen once, and read from the directory from then on."""
        if split not in self._problems:
            with self.held():
                self._problems[split] = self.files.problems(split) or []
        return self._problems[split]

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
            engine = self._engine[1] if self._engine is not None else self.engine()
            problems = {problem.id: problem for problem in self.problems("train")}
            self._conclusions = Conclusions(self.task, problems, engine.tokenizer)
        return self._conclusions(start, answer)

    def check_arm(self, arm: str) -> None:
        if arm not in self.config.arms:
            raise ConfigError(f"This run has no arm {arm!r}. Its arms: {', '.join(self.config.arms)}.")

    def engine(self, checkpoint: Path | None = None) -> Engine:
        """The engine with the weights of a checkpoint, or with those it begins with. One is kept at a time."""
        if self._engine is not None and self._engine[0] != checkpoint and checkpoint is None:
            self.release_engine()
        if self._engine is None:
            self._engine = (None, made("engine", self.config.engine, model=self.model.source))
            self._trouble = Counter()
        loaded, engine = self._engine
        if loaded != checkpoint:
            with _own_checkpoint(checkpoint):
                engine.load(self.model_of(checkpoint))
            self._engine = (checkpoint, engine)
        if checkpoint is not None and engine.model_ref != self.model_of(checkpoint):
            raise EngineError(
                f"The engine {type(engine).__name__} samples from {engine.model_ref.name}, expected {checkpoint}: an "
                "older policy would be counted as the present one. Its `load` must change `model_ref`."
            )
        return engine

    def make_room(self) -> None:
        """For training: the engine rests if it can, and else goes."""
        if self._engine is not None and isinstance(self._engine[1], RestingEngine):
            self._engine[1].rest()
        else:
            self.release_engine()

    def release_engine(self) -> None:
        """Close the engine; another one is made when it is needed."""
        if self._engine is not None:
            self._engine[1].close()
            self._engine = None

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
        engine = self.engine(checkpoint)
        keep_images(engine.tokenizer, self.files.images)
        return Sampler(
            self._journaled(engine) if self.config.piece_seconds else engine,
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

    def _journaled(self, engine: Engine) -> Engine:
        if self._journal is None or self._journal.engine is not engine:
            files = (self.files.path / "journal.jsonl", self.files.path / "pieces.json")
            self._journal = Journal(engine, *files, self.config.piece_seconds or 0.0, self._sampled)
        return self._journal

    def _sampled(self, done: int, wanted: int, tokens: int, seconds: float) -> None:
        """Tell the teller of the moment: a journal outlives the one that workers put in its place."""
        self.teller.sampled(done, wanted, tokens, seconds)

    def _new_trouble(self) -> Counter[str]:
        """What went wrong with an engine elsewhere since this was asked last."""
        engine = None if self._engine is None else self._engine[1]
        now = Counter(engine.trouble) if isinstance(engine, RemoteEngine) else Counter[str]()
        new, self._trouble = now - self._trouble, now
        return new

    def budget(self, first: list[Group]) -> int:
        """Tokens that every arm may sample in a round, the first rollouts included."""
        return allowance(tokens_of(first), self.config.budget, 1, 0)

    def allowance(self, state: RoundState) -> int:
        """Tokens that an arm may sample in a round."""
        first = tokens_of(self.files.rollouts.read())
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
            if self._journal is not None:
                self._journal.clear()  # what it holds is written
            policy = self._engine[1].model_ref.name if tokens and self._engine is not None else None
            self.teller.end(done, total, unit, tokens, self._new_trouble(), policy)

        yield report

    @contextmanager
    def joined(self, descriptor: int) -> Iterator[None]:
        """Work in a run that the process which started this one holds (`storage.lock.joined`)."""
        with joined(self.files.path, descriptor) as self._holding:
            self._begun = True
            yield

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the run directory; a stage that calls another holds it already."""
        if self._holding is not None:
            yield
            return
        with locked(self.files.path) as check:
            self._holding = check
            try:
                if not self._begun:
                    self._begin()
                    self._begun = True
                yield
                # All that was asked for is written; what a kill left of a chunk that nobody went on with is, too.
                remove(self.files.path / "journal.jsonl")
                check()
            finally:
                self._holding = None
