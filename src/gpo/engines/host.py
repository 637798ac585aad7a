"""What runs in an actor: an engine, which answers for one version of its weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from gpo.config.components import Spec
from gpo.errors import GPOError, Refusal, naming
from gpo.types import ModelRef


class Facts(NamedTuple):
    """What an engine says of itself with its present weights."""

    context_length: int
    stop_ids: frozenset[int]
    repeatable: bool


class Host:
    """An engine in an actor. It answers for the weights that it was told to take last, and for no others."""

    def __init__(self) -> None:
        self._engine: Any = None
        self._version: int | None = None

    def take(self, engine: Spec, first: Mapping[str, Any], weights: ModelRef | None, version: int) -> Facts | Refusal:
        """Make the engine unless it is there, and load the weights unless they are the first ones (None)."""
        self._version = None
        try:
            with naming(f"The engine {engine.name}"):
                if self._engine is None:
                    self._engine = engine.make(**first)
                if weights is not None:
                    self._engine.load(weights)
                facts = Facts(self._engine.context_length, self._engine.stop_ids, self._engine.repeatable)
        except GPOError as error:
            return Refusal.of(error)
        self._version = version
        return facts

    def ask(self, version: int, method: str, arguments: tuple[Any, ...], settings: Mapping[str, Any]) -> Any:
        """What the engine answers."""
        if version != self._version:
            return Refusal("EngineError", f"An actor has version {self._version} of the weights, expected {version}.")
        try:
            with naming(f"The engine {type(self._engine).__name__}"):
                return getattr(self._engine, method)(*arguments, **settings)
        except GPOError as error:
            return Refusal.of(error)

    def tell(self, name: str) -> Any:
        """A property of the engine."""
        return getattr(self._engine, name)
