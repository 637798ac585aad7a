"""`gpo annotate RUN`: serve the annotation pages."""

from __future__ import annotations

import argparse
import ipaddress
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gpo.annotate.items import load_items, with_checks
from gpo.annotate.marks import Marks
from gpo.errors import ConfigError, MissingDependency
from gpo.storage.directory import RunDirectory
from gpo.types import DEFAULT_RUN

if TYPE_CHECKING:
    from fastapi import FastAPI

LOOPBACK = ("127.0.0.1", "localhost", "[::1]")


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server on this address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def arguments_of(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Raises: ConfigError for numbers that make no sense."""
    parser = argparse.ArgumentParser(
        prog="gpo annotate", description="Let people mark the step that they find most critical, in a web page."
    )
    parser.add_argument(
        "run", nargs="?", default=DEFAULT_RUN, help=f"a run whose trajectories were searched ({DEFAULT_RUN})"
    )
    parser.add_argument("--items", type=int, default=20, help="solutions to mark")
    parser.add_argument("--arm", help="take the trajectories that this arm located (default: gpo)")
    parser.add_argument("--host", default="127.0.0.1", help="other than loopback takes --annotators")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--annotators", type=int, default=0, help="print this many new personal links")
    parser.add_argument("--seed", type=int, default=0, help="of the orders and of the attention checks")
    options = parser.parse_args(arguments)
    if options.items < 1 or options.annotators < 0 or not 0 <= options.port < 65536:
        raise ConfigError("Expected --items of at least 1, --annotators of at least 0 and a --port below 65536.")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; it serves until it is stopped.

    Raises:
        ConfigError: this is no run directory, or the server would be open to others without personal links.
        MissingDependency: the web server is not installed.
    """
    options = arguments_of(arguments)
    app, links = prepare(options)
    import uvicorn

    base = f"http://{'localhost' if options.host in ('0.0.0.0', '::') else in_url(options.host)}:{options.port}"
    print(f"Annotation pages: {base}/  (stop with Ctrl-C; every mark is kept in {marks_path(options.run)})")
    for link in links:
        print(f"  {base}/join/{link}")
    uvicorn.run(app, host=options.host, port=options.port, log_level="warning")
    return 0


def in_url(host: str) -> str:
    """A host as addresses in a browser have it: that of IPv6 in brackets."""
    return f"[{host}]" if ":" in host else host


def marks_path(run: Path | str) -> Path:
    """Where the marks of a run are."""
    return Path(run) / "annotations.sqlite"


def prepare(options: argparse.Namespace) -> tuple[FastAPI, list[str]]:
    """The app over a run's solutions, and the secrets of new personal links."""
    try:
        import uvicorn  # noqa: F401

        from gpo.annotate.app import make_app
    except ImportError as error:
        raise MissingDependency(f"{error}. The pages need: pip install 'gpo[annotate]'") from error
    files = RunDirectory(Path(options.run))
    files.config()
    items = with_checks(load_items(files, options.items, options.arm), options.seed)
    alone = is_loopback(options.host)
    marks = Marks(marks_path(options.run))
    marks.keep_checks({item.id: item.check for item in items if item.check is not None})
    links = [marks.join(f"link {number + 1}", invited=True) for number in range(options.annotators)]
    if not alone and not links and not marks.invited():
        raise ConfigError(
            f"--host {options.host} lets others in, and nobody has a personal link yet. Make some with --annotators 5."
        )
    open_to_all = alone and not marks.invited()
    hosts = (*LOOPBACK, in_url(options.host)) if alone else ("*",)
    app = make_app(marks, items, seed=options.seed, open_to_all=open_to_all, hosts=hosts)
    return app, links
