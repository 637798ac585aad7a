"""A worker beside the process of a command: does the units of a run that it is told to."""

from __future__ import annotations

import logging
import os
import resource
import signal
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue
from threading import Lock, Thread
from typing import TYPE_CHECKING, Any, NamedTuple

from gpo.errors import GPOError, Refusal
from gpo.storage.events import Progress

if TYPE_CHECKING:
    from gpo.experiment.run import Run


class Told(NamedTuple):
    """What a worker says, by kind: `ready`, `progress`, `piece`, `log`, `done` or `refused`."""

    kind: str
    content: Any = None


def main(arguments: Sequence[str]) -> int:
    """`gpo worker RUN DESCRIPTOR DESCRIPTOR`, which a run starts: a socket, and the file that holds the directory."""
    if len(arguments) != 3 or not all(text.isdigit() for text in arguments[1:]):
        print("Usage: gpo worker RUN DESCRIPTOR DESCRIPTOR\n\nA process of a run; --workers of gpo run starts it.")
        return 0 if "--help" in arguments else 2
    # The process of the command decides. With SIG_IGN all that is started from here would ignore the signals too.
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, lambda *_: None)
    directory, *descriptors = arguments
    channel, held = map(int, descriptors)
    os.set_inheritable(channel, False)
    with Connection(channel) as connection:
        _Worker(connection).work(directory, held)
    sys.stderr.flush()
    os._exit(0)  # taking down what libraries have built lasts a second, in which others wait for the directory


class _Worker:
    """The other end: does units one after the other, and is gone as soon as the process of the command is."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._lock = Lock()
        self._orders: SimpleQueue[Any] = SimpleQueue()

    def work(self, directory: str, held: int) -> None:
        Thread(target=self._follow, daemon=True).start()
        logger = logging.getLogger("gpo")
        logger.handlers = [_Logged(self._tell)]
        try:
            run = self._run(directory, self._orders.get())
            with run.joined(held):
                self._tell("ready", _memory())
                while (unit := self._orders.get()) is not None:
                    run.do(unit)
                    self._tell("done", _memory())
                run.engine.release()
        except Exception as error:
            if os.environ.get("GPO_DEBUG"):
                traceback.print_exc()
            self._tell("refused", _refusal(error))

    def _follow(self) -> None:
        """Orders as they come. Without whoever gives them there is nothing to do, and nobody may write after them."""
        while True:
            try:
                self._orders.put(self._connection.recv())
            except (EOFError, OSError):
                os._exit(1)

    def _run(self, directory: str, described: dict[str, Any]) -> Run:
        from gpo.config.options import resolve
        from gpo.experiment.run import Run

        run = Run(directory, resolve({}, described), on_progress=lambda progress: self._tell("progress", progress))
        run.teller.log = self._note
        run.engine()
        return run

    def _note(self, progress: Progress, trouble: Counter[str], policy: str | None) -> None:
        self._tell("piece", (progress, trouble, policy))

    def _tell(self, kind: str, content: Any = None) -> None:
        with self._lock, suppress(OSError):  # whoever listens is gone, and so is this process soon
            self._connection.send(Told(kind, content))


class _Logged(logging.Handler):
    """Hands messages to the process of the command, which shows them."""

    def __init__(self, tell: Callable[[str, Any], None]) -> None:
        super().__init__()
        self._said = tell

    def emit(self, record: logging.LogRecord) -> None:
        self._said("log", (record.levelno, record.getMessage()))


def _refusal(error: Exception) -> Refusal:
    if isinstance(error, GPOError):
        return Refusal.of(error)
    text = " ".join(str(error).split()) or type(error).__name__
    return Refusal("EngineError", f"{text} ({type(error).__name__}; GPO_DEBUG=1 shows where)")


def _memory() -> int:
    """Most that this process has held so far, in kB."""
    with suppress(OSError, StopIteration):  # where there is no /proc, what the process that started it held counts too
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
