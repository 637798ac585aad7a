"""What engines have in common whose answers come one by one from elsewhere."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

from gpo.contracts import RemoteEngine
from gpo.errors import MissingDependency
from gpo.types import Completion, ModelRef, Request


class StreamingEngine(RemoteEngine):
    """Collects what `stream` tells."""

    _ref: ModelRef | None

    def _open(self) -> object:
        """Raises: EngineError if the engine is closed."""
        raise NotImplementedError

    @property
    def model_ref(self) -> ModelRef:
        """What is sampled from now."""
        self._open()
        assert self._ref is not None, "an open engine has a model"
        return self._ref

    def generate(
        self, requests: Sequence[Request], *, temperature: float = 1.0, logprobs: bool = False
    ) -> list[list[Completion]]:
        """`n` completions of each request, in order.

        Raises:
            ConfigError: the temperature is negative or not finite.
            EngineError: a request cannot be served, is lost too often, or is not answered as it should be.
        """
        found = dict(self.stream(requests, temperature=temperature, logprobs=logprobs))
        return [found[position] for position in range(len(requests))]


def counted(trouble: Mapping[str, int]) -> str:
    """Such as "3 time-out, 1 HTTP 503"."""
    return ", ".join(f"{count} {kind}" for kind, count in Counter(trouble).most_common())


def needed(module: str, extra: str) -> Any:
    """A module of an extra of GPO. Raises: MissingDependency if it is not installed."""
    try:
        return import_module(module)
    except ImportError as error:
        raise MissingDependency(f"{error}. The engine needs: pip install 'gpo[{extra}]'") from error
