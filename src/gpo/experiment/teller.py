"""What a run says of its progress: to its log once a piece of work is finished, to whoever watches in between."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from threading import Lock
from typing import Any

from gpo.storage.events import Partial, Progress
from gpo.types import Stage


@dataclass
class Teller:
    """Tells of one piece of work at a time."""

    log: Callable[..., None]  # `Events.log`, or what hands on to it
    on_progress: Callable[[Progress], None] | None = None
    disturbed: Callable[[], None] | None = None  # raises once this process shall not go on
    _partial: Partial | None = field(default=None, init=False)
    _began: float = field(default=0.0, init=False)

    def one_by_one(self, lock: Lock, disturbed: Callable[[], None]) -> Teller:
        """The same for several threads, one of which does pieces of its own."""

        def alone(call: Callable[..., None]) -> Callable[..., None]:
            def called(*arguments: Any) -> None:
                with lock:
                    call(*arguments)

            return called

        shown = None if self.on_progress is None else alone(self.on_progress)
        return Teller(alone(self.log), shown, disturbed)

    def begin(self, partial: Partial, *, show: bool) -> None:
        """A piece begins.

        Args:
            show: tell so: it may be long until there is more to tell.
        """
        self._began, self._partial = time.monotonic(), partial
        if show:
            self.show(partial)

    def sampled(self, done: int, wanted: int, tokens: int, seconds: float) -> None:
        """Some rollouts of the piece are there; those to come are expected to be as long."""
        if self.on_progress is None or self._partial is None:
            return
        known = self._partial
        told = known.tokens + tokens
        # A search asks many times for a piece, and nobody knows how often.
        expected = 0 if known.stage == Stage.LOCATE else round(told * wanted / done)
        self._partial = replace(known, tokens=told, seconds=round(known.seconds + seconds, 3), expected=expected)
        if done < wanted:
            self.show(self._partial)

    def step(self, stage: Stage, label: str | None, done: int, total: int, unit: str) -> None:
        """A part of a piece is done that samples nothing."""
        self._check()
        self.show(Progress(stage, label, done, total, unit, 0, 0.0))

    def end(
        self, done: int, total: int, unit: str, tokens: int, trouble: Counter[str], policy: str | None = None
    ) -> None:
        """The piece is finished and written: note it."""
        assert self._partial is not None, "a piece ends that has begun"
        took = round(time.monotonic() - self._began, 3)
        progress = Progress(self._partial.stage, self._partial.arm, done, total, unit, tokens, took)
        self.log(progress, trouble, policy)
        self.show(progress)
        self._check()

    def show(self, progress: Progress) -> None:
        """To whoever watches, if anybody does."""
        if self.on_progress is not None:
            self.on_progress(progress)

    def _check(self) -> None:
        if self.disturbed is not None:
            self.disturbed()
