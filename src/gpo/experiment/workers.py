"""Arms of a run side by side, in processes of one thread.

Two threads of one process are hardly faster than one on a small model; two processes are. The process of the command
is one of the workers and holds the run; it hands units of work to the others over a socket, notes what they have done
in the run directory, and shows it. A worker writes the files of its unit as the process of the command would, ends
with it, and until then keeps the directory held.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Lock, Thread
from typing import TYPE_CHECKING

import psutil

from gpo.config.components import main_name
from gpo.config.trust import foreign_code
from gpo.errors import ConfigError, EngineError
from gpo.experiment.schedule import Schedule, Unit

if TYPE_CHECKING:
    from gpo.experiment.run import Run

PATIENCE = 10.0  # seconds until a worker that has nothing left to do is killed
LEVELS = {logging.DEBUG: "debug", logging.INFO: "info", logging.ERROR: "error"}

log = logging.getLogger(__name__)


class Workers:
    """The processes beside that of the command. A context manager: they start with it and end with it."""

    def __init__(self, run: Run, count: int, units: Sequence[Unit], needs: Mapping[Unit, Iterable[Unit]]) -> None:
        self.run = run
        self.schedule = Schedule(units, needs)
        self._count = count - 1
        self._processes: list[subprocess.Popen[bytes]] = []
        self._threads: list[Thread] = []
        self._ready: set[int] = set()
        self._ends = ExitStack()

    def __enter__(self) -> Workers:
        if self._count:
            self._ends.callback(setattr, self.run, "teller", self.run.teller)
            self.run.teller = self.run.teller.one_by_one(Lock(), self.schedule.check)
            try:
                for number in range(1, self._count + 1):
                    self._start(number)
            except BaseException as error:
                self.__exit__(type(error), error, None)
                raise
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if error is not None:
            self.schedule.fail(error)
        for number, process in enumerate(self._processes, 1):
            if error is not None or number not in self._ready:
                _end(process)
        for thread in self._threads:
            thread.join()
        self._ends.close()

    def work(self) -> None:
        """Do what is left with the others.

        Raises:
            GPOError: what went wrong in any of them; the others have stopped.
        """
        with ExitStack() as stack:
            if self._count:
                from gpo.engines.threads import one_thread

                stack.enter_context(one_thread())
            while (unit := self.schedule.take()) is not None:
                self.run.do(unit)
                self.schedule.done(unit)
            self.schedule.wait()

    def _start(self, number: int) -> None:
        assert self.run._holding is not None, "whoever starts workers holds the run"
        ours, theirs = socket.socketpair()
        with theirs:
            descriptors = theirs.fileno(), self.run._holding.descriptor
            # What this process may import and was allowed to, that one is.
            environment = {
                **os.environ,
                **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1"),
                "PYTHONPATH": os.pathsep.join(sys.path),
                "GPO_TRUST": "1",
                "GPO_LOG": LEVELS.get(log.getEffectiveLevel(), "warning"),
            }
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "gpo", "worker", str(self.run.files.path), *map(str, descriptors)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=descriptors,
                env=environment,
            )
        self._processes.append(process)
        connection = Connection(ours.detach())
        thread = Thread(target=self._serve, args=(number, process, connection), daemon=True)
        self._threads.append(thread)
        thread.start()

    def _serve(self, number: int, process: subprocess.Popen[bytes], connection: Connection) -> None:
        """Give units to a worker and take what it says, until nothing is left."""
        unit: Unit | None = None
        try:
            with connection:
                connection.send(self.run.described)
                self._listen(number, connection)
                while (unit := self.schedule.take()) is not None:
                    connection.send(unit)
                    self._listen(number, connection)
                    self.schedule.done(unit)
                connection.send(None)
                self._wait(process)
        except (EOFError, ConnectionError):
            self._wait(process)
            process.kill()
            self.schedule.fail(EngineError(_lost(unit, process.wait())))
        except BaseException as error:
            self.schedule.fail(error)
        finally:
            process.kill()
            process.wait()

    def _listen(self, number: int, connection: Connection) -> None:
        """Until the worker is ready for another unit.

        Raises:
            EOFError: it is gone.
            GPOError: it has failed.
        """
        while True:
            kind, content = connection.recv()
            if kind == "progress":
                self.run.teller.show(content)
            elif kind == "piece":
                self.run.teller.log(*content, number)
            elif kind == "log":
                log.log(*content)
            elif kind == "refused":
                raise content.error()
            elif kind in ("ready", "done"):
                self._ready.add(number)
                self.run.memory_beside[number] = content
                return

    def _wait(self, process: subprocess.Popen[bytes]) -> None:
        with suppress(subprocess.TimeoutExpired):
            process.wait(PATIENCE)


def _lost(unit: Unit | None, code: int) -> str:
    """What to say of a worker that has gone without a word."""
    doing = "started" if unit is None else f"did {unit.stage} {unit.name}"
    hint = ", perhaps because the memory was full," if code == -signal.SIGKILL else ""
    how = f"by {signal.Signals(-code).name}{hint}" if code < 0 else f"with code {code}"
    return (
        f"A worker was ended {how} while it {doing}. What was finished is kept; the same command goes on. "
        "With --workers 1 all is done by one process."
    )


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill a worker, and end what it has launched, which is in a session of its own."""
    launched: list[psutil.Process] = []
    with suppress(psutil.Error):
        launched = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    for each in launched:
        with suppress(psutil.Error):
            each.terminate()


def count(run: Run, most: int) -> int:
    """How many workers a run has, that of the command included, at most so many.

    Raises:
        ConfigError: several are asked for, and its model or the class of a component is in this process alone.
    """
    config = run.config
    if config.workers is not None:
        wanted = config.workers
        if wanted > 1 and not isinstance(run.model.source, str | Path):
            raise ConfigError(
                f"{run.model.name} is for one process only. Save it and give its directory, or one worker."
            )
        program = f"{main_name()}:"
        here = [name for name in foreign_code(run.described) if name.startswith(program) or "<locals>" in name]
        if wanted > 1 and here:
            raise ConfigError(
                f"No other process can import {here[0]} without running this program again. Move it to a module of its "
                "own, or give one worker."
            )
    elif config.suits_workers and config.named and config.launch is None and not config.piece_seconds:
        from gpo.engines.threads import threads

        wanted = threads()
    else:
        return 1
    return max(1, min(wanted, most))
