"""Units of work of a run, handed out to those that work side by side."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from threading import Condition
from typing import NamedTuple

from gpo.types import Stage


class Unit(NamedTuple):
    """A stage of an arm, or of the model before training."""

    stage: Stage
    name: str


@dataclass
class Schedule:
    """Hands out units in their order, each once those that it needs are done. May be asked by several threads."""

    units: Sequence[Unit]
    needs: Mapping[Unit, Iterable[Unit]]
    failure: BaseException | None = None
    _waiting: list[Unit] = field(init=False)
    _begun: set[Unit] = field(default_factory=set, init=False)
    _changed: Condition = field(default_factory=Condition, init=False)

    def __post_init__(self) -> None:
        self._waiting = list(self.units)

    def take(self) -> Unit | None:
        """The next one, as soon as there is one; None if none is left, or something has failed."""
        with self._changed:
            while self._waiting and self.failure is None:
                open_ = {*self._waiting, *self._begun}
                free = [unit for unit in self._waiting if open_.isdisjoint(self.needs.get(unit, ()))]
                if free or not self._begun:  # what needs itself says so when it is tried
                    unit = (free or self._waiting)[0]
                    self._waiting.remove(unit)
                    self._begun.add(unit)
                    return unit
                self._changed.wait()
            return None

    def done(self, unit: Unit) -> None:
        with self._changed:
            self._begun.remove(unit)
            self._changed.notify_all()

    def fail(self, error: BaseException) -> None:
        """Nothing is handed out from now on; the first failure counts, and none once all is done."""
        with self._changed:
            if self._waiting or self._begun:
                self.failure = self.failure or error
            self._changed.notify_all()

    def wait(self) -> None:
        """Until all is done.

        Raises:
            GPOError: what has failed elsewhere.
        """
        with self._changed:
            while (self._waiting or self._begun) and self.failure is None:
                self._changed.wait()
        self.check()

    def check(self) -> None:
        """Raises: what has failed elsewhere."""
        if self.failure is not None:
            raise self.failure
