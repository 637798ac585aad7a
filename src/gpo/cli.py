"""The command `gpo`."""

from __future__ import annotations

import logging
import os
import shlex
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from importlib import import_module
from io import TextIOWrapper
from pathlib import Path
from threading import current_thread, main_thread

from gpo.engines.allocation import keep_freed_memory
from gpo.errors import ConfigError, DataError, GPOError, TryLater, unknown
from gpo.report.clean import visible
from gpo.types import DEFAULT_RUN

STAGES = {
    "rollout": "sample trajectories from the training questions",
    "locate": "search trajectories for their critical steps",
    "reset": "sample again from the critical steps",
    "build": "build preference pairs",
    "train": "train a model for each arm",
    "evaluate": "sample the test questions with every model",
}
COMMANDS = {
    "run": "all of the following, then tables and plots",
    **STAGES,
    "results": "tables and plots of what is there",
}
# Commands with arguments of their own: "module:function", which takes them and returns the exit code; and what it does.
PROGRAMS = {
    "advise": ("gpo.advice.command:main", "what a run would take and which arm to choose, from a pilot"),
    "agreement": ("gpo.annotate.agree:main", "how often people chose the step that the search chose"),
    "annotate": ("gpo.annotate.serve:main", "a web page where people mark the step that they find most critical"),
    "compare": ("gpo.suites.command:main", "a suite of runs, and what their arms differ by"),
    "pretrain": ("gpo.reasoner.pretrain:main", "train the embedded reasoner from scratch"),
    "report": ("gpo.report.command:main", "everything that a run found as one HTML file, and plots"),
    "states": (
        "gpo.report.states:main",
        "hidden states at every step boundary, with texts and values, for other tools",
    ),
    "traces": (
        "gpo.experiment.traces:main",
        "solutions that somebody else wrote, as the trajectories of a run to be searched",
    ),
}
HIDDEN = {
    "train-round": ("gpo.experiment.training:main", "training of a round in a process of its own"),
    "worker": ("gpo.experiment.worker:main", "a process beside that of a command"),
}

LOCATE_OPTIONS = {
    "--show ID": "a searched trajectory of the run, by its id or a part of it",
    "--question TEXT": "sample an answer to a question and search it; TEXT may be the id of a question of the run",
    "--answer TEXT": "the right answer; else that of most of 16 samples",
    "--task NAME": "how to ask and grade; else by the model",
    "--estimator NAME": "how to search it; else what lost or won the answer",
    "--watch": "show values while the model writes, from a critic that the run's rollouts teach: no sampling",
}
USAGE = f"""Usage: gpo COMMAND [RUN] [--OPTION VALUE]...

Guided Pivotal Optimization: find the critical step of a reasoning trajectory,
reset there, train on it.

RUN is the run directory, {DEFAULT_RUN} if none is given. Every command goes on where
the run was left, with the options that the run was started with, and does what
is missing before it.
"""
OPTIONS = {
    "--task NAME": "what to reason about; the embedded reasoner's task if none is given",
    "--model PATH": "directory or hub id of a causal language model; the embedded reasoner if none is given",
    "--data FOLDER": "where data sets are (also: the environment variable GPO_DATA)",
    "--samples RUN": "a new run on what another one has sampled, such as --samples RUN --method kto",
    "--arm NAME": "only this arm (locate to evaluate; evaluate also knows `base`)",
    "--COMPONENT NAME": "engine, method, segmenter or estimator, or module:Class of your own",
    "--COMPONENT.FIELD X": "a setting of a component, such as --estimator.rollouts 8 or --method.beta 0.1",
    "--dry-run": "of gpo run: look at a prompt and some responses, say how long it takes, write nothing",
    "--trust": "run code that the config.json of somebody else's run names",
    "--verbose": "say more on what is done (also: GPO_LOG=info)",
    "--help": "after a command: its options, and the settings of the components named beside it",
    "--version": "the version of GPO",
}


STOPS = (signal.SIGTERM, signal.SIGHUP)  # of schedulers, and of a terminal that closes


class Stopped(KeyboardInterrupt):
    """One of `STOPS` came; its number is the argument."""


@contextmanager
def stopping() -> Iterator[None]:
    """Raise `Stopped` for those of `STOPS` that would end the process, once: a terminal that closes says so twice."""
    ours: list[signal.Signals] = []

    def stop(number: int, _: object) -> None:
        for each in ours:
            signal.signal(each, lambda *_: None)
        raise Stopped(number)

    if current_thread() is main_thread():
        ours += [each for each in STOPS if signal.getsignal(each) == signal.SIG_DFL]  # under nohup not SIGHUP
    try:
        for each in ours:
            signal.signal(each, stop)
        yield
    finally:
        for each in ours:
            signal.signal(each, signal.SIG_DFL)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line; the exit code.

    0, 1 (failed), 2 (wrongly asked), 75 (may succeed at another time: another process works there, no server answers,
    no room), 129 (SIGHUP), 130 (Ctrl-C), 141 (no reader left) or 143 (SIGTERM).
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="gpo")  # nothing that is printed is an error: see gpo.report.clean
    debug = bool(os.environ.get("GPO_DEBUG"))
    if not debug:
        quiet()
    try:
        # What a command has started has nothing to say, and ends at once.
        with nullcontext() if HIDDEN.keys() & set(arguments[:1]) else stopping():
            return command(arguments)
    except KeyboardInterrupt as stop:
        with suppress(OSError):  # the terminal may be gone
            print("\nStopped. What is finished is kept; the same command goes on from there:", file=sys.stderr)
            print(f"  gpo {shlex.join(arguments)}", file=sys.stderr)
        return 128 + int(stop.args[0] if isinstance(stop, Stopped) else signal.SIGINT)
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        if debug:
            raise
        known = isinstance(error, GPOError | OSError)
        text = visible(" ".join(str(error).split())) or type(error).__name__
        advice = "" if known else f" ({type(error).__name__}; GPO_DEBUG=1 shows where)"
        print(f"gpo: {text}{advice}", file=sys.stderr)
        if isinstance(error, TryLater):
            return os.EX_TEMPFAIL
        return 2 if isinstance(error, ConfigError | DataError) else 1


def quiet() -> None:
    """Keep the messages of libraries off the progress display, and freed memory with the process."""
    keep_freed_memory()
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.simplefilter("ignore")


def command(arguments: Sequence[str]) -> int:
    """Raises: ConfigError for a command line that cannot be understood, and whatever the command raises."""
    arguments = list(arguments)
    if take_flag(arguments, "trust"):
        os.environ["GPO_TRUST"] = "1"
    start_logging("info" if take_flag(arguments, "verbose") else os.environ.get("GPO_LOG") or "warning")
    if arguments and arguments[0] in PROGRAMS | HIDDEN:
        module, _, function = (PROGRAMS | HIDDEN)[arguments[0]][0].partition(":")
        code: int = getattr(import_module(module), function)(arguments[1:])
        return code
    from gpo.config.options import split, take_data_folder

    names, options = split(arguments)
    if "version" in options:
        from gpo import __version__

        print(__version__)
        return 0
    if not names or names[0] == "help":
        print(usage())
        return 0 if "help" in options or names else 2
    name, *rest = names
    if name not in COMMANDS:
        raise unknown("command", name, [*COMMANDS, *PROGRAMS])
    if "help" in options:
        print(help_text(name, options))
        return 0
    if len(rest) > 1:
        raise ConfigError(f"One directory is expected, got {len(rest)}: {' '.join(rest)}.")
    take_data_folder(options)
    directory = Path(rest[0]) if rest else None
    if name == "evaluate" and (options.keys() & {"models", "harness"} or (directory and holds_evaluation(directory))):
        from gpo.evaluation.command import DEFAULT, evaluate_models

        evaluate_models(directory or DEFAULT, options)
    elif name == "locate" and options.keys() & {"show", "question", "watch"}:
        from gpo.report.closeup import close_up

        close_up(directory, options)
    else:
        from gpo.experiment.command import work

        work(name, directory or Path(DEFAULT_RUN), options)
    return 0


def holds_evaluation(directory: Path) -> bool:
    from gpo.evaluation.evaluation import is_evaluation

    return is_evaluation(directory)


def take_flag(arguments: list[str], name: str) -> bool:
    """Whether a flag that every command knows is given; it is taken out of the arguments."""
    given = False
    while at := next((i for i, word in enumerate(arguments, 1) if word.partition("=")[0] == f"--{name}"), 0):
        value = arguments.pop(at - 1).partition("=")[2]
        if not value and at <= len(arguments) and arguments[at - 1].lower() in ("true", "false"):
            value = arguments.pop(at - 1)
        if value.lower() not in ("", "true", "false"):
            raise ConfigError(f"--{name} is {value!r}, expected true or false.")
        given = value.lower() != "false"
    return given


class Lines(logging.Handler):
    """A line on standard error for each message, as that is when it comes: a progress display takes its place."""

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        text = record.getMessage() if error is None else f"{record.getMessage()}: {type(error).__name__}: {error}"
        print("gpo:", visible(" ".join(text.split())), file=sys.stderr)


def start_logging(level: str) -> None:
    """What the package has to say is said; libraries stay quiet.

    Raises:
        ConfigError: there is no such level.
    """
    levels = ("debug", "info", "warning", "error")
    if level.lower() not in levels:
        raise unknown("level in GPO_LOG", level, levels)
    logger = logging.getLogger("gpo")
    logger.handlers = [Lines()]
    logger.setLevel(level.upper())


def usage() -> str:
    """What `gpo --help` says."""
    from gpo.config.help import entries

    programs = {name: what for name, (_, what) in PROGRAMS.items()}
    parts = {"Commands:": COMMANDS, "With options of their own (--help shows them):": programs, "Options:": OPTIONS}
    return "\n".join([USAGE, *("\n".join([title, *entries(items), ""]) for title, items in parts.items())])


def help_text(name: str, options: dict[str, str]) -> str:
    """The options of a command, and the settings of the components that are named in `options`."""
    from gpo.config.help import entries, options_text

    parts = [f"gpo {name} [RUN]: {COMMANDS[name]}", "", options_text(name, options)]
    if name == "locate":
        parts += ["", "One trajectory in place of a run's search:", *entries(LOCATE_OPTIONS)]
    if name == "evaluate":
        from gpo.evaluation.command import evaluate_help

        parts += evaluate_help()
    return "\n".join(parts)
