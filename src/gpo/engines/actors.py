"""Actors of Ray that answer the same: pieces of work spread over them, and what is lost with one of them done again.

An actor is never started again by Ray, which would give it the first weights: a new one is made, and takes the present
ones before it is asked. Actors that find no room wait for a node, while the others work.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from gpo.config.components import Spec
from gpo.engines.cluster import first_line, join, leave, ray_module
from gpo.engines.host import Facts, Host
from gpo.engines.streaming import counted
from gpo.errors import EngineError, Refusal
from gpo.types import ModelRef

log = logging.getLogger(__name__)

IN_FLIGHT = 2  # pieces of an actor: one that is computed, and one that is there when it is done
TRIES = 4  # of a piece, and to start an actor
GLANCE = 5.0  # seconds between two looks at actors that cannot start


class Piece(NamedTuple):
    """A call of the engine's method; `begin` tells it from others of the same time."""

    begin: int
    method: str
    arguments: tuple[Any, ...]
    settings: Mapping[str, Any]


@dataclass(eq=False)
class Place:
    """One of the actors that there should be."""

    actor: Any = None  # None: given up
    taking: Any = None  # reference to what it will say of its weights; None: it has them
    running: bool = False  # its process is there
    pieces: int = 0  # in flight
    failures: int = 0  # starts in a row that came to nothing

    @property
    def ready(self) -> bool:
        return self.actor is not None and self.taking is None


@dataclass(eq=False)
class Pool:
    """Starts actors when something is asked, and ends them with `rest`."""

    engine: Spec
    first: Mapping[str, Any]  # what the engine of an actor is made with, beside its settings
    count: int
    address: str | None  # of the cluster, as `ray.init` takes it
    cpus: float  # of each actor
    gpus: float | None  # of each actor; None: one, where the cluster has any
    patience: float  # seconds without any actor
    weights: ModelRef | None = None  # None: those that the engine is made with
    version: int = 0
    facts: Facts | None = None  # None until an actor was there
    trouble: Counter[str] = field(default_factory=Counter)  # what was lost and done again, by kind
    _places: list[Place] = field(default_factory=list)

    def wake(self) -> None:
        """Start the actors that are not there, and wait until one of them is ready.

        Raises:
            GPOError: an engine refuses its settings or its weights, or no actor can start.
        """
        if not self._places:
            join(self.address)
            self._places = [Place() for _ in range(self.count)]
            self._warn_of_little_room()
        for place in self._places:
            if place.actor is None:
                place.failures = 0
                self._start(place)
        since = time.monotonic()
        while not any(place.ready for place in self._places):
            self._finished(())
            self._check_patience(since)

    def again(self) -> Pool:
        """Another one with the same weights, whose actors are not started yet."""
        return replace(self, trouble=Counter(), _places=[])

    def rest(self) -> None:
        """End the actors; the next call starts others."""
        places, self._places = self._places, []
        if places:
            for place in places:
                _kill(place.actor)
            leave()

    def load(self, weights: ModelRef) -> None:
        """Have every actor take other weights; those that wait for room take them when they start.

        Raises:
            GPOError: an engine refuses them, or no actor can start.
        """
        self.weights, self.version = weights, self.version + 1
        for place in self._places:
            if place.running and place.actor is not None:
                self._take(place)
            elif place.actor is not None:
                self._start(place)
        while any(place.running and place.taking is not None for place in self._places):
            self._finished(())
        self.wake()

    def tell(self, name: str) -> Any:
        """A property of the engine, as one of the actors has it."""
        for _ in range(TRIES):
            self.wake()
            place = next(place for place in self._places if place.ready)
            answer = self._answer(place.actor.tell.remote(name), place, place.actor)
            if answer is not None:
                return answer
        raise EngineError(f"{TRIES} actors were lost when they were asked for their {name} ({counted(self.trouble)}).")

    def results(self, pieces: Iterable[Piece]) -> Iterator[tuple[Piece, Any]]:
        """Each piece with its answer, as they come.

        No more than `IN_FLIGHT` pieces of each actor are asked for before an answer is taken.

        Raises:
            GPOError: an engine refuses; or a piece is lost too often, or all actors are.
        """
        ray, waiting, tries = ray_module(), deque(pieces), Counter[int]()
        asked: dict[Any, tuple[Place, Any, Piece]] = {}
        self.wake()
        since = time.monotonic()
        try:
            while waiting or asked:
                while waiting and (place := self._free()) is not None:
                    piece = waiting.popleft()
                    place.pieces += 1
                    asked[place.actor.ask.remote(self.version, *piece[1:])] = (place, place.actor, piece)
                for reference in self._finished(asked):
                    place, actor, piece = asked.pop(reference)
                    place.pieces -= place.actor is actor
                    answer = self._answer(reference, place, actor)
                    if answer is not None:
                        yield piece, answer
                        continue
                    tries[piece.begin] += 1
                    if tries[piece.begin] == TRIES:
                        raise EngineError(
                            f"A piece of work was lost {TRIES} times, with the actors that it was given to "
                            f"({counted(self.trouble)}). What is finished is kept. Is there enough memory for an "
                            "actor? Ask for less at a time (--engine.piece), then give the same command again."
                        )
                    waiting.appendleft(piece)
                since = time.monotonic() if any(place.ready for place in self._places) else since
                self._check_patience(since)
        finally:
            for reference, (place, actor, _) in asked.items():
                place.pieces -= place.actor is actor
                with suppress(ray.exceptions.RayError, TypeError, ValueError):
                    ray.cancel(reference)

    def _free(self) -> Place | None:
        """The actor with the least to do that takes another piece."""
        found = [place for place in self._places if place.ready and place.pieces < IN_FLIGHT]
        return min(found, key=lambda place: place.pieces, default=None)

    def _finished(self, asked: Collection[Any]) -> list[Any]:
        """Wait for something; the references of pieces that are finished. What actors say of weights is noted."""
        taking = {place.taking: place for place in self._places if place.taking is not None}
        done, _ = ray_module().wait([*taking, *asked], num_returns=1, timeout=GLANCE)
        for reference in done:
            if (place := taking.get(reference)) is not None:
                facts = self._answer(reference, place, place.actor, starts=True)
                if facts is not None:
                    self.facts, place.taking, place.running, place.failures = facts, None, True, 0
        return [reference for reference in done if reference in asked]

    def _answer(self, reference: Any, place: Place, actor: Any, *, starts: bool = False) -> Any:
        """What a reference holds; None if it is lost, and with it the actor if that is why, or if it was starting.

        Raises:
            GPOError: it is a refusal, or the last actor is lost.
        """
        ray = ray_module()
        try:
            answer = ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            raise EngineError(f"An actor failed: {first_line(error.cause)}. Its log is in Ray's folder.") from error
        except ray.exceptions.RayError as error:
            self.trouble[_named(error)] += 1
            if place.actor is actor and (starts or isinstance(error, ray.exceptions.RayActorError)):
                place.failures += starts
                self._replace(place, error)
            return None
        if isinstance(answer, Refusal):
            raise answer.error()
        return answer

    def _replace(self, place: Place, error: Exception) -> None:
        """Another actor for one that is lost.

        Raises:
            EngineError: it was the last one, and has failed to start too often.
        """
        if place.failures < TRIES:
            self._start(place)
            return
        _kill(place.actor)
        place.actor = place.taking = None
        place.running = False
        why = f"An actor was lost {TRIES} times while it started, last: {first_line(error)}."
        if all(other.actor is None for other in self._places):
            raise EngineError(f"{why} No other is left. What is finished is kept. Look at the cluster (ray status).")
        log.warning("%s It is not started again; the others go on.", why)

    def _start(self, place: Place) -> None:
        """A new actor in place of what is there. Where there is no room it waits."""
        _kill(place.actor)
        options = {"num_cpus": self.cpus, "num_gpus": self._gpus(), "max_restarts": 0, "scheduling_strategy": "SPREAD"}
        place.actor = ray_module().remote(Host).options(**options).remote()
        place.running, place.pieces = False, 0
        self._take(place)

    def _take(self, place: Place) -> None:
        place.taking = place.actor.take.remote(self.engine, self.first, self.weights, self.version)

    def _gpus(self) -> float:
        return float(ray_module().cluster_resources().get("GPU", 0) >= 1) if self.gpus is None else self.gpus

    def _needs(self) -> dict[str, float]:
        return {name: need for name, need in (("CPU", self.cpus), ("GPU", self._gpus())) if need}

    def _warn_of_little_room(self) -> None:
        found = ray_module().cluster_resources()
        room = min((int(found.get(name, 0) / need) for name, need in self._needs().items()), default=self.count)
        if room < self.count:
            log.warning(
                "The cluster has room for %d of %d actors (each takes %s); the others wait for some.",
                *(room, self.count, _shown(self._needs())),
            )

    def _check_patience(self, since: float) -> None:
        if time.monotonic() - since > self.patience:
            found = {
                name: amount for name, amount in ray_module().cluster_resources().items() if name in ("CPU", "GPU")
            }
            raise EngineError(
                f"No actor could start for {self.patience:g} s. Each takes {_shown(self._needs())}; the "
                f"cluster has {_shown(found) or 'nothing'} in all. What is finished is kept. Ask for less "
                "(--engine.cpus, --engine.gpus), or add a node, then give the same command again."
            )


def _kill(actor: Any) -> None:
    if actor is not None and ray_module().is_initialized():
        ray_module().kill(actor)


def _named(error: Exception) -> str:
    """Such as "actor died", of ActorDiedError."""
    words = "".join(f" {c.lower()}" if c.isupper() else c for c in type(error).__name__.removesuffix("Error"))
    return words.strip()


def _shown(resources: Mapping[str, float]) -> str:
    return " and ".join(f"{amount:g} {name}" for name, amount in sorted(resources.items()))
