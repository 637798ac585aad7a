"""Arms of a run side by side, in processes of one thread.

Two threads of one process are hardly faster than one on a small model; two processes are. The process of the command
is one of the workers and holds the run; it hands units of work to the others over a socket, notes what they have done
in the run directory, and shows it. A worker writes the files of its unit as the process of the command would, ends
with it, and until then keeps the directory held.
"""

from __future__ import annotations

import logging
import os
import resource
import signal
import socket
import subprocess
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue
from threading import Condition, Lock, Thread
from typing import TYPE_CHECKING, Any, NamedTuple

from gpo.errors import ConfigError, EngineError, GPOError, Refusal
from gpo.storage.directory import Progress
from gpo.types import Stage

if TYPE_CHECKING:
    from gpo.experiment.run import Run

PATIENCE = 10.0  # seconds until a worker that has nothing left to do is killed
LEVELS = {logging.DEBUG: "debug", logging.INFO: "info", logging.ERROR: "error"}

log = logging.getLogger(__name__)


class Unit(NamedTuple):
    """A stage of an arm, or of the model before training."""

    stage: Stage
    name: str


class Told(NamedTuple):
    """What a worker says, by kind: `ready`, `progress`, `piece`, `log`, `done` or `refused`."""

    kind: str
    content: Any = None


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
        self._lock = Lock()  # of what is noted and shown

    def __enter__(self) -> Workers:
        if self._count:
            tell = self.run.on_progress
            if tell is not None:
                self.run.on_progress = self._one_by_one(tell)
            self.run._log = self._one_by_one(self.run._log)
            self.run._disturbed = self.schedule.check
            self._ends.callback(self._put_back, tell)
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
                process.kill()
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

    def _one_by_one(self, call: Callable[..., None]) -> Callable[..., None]:
        def called(*arguments: Any) -> None:
            with self._lock:
                call(*arguments)

        return called

    def _put_back(self, tell: Callable[[Progress], None] | None) -> None:
        self.run.on_progress, self.run._log, self.run._disturbed = tell, self.run.files.log, None

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
            if kind == "progress" and self.run.on_progress is not None:
                self.run.on_progress(content)
            elif kind == "piece":
                self.run._log(*content, number)
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


def count(run: Run, most: int) -> int:
    """How many workers a run has, that of the command included, at most so many.

    Raises:
        ConfigError: several are asked for, and its model is in the memory of this process.
    """
    config = run.config
    if config.workers is not None:
        wanted = config.workers
        if wanted > 1 and not isinstance(run.model.source, str | Path):
            raise ConfigError(
                f"{run.model.name} is for one process only. Save it and give its directory, or one worker."
            )
    elif config.suits_workers and config.named and config.launch is None and not config.piece_seconds:
        from gpo.engines.threads import threads

        wanted = threads()
    else:
        return 1
    return max(1, min(wanted, most))


def main(arguments: Sequence[str]) -> int:
    """`gpo worker RUN DESCRIPTOR DESCRIPTOR`, which a run starts: a socket, and the file that holds the directory."""
    if len(arguments) != 3 or not all(text.isdigit() for text in arguments[1:]):
        print("Usage: gpo worker RUN DESCRIPTOR DESCRIPTOR\n\nA process of a run; --workers of gpo run starts it.")
        return 0 if "--help" in arguments else 2
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process of the command decides
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
                run.release_engine()
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
        run._log = self._note
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
