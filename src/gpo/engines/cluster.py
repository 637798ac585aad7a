"""Whether this process is part of a Ray cluster, and of which."""

from __future__ import annotations

import logging
import os
import socket
from dataclasses import dataclass
from typing import Any

from gpo.engines.streaming import needed
from gpo.errors import ConfigError, EngineError

REACHED = 10.0  # seconds in which the address of a cluster answers


@dataclass
class _Membership:
    """That of this process in a cluster."""

    pools: int = 0
    address: str | None = None
    ours: bool = False  # Ray was started, or joined, by us


_member = _Membership()


def join(address: str | None) -> None:
    """Be part of a cluster: the one that this process is in, that of the address, or one of this machine alone.

    Raises:
        ConfigError: the address is none, or not the one that other pools of this process have.
        EngineError: there is no cluster.
    """
    ray = ray_module()
    if not ray.is_initialized():
        _check_address(address)
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # as Ray will have it, and warns until then
        try:
            ray.init(address=address, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
            raise EngineError(
                f"There is no Ray cluster to join at {address or 'this machine'}: {first_line(error)}. Start one (ray "
                "start --head), name it (--engine.address HOST:PORT), or leave the address out to start one here."
            ) from error
        _member.address, _member.ours = address, True
    elif _member.ours and address not in (None, _member.address):
        raise ConfigError(
            f"This process is in the Ray cluster {_member.address or 'of this machine'}, got {address}. A process can "
            "be in one only: close the engines that use it."
        )
    _member.pools += 1


def leave() -> None:
    """The last pool stops what it has started."""
    _member.pools -= 1
    if not _member.pools and _member.ours:
        _member.ours = False
        ray_module().shutdown()


def _check_address(address: str | None) -> None:
    """Whether somebody listens there: Ray itself would try for minutes, and end the process."""
    if address is None or address in ("auto", "local"):
        return
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or "://" in address:
        raise ConfigError(
            f"{address!r} is no address of a Ray cluster. Give --engine.address HOST:PORT, as `ray start --head` says "
            "it, or auto on a machine of the cluster."
        )
    try:
        socket.create_connection((host, int(port)), REACHED).close()
    except OSError as error:
        raise EngineError(
            f"No Ray cluster answers at {address} ({first_line(error)}). Start it (ray start --head), or name another: "
            "--engine.address HOST:PORT."
        ) from error


def first_line(error: object) -> str:
    return (str(error).strip().split("\n")[0] or type(error).__name__).rstrip(".")


def ray_module() -> Any:
    return needed("ray", "ray")
