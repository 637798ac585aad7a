"""Code that a stored configuration names.

A run directory may come from somebody else. `module:Class` in its `config.json` is code that a command would import,
and `launch` is a program that it would start. Both are done where this user started the run with exactly this
configuration, where the command names them again, or where the user says so (`--trust`, or GPO_TRUST=1).
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from typing import Any

from gpo.errors import ConfigError


def foreign_code(stored: Mapping[str, Any]) -> set[str]:
    """What a stored configuration would run that is no part of GPO: every `module:Class`, and what starts training."""
    names = set(_names(stored))
    launch = {str(stored["launch"])} if stored.get("launch") else set()
    return launch | {name for name in names if ":" in name and not name.startswith("gpo.")}


def _names(settings: Mapping[str, Any]) -> Iterator[str]:
    """Of components, and of those that are settings of components."""
    if "name" in settings:
        yield str(settings["name"])
    for value in settings.values():
        if isinstance(value, Mapping):
            yield from _names(value)


def refuse_strangers(directory: Path, stored: Mapping[str, Any] | None, named: Collection[str] = ()) -> None:
    """Raises: ConfigError if a stored configuration names code that nobody here has asked for.

    Args:
        named: names that the command itself gives.
    """
    strange = foreign_code(stored or {}) - set(named)
    if strange and os.environ.get("GPO_TRUST") != "1" and _mark(directory) not in _known():
        raise ConfigError(
            f"{directory}/config.json names what is no part of GPO: {', '.join(sorted(strange))}. You have not started "
            "that run. If you trust whoever wrote it, add --trust (from Python: set GPO_TRUST=1)."
        )


def remember(directory: Path) -> None:
    """This user started a run with the configuration that is in its directory."""
    mark = _mark(directory)
    with suppress(OSError, RuntimeError):  # a home that cannot be written: the user will be asked for --trust
        if mark not in _known():
            _file().parent.mkdir(parents=True, exist_ok=True)
            with _file().open("a", encoding="utf-8") as file:
                file.write(mark + "\n")


def _mark(directory: Path) -> str:
    """Tells this place and what its configuration is."""
    path = (directory / "config.json").resolve()
    return blake2b(os.fsencode(path) + b"\n" + path.read_bytes(), digest_size=16).hexdigest()


def _known() -> set[str]:
    with suppress(OSError, RuntimeError):
        return set(_file().read_text(encoding="utf-8").split("\n"))
    return set()


def _file() -> Path:
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "gpo" / "started"
