"""The engine of a run: made when it is needed, with the weights that are asked for, and out of the way of training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from gpo.config.components import made
from gpo.config.run import RunConfig
from gpo.contracts import Engine, RemoteEngine, RestingEngine
from gpo.errors import EngineError, TryLater
from gpo.rollout.journal import Journal
from gpo.types import ModelRef


@dataclass
class RunEngine:
    """One engine, with the weights of the checkpoint that it is called with; None: those that a run begins with."""

    config: RunConfig
    folder: Path  # for the journal of what is sampled and not written yet, where the run keeps one
    model_of: Callable[[Path | None], ModelRef]  # of a checkpoint
    sampled: Callable[[int, int, int, float], None]  # told of rollouts as they come; see `Journal`
    present: Engine | None = field(default=None, init=False)  # with whatever weights it has
    _checkpoint: Path | None = field(default=None, init=False)  # whose weights these are
    _journal: Journal | None = field(default=None, init=False)
    _trouble: Counter[str] = field(default_factory=Counter, init=False)  # as far as it is noted

    def __call__(self, checkpoint: Path | None = None) -> Engine:
        if self._checkpoint is not None and checkpoint is None:
            self.release()
        if self.present is None:
            self.present = made("engine", self.config.engine, model=self.model_of(None).source)
            self._trouble = Counter()
        engine = self.present
        if self._checkpoint != checkpoint:
            try:
                engine.load(self.model_of(checkpoint))
            except EngineError as error:
                if checkpoint is None or not checkpoint.exists() or isinstance(error, TryLater):
                    raise
                advice = f"If {checkpoint} is damaged, delete it to have it trained again."
                raise EngineError(f"{error} {advice}") from error
            self._checkpoint = checkpoint
        if checkpoint is not None and engine.model_ref != self.model_of(checkpoint):
            raise EngineError(
                f"The engine {type(engine).__name__} samples from {engine.model_ref.name}, expected {checkpoint}: an "
                "older policy would be counted as the present one. Its `load` must change `model_ref`."
            )
        return engine

    def sampling(self, checkpoint: Path | None) -> Engine:
        """The engine, with a journal before it where the run keeps one."""
        engine = self(checkpoint)
        if not self.config.piece_seconds:
            return engine
        if self._journal is None or self._journal.engine is not engine:
            files = (self.folder / "journal.jsonl", self.folder / "pieces.json")
            self._journal = Journal(engine, *files, self.config.piece_seconds, self.sampled)
        return self._journal

    def written(self) -> None:
        """What the journal holds is in the files of the run."""
        if self._journal is not None:
            self._journal.clear()

    def new_trouble(self) -> Counter[str]:
        """What went wrong with an engine elsewhere since this was asked last."""
        now = Counter(self.present.trouble) if isinstance(self.present, RemoteEngine) else Counter[str]()
        new, self._trouble = now - self._trouble, now
        return new

    def make_room(self) -> None:
        """For training: the engine rests if it can, and else goes."""
        if isinstance(self.present, RestingEngine):
            self.present.rest()
        else:
            self.release()

    def release(self) -> None:
        """Close the engine; another one is made when it is needed."""
        if self.present is not None:
            self.present.close()
        self.present = self._checkpoint = None
