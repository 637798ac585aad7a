"""`gpo run`, its stages and `gpo results`: a command on a run directory, and what it shows."""

from __future__ import annotations

import os
import resource
import shlex
from collections.abc import Mapping
from pathlib import Path

from gpo.config.options import flag, resolve
from gpo.config.trust import refuse_strangers
from gpo.errors import ConfigError
from gpo.experiment.reuse import take_samples
from gpo.experiment.run import Run, report
from gpo.report.console import Console, say
from gpo.report.forecast import Forecast, dry_run
from gpo.report.progress import ProgressDisplay, print_results
from gpo.report.results import Results, summarize
from gpo.storage.directory import FOLDERS, RunDirectory, runs_in
from gpo.storage.lock import locked
from gpo.types import Stage


def work(name: str, directory: Path, options: dict[str, str]) -> None:
    """Do a command on a run directory and show what it does."""
    console = Console()
    arm, dry = options.pop("arm", None), flag(options, "dry-run")
    if dry and name != "run":
        raise ConfigError(f"--dry-run goes with gpo run, not with gpo {name}.")
    if arm is not None and name in ("run", "rollout", "results"):
        raise ConfigError(f"gpo {name} is for all arms. --arm goes with locate, reset, build, train and evaluate.")
    if name == "results":
        show_results(console, directory, options)
        return
    stored = RunDirectory(directory).config_or_none()
    if stored is None and not dry:
        _refuse_to_begin(directory, bare=name != "run" and not options)
    refuse_strangers(directory, stored, options.values())
    if dry:
        dry_run(console, directory, options, stored)
        return
    if (source := options.pop("samples", None)) is not None:
        if source.isdigit() and not Path(source).exists():
            raise ConfigError(
                f"--samples names a run whose samples are taken, got {source}. "
                f"Samples of each test question are --test_samples {source}, rollouts --rollouts {source}."
            )
        take_samples(Path(source), directory, options)
        stored = RunDirectory(directory).config()
    with ProgressDisplay(console) as display:
        run = Run(directory, resolve(options, stored))
        run.teller.on_progress = Forecast(display, console, run.foretell, run.config.rollouts)
        results = do(name, run, arm)
    if results is not None:
        print_results(console, results)
        print_places(console, run.files, run.memory_beside)


def show_results(console: Console, directory: Path, options: dict[str, str]) -> None:
    """Tables and plots of what a run directory holds. No component is made, so that no code of the run is run.

    Of one that cannot be written to the tables are shown, and nothing is written.

    Raises:
        ConfigError: it is no run directory, or an option is given.
    """
    if options:
        raise ConfigError(f"gpo results says what is in {directory} and has no options, got --{next(iter(options))}.")
    files = RunDirectory(directory)
    files.config()
    if os.access(directory, os.W_OK):
        with locked(directory):
            results = report(files)
    else:
        results = summarize(files)
    print_results(console, results)
    print_places(console, files)


def _refuse_to_begin(directory: Path, bare: bool) -> None:
    """Raises: ConfigError if a run cannot begin there: the folder is for something else, or nobody asked for one."""
    if inside := runs_in(directory):
        raise ConfigError(f"{directory} is no run. Runs are in it: {', '.join(inside[:5])}. Name one, or a new one.")
    if bare:
        raise ConfigError(f"There is no run {directory}. Start one with: gpo run {directory}, or give options for it.")
    folders = sorted(path.name for path in directory.glob("*/")) if directory.is_dir() else []
    if others := [name for name in folders if not name.startswith(".") and name not in FOLDERS]:
        told = ", ".join(others[:3])
        raise ConfigError(f"{directory} is no run and has folders of something else: {told}. Name another one.")


def do(name: str, run: Run, arm: str | None) -> Results | None:
    """Call a stage, for one arm or for all."""
    if name == "run":
        return run.all()
    if name == "rollout":
        run.rollout()
        return None
    if arm is None:
        run.every(Stage(name))
    else:
        getattr(run, name)(arm)
    return run.report() if name == "evaluate" else None


def print_places(console: Console, files: RunDirectory, beside: Mapping[int, int] | None = None) -> None:
    """Say where the files of a run are, and what it took.

    Args:
        beside: most memory that each other process of the run has held, in kB; None: no run has been at work.
    """
    path = files.path
    places = {
        "tables": ("table.md", "results.json"),
        "plots": tuple(f"plots/{plot.name}" for plot in sorted(files.plots.glob("*.png"))),
        "sampled": ("rollouts.jsonl", "arms/*/scores.jsonl", "arms/*/resets.jsonl", "evaluation/*.jsonl"),
        "trained": ("arms/*/pairs.jsonl", "arms/*/dataset/", "arms/*/model/", "arms/*/training.jsonl"),
        "settings": ("config.json",),
    }
    say(console, f"\nEverything is in {path}", whole=True)
    for what, names in places.items():
        if there := [name for name in names if next(path.glob(name), None) is not None]:
            say(console, f"  {what + ':':<10}{', '.join(there)}", whole=True)
    say(console, f"  {'to see:':<10}gpo report {shlex.quote(str(path))}", whole=True)
    if trouble := files.events.trouble():
        told = ", ".join(f"{count} {kind}" for kind, count in trouble.items())
        say(console, f"  {'trouble:':<10}{told}; asked again", whole=True)
    took = ", ".join(f"{stage} {seconds:.0f}" for stage, seconds in files.events.seconds().items())
    if beside is not None:
        memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss + sum(beside.values())) / 1e6
        took += f"; peak memory{f' of {len(beside) + 1} processes' if beside else ''} {memory:.1f} GB"
    say(console, f"  {'seconds:':<10}{took}", whole=True)
