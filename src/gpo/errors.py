"""Errors that users meet. A message says what, got, expected and the next action."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from typing import NamedTuple


class GPOError(Exception):
    """Base of every error that GPO raises on purpose."""


class ConfigError(GPOError, ValueError):
    """A setting that cannot be used."""


class DataError(GPOError, ValueError):
    """A file, row or text that cannot be used."""


class BrokenGrader(DataError):
    """Not one answer could be graded."""


class EngineError(GPOError, RuntimeError):
    """A model that cannot be loaded or that failed while generating."""


class MissingDependency(GPOError, ImportError):
    """An optional package that is not installed."""


class TryLater(GPOError):
    """Nothing is wrong with what was asked: the same command may succeed at another time."""


class DiskFull(DataError, TryLater):
    """There is no room where something is to be written."""


class ServerAway(EngineError, TryLater):
    """No server answers."""


class Refusal(NamedTuple):
    """An error of ours as another process tells it: some of them do not survive being pickled."""

    kind: str
    message: str

    @classmethod
    def of(cls, error: GPOError) -> Refusal:
        """Of the first of our own kinds that the error is."""
        kinds = (each.__name__ for each in type(error).__mro__ if globals().get(each.__name__) is each)
        return cls(next(kinds), str(error))

    def error(self) -> GPOError:
        found: GPOError = globals().get(self.kind, EngineError)(self.message)
        return found


def unknown(what: str, got: str, known: Iterable[str]) -> ConfigError:
    """The error for a name that is in no registry; it lists the known names and the nearest one."""
    names = sorted(known)
    near = get_close_matches(got, names, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return ConfigError(f"Unknown {what} {got!r}.{hint} Known: {', '.join(names)}.")


@contextmanager
def naming(component: str) -> Iterator[None]:
    """Turn what a component raises into an error of ours that names it, such as "The engine Mine"; ours pass through.

    Raises:
        EngineError: it broke.
    """
    try:
        yield
    except GPOError:
        raise
    except Exception as error:
        what = " ".join(str(error).split())[:500]
        raise EngineError(
            f"{component} failed: {type(error).__name__}{': ' * bool(what)}{what}. What was finished is kept. "
            "GPO_DEBUG=1 shows where."
        ) from error
