"""The contracts of everything that can be added: tasks, engines, searches, methods. Without torch."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, Self, runtime_checkable

from gpo.types import (
    Completion,
    Evidence,
    Group,
    Message,
    ModelRef,
    Pair,
    Problem,
    Request,
    RoundContext,
    Score,
    Split,
    Start,
    StepScores,
    Trajectory,
)


class Tokenizer(Protocol):
    """The part of a Hugging Face tokenizer that torch-free code uses."""

    eos_token_id: int | None

    def encode(self, text: str, *, add_special_tokens: bool = ...) -> list[int]: ...

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = ...) -> str: ...


@runtime_checkable
class Task(Protocol):
    """Problems, how to ask them, and how to grade a response."""

    def problems(self, split: Split) -> Sequence[Problem]: ...

    def prompt(self, problem: Problem) -> list[Message]: ...

    def score(self, problem: Problem, text: str) -> Score: ...


@runtime_checkable
class ParallelTask(Task, Protocol):
    """A task whose `score` may be called from several threads at once, since it grades in processes of its own."""

    @property
    def parallel(self) -> int: ...  # how many threads


@runtime_checkable
class LimitedTask(Task, Protocol):
    """A task that says how long the grading of one answer may take, in place of a minute; None: it ends what hangs."""

    @property
    def score_seconds(self) -> float | None: ...


@runtime_checkable
class ComparingTask(Task, Protocol):
    """A task that can tell whether two answers of responses say the same, so that a majority counts them as one."""

    def same(self, a: str, b: str) -> bool: ...


@runtime_checkable
class MergingTask(Task, Protocol):
    """A task that can tell which steps say the same in other words, so that step credit shares what follows them."""

    def meaning(self, step: str) -> Hashable:
        """What the step says: two ways to go on from one prefix are one if these are equal."""
        ...


@runtime_checkable
class Engine(Protocol):
    """Samples continuations of token sequences. A context manager: leaving it closes it.

    `docs/engines.md` shows how to write one, and `gpo.engines.contract` checks it.
    """

    @property
    def tokenizer(self) -> Any: ...

    @property
    def model_ref(self) -> ModelRef: ...  # what it samples from now

    @property
    def context_length(self) -> int: ...  # tokens, prompt and response together

    @property
    def stop_ids(self) -> frozenset[int]: ...  # tokens that end a response; one of them is its last if it was sampled

    @property
    def repeatable(self) -> bool: ...  # whether a request and its seed give the same tokens, whatever else is asked

    def generate(
        self, requests: Sequence[Request], *, temperature: float = 1.0, logprobs: bool = False
    ) -> list[list[Completion]]:
        """One list of `n` completions for each request, in order. `temperature` 0 is greedy."""
        ...

    def logprobs(
        self, contexts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]], *, temperature: float = 1.0
    ) -> list[tuple[float, ...]]:
        """(T,) nats for each continuation: what the model gives to its tokens behind its context, teacher-forced."""
        ...

    def load(self, model: ModelRef) -> None:
        """Replace the weights; the tokenizer stays."""
        ...

    def close(self) -> None:
        """Let go of memory, processes and connections. Nothing may be asked after it; closing twice is allowed."""
        ...

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@runtime_checkable
class RemoteEngine(Engine, Protocol):
    """An engine whose answers come one by one from elsewhere, and not always at the first time."""

    @property
    def trouble(self) -> Mapping[str, int]: ...  # what went wrong and was done again, by kind

    def stream(
        self, requests: Sequence[Request], *, temperature: float = 1.0, logprobs: bool = False
    ) -> Iterator[tuple[int, list[Completion]]]:
        """The position of each request and its completions, as they come: what `generate` would say of it."""
        ...


@runtime_checkable
class RestingEngine(Engine, Protocol):
    """An engine that can leave its memory to training without being closed, and is sooner back than a new one."""

    def rest(self) -> None:
        """Hold as little memory as possible until something is asked or loaded."""
        ...


@runtime_checkable
class Sample(Protocol):
    """The one verb: rollouts from starts, scored and segmented, every sampled token counted."""

    @property
    def left(self) -> int | None: ...  # tokens that may still be sampled; None: no limit

    def __call__(self, starts: Sequence[Start], n: int) -> list[Group]:
        """A group of n trajectories for each start, in order; fewer or none once nothing is left."""
        ...


@runtime_checkable
class Estimator(Protocol):
    """Finds the critical step of each trajectory."""

    def __call__(
        self, trajectories: Sequence[Trajectory], sample: Sample, evidence: Evidence = ...
    ) -> list[StepScores]:
        """One result for each trajectory, in order. It may not depend on how a run splits its trajectories over calls,
        but for the rollouts of earlier calls, which are in `evidence`."""
        ...


@runtime_checkable
class OfflineMethod(Protocol):
    """Trains the policy on preference pairs."""

    trains_on: ClassVar[Literal["pairs"]]

    def update(self, pairs: Sequence[Pair], context: RoundContext = ...) -> dict[str, float]:
        """Train; the metrics. Where there is nothing to learn the model stays, and `skipped` is 1 in them."""
        ...

    def save(self, path: Path) -> None:
        """Write a checkpoint directory, whole or not at all."""
        ...


@runtime_checkable
class OnlineMethod(Protocol):
    """Trains the policy on groups of trajectories."""

    trains_on: ClassVar[Literal["groups"]]

    def update(self, groups: Sequence[Group], context: RoundContext = ...) -> dict[str, float]:
        """As `OfflineMethod.update`."""
        ...

    def save(self, path: Path) -> None:
        """As `OfflineMethod.save`."""
        ...


Method = OfflineMethod | OnlineMethod
