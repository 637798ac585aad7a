"""The rollout engine that has others do the work: one in each of several actors of Ray, on a machine or a cluster."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import Any, Self

from gpo.config.components import Spec, setting_types
from gpo.config.models import reference
from gpo.engines.actors import Piece, Pool
from gpo.engines.host import Facts
from gpo.engines.requests import check_temperature, token_limits
from gpo.engines.streaming import StreamingEngine
from gpo.engines.templates import with_arguments
from gpo.errors import ConfigError, EngineError
from gpo.images.tokenizer import text_tokenizer
from gpo.types import Completion, ModelRef, Request

ANY_TOKEN = 1 << 62  # the engine in the actor knows its vocabulary


@dataclass
class RayEngine(StreamingEngine):
    """Samples with engines in actors. The model is loaded there only; the tokenizer comes from one of them.

    Requests go out in pieces of neighbours, which share prefixes, and answers come back in any order. What an actor or
    a node takes with it is asked again, of another one.
    """

    model: Any = None  # of every actor: directory, hub id, ModelRef, or a loaded model, which is sent to each
    inner: Spec | str = "hf"  # the engine of an actor; its settings follow it, such as --engine.inner.dtype
    actors: int = 2
    tokenizer: Any = None  # object, directory or hub id; None: that of the engine in the actors
    address: str | None = None  # of a cluster: HOST:PORT, auto or local (its own); None: as Ray finds it
    cpus: float = 1.0  # of each actor
    gpus: float | None = None  # of each actor; None: one, where the cluster has any
    piece: int = 256  # rollouts, or sequences to score, that an actor is asked for at a time; a kill costs two of them
    patience: float = 600.0  # seconds to wait where no actor is left
    _pool: Pool | None = field(default=None, init=False, repr=False, compare=False)  # None: closed
    _ref: ModelRef | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name in ("actors", "piece", "patience"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} is {getattr(self, name)}, expected a number above 0.")
        for name in ("cpus", "gpus"):
            if (getattr(self, name) or 0) < 0:
                raise ConfigError(f"{name} is {getattr(self, name)}, expected a number of at least 0.")
        spec = self.inner if isinstance(self.inner, Spec) else Spec("engine", self.inner)
        known = setting_types(spec.check_settings())
        for name in ("model", "tokenizer"):
            if spec.settings.get(name) is not None:
                raise ConfigError(f"--engine.inner.{name} is the same for all actors. Give --engine.{name}.")
        if "model" in known and self.model is None:
            raise ConfigError("The engine has no model. Give model= a directory, a hub id or a loaded model.")
        first = {name: given for name in ("model", "tokenizer") if (given := getattr(self, name)) is not None}
        self._pool = Pool(spec, first, self.actors, self.address, self.cpus, self.gpus, self.patience)
        try:
            self._pool.wake()
            if self.tokenizer is None or isinstance(self.tokenizer, str):
                self.tokenizer = text_tokenizer(self._pool.tell("tokenizer"))
            self.tokenizer = with_arguments(self.tokenizer, spec.settings.get("chat_template_kwargs"))
            self._ref = reference(self.model) if "model" in known else self._pool.tell("model_ref")
        except BaseException:
            self.close()
            raise
        self.model = self._ref  # a copy that is made with the model of a run is no other engine then

    def __copy__(self) -> Self:
        """Another engine, which takes the actors over: this one starts its own when it is asked again."""
        twin = object.__new__(type(self))
        vars(twin).update(vars(self))
        if self._pool is not None:
            self._pool = self._pool.again()
        return twin

    def _open(self) -> Pool:
        """What a closed engine does not have."""
        if self._pool is None or self._ref is None:
            raise EngineError("The engine is closed or its model could not be loaded. Make a new one.")
        return self._pool

    def _facts(self) -> Facts:
        facts = self._open().facts
        assert facts is not None, "an engine that was made has asked an actor"
        return facts

    @property
    def trouble(self) -> Mapping[str, int]:
        """What was lost and asked again, by kind."""
        return Counter() if self._pool is None else Counter(self._pool.trouble)

    @property
    def context_length(self) -> int:
        """Tokens of prompt and response together."""
        return self._facts().context_length

    @property
    def stop_ids(self) -> frozenset[int]:
        """Tokens that end a response."""
        return self._facts().stop_ids

    @property
    def repeatable(self) -> bool:
        """As the engine in the actors says; on nodes of different kinds rounding differs all the same."""
        return self._facts().repeatable

    def stream(
        self, requests: Sequence[Request], *, temperature: float = 1.0, logprobs: bool = False
    ) -> Iterator[tuple[int, list[Completion]]]:
        """The position of each request and its completions, piece by piece.

        Raises:
            ConfigError, EngineError: as `generate`.
        """
        check_temperature(temperature)
        pool = self._open()
        token_limits(requests, context_length=self.context_length, vocabulary=ANY_TOKEN)
        settings = {"temperature": temperature, "logprobs": logprobs}
        pieces = [
            Piece(part.start, "generate", (requests[part.start : part.stop],), settings)
            for part in self._parts([request.n for request in requests])
        ]
        for piece, answers in pool.results(pieces) if pieces else ():
            yield from enumerate(answers, piece.begin)

    def logprobs(
        self, contexts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]], *, temperature: float = 1.0
    ) -> list[tuple[float, ...]]:
        """(T,) nats for each continuation.

        Raises:
            ConfigError: the temperature is negative or not finite.
            EngineError: a sequence cannot be scored, or is lost too often.
        """
        check_temperature(temperature)
        pool = self._open()
        if len(contexts) != len(continuations):
            raise EngineError(f"Got {len(contexts)} contexts and {len(continuations)} continuations; expected as many.")
        pieces = [
            Piece(
                part.start,
                "logprobs",
                (contexts[part.start : part.stop], continuations[part.start : part.stop]),
                {"temperature": temperature},
            )
            for part in self._parts([1] * len(contexts))
        ]
        found = {piece.begin: nats for piece, nats in pool.results(pieces)} if pieces else {}
        return [nats for begin in sorted(found) for nats in found[begin]]

    def _parts(self, sizes: Sequence[int]) -> list[range]:
        """Neighbours that are about as much work, at least one part for each actor; the same for the same sizes."""
        total = sum(sizes)
        parts = min(len(sizes), max(ceil(total / self.piece), self.actors))
        bounds, before = [0], 0
        for index, size in enumerate(sizes):
            if index > bounds[-1] and before + size / 2 > total * len(bounds) / parts:
                bounds.append(index)
            before += size
        return [range(begin, end) for begin, end in zip(bounds, [*bounds[1:], len(sizes)], strict=True)]

    def load(self, model: ModelRef) -> None:
        """Have every actor load the model; one that is started later loads it before it is asked.

        Raises:
            EngineError: an engine refuses it, or this one is closed.
        """
        pool = self._open()
        self._ref = None
        pool.load(model)
        self._ref = model

    def close(self) -> None:
        """End the actors, and Ray where it was started for them."""
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.rest()
