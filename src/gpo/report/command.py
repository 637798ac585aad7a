"""`gpo report RUN`: write the page and the plots."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from gpo.errors import ConfigError
from gpo.report.compare import compare, in_common
from gpo.report.figures import inline_figures
from gpo.report.kinds import Kinds
from gpo.report.page import render
from gpo.report.plots import write_plots
from gpo.report.reading import Reading, read_run, read_searches
from gpo.report.results import summarize
from gpo.storage.directory import RunDirectory
from gpo.storage.files import refuse_folder, refuse_linked_folders, write_text
from gpo.types import DEFAULT_RUN


def main(arguments: Sequence[str] | None = None) -> int:
    """The command.

    Raises:
        ConfigError: this is no run directory, or it has no such arm.
        DataError: there is nothing to show, or nothing to compare with.
    """
    parser = argparse.ArgumentParser(
        prog="gpo report", description="Write what a run found as one HTML file that needs nothing else, and plots."
    )
    parser.add_argument("run", type=Path, nargs="?", default=DEFAULT_RUN, help=f"a run directory ({DEFAULT_RUN})")
    parser.add_argument("--compare", type=Path, metavar="BEFORE", help="a run on the same questions to compare with")
    parser.add_argument("--out", type=Path, help="the HTML file (default: RUN/report.html); plots/ is beside it")
    parser.add_argument("--arm", help="show this arm's search alone (default: every arm that searched)")
    parser.add_argument("--round", type=int, help="show this round alone (default: every round)")
    parser.add_argument("--trajectories", type=int, default=200, help="those with the largest advantages (200)")
    options = parser.parse_args(arguments)
    if options.trajectories < 1:
        raise ConfigError(f"--trajectories is {options.trajectories}; expected at least 1.")
    path = write_report(
        options.run, options.out, options.compare, options.arm, number=options.round, most=options.trajectories
    )
    print(f"{path} ({path.stat().st_size / 1e6:.1f} MB); plots in {path.parent / 'plots'}")
    return 0


def write_report(
    run: Path | str,
    out: Path | str | None = None,
    before: Path | str | None = None,
    arm: str | None = None,
    *,
    number: int | None = None,
    most: int = 200,
) -> Path:
    """Write the page of a run, and its plots into `plots/` beside it; the page's path.

    Args:
        before: another run on the same questions, to compare with; None compares later rounds of an arm with its first.
        arm: the one whose search is shown; None shows those of all.
        number: the round; None shows all.
        most: trajectories on the page.
    """
    files = RunDirectory(Path(run))
    readings = list(read_searches(files, arm, number))
    if before is None:
        earlier = first_rounds(readings)
    else:
        other = RunDirectory(Path(before))
        read = cache(lambda name: read_run(other, name))
        earlier = [read(reading.arm if reading.arm in other.arms() else None) for reading in readings]
    kinds = kinds_of(*readings, *(each for each in earlier if each is not None))
    comparisons = [
        None if old is None or (not in_common(old, new) and new is not readings[0]) else compare(old, new, kinds)
        for old, new in zip(earlier, readings, strict=True)
    ]
    results = summarize(files)
    page = render(readings, results, inline_figures(files, results), kinds, comparisons, most)
    path = files.path / "report.html" if out is None else Path(out)
    refuse_folder(path, "--out")
    refuse_linked_folders(path.parent)
    write_text(path, page)
    write_plots(files, results, path.parent / "plots")
    return path


def first_rounds(readings: Sequence[Reading]) -> list[Reading | None]:
    """For each search of a later round that of the arm's first; None without one, or without questions in common."""
    first: dict[str | None, Reading] = {reading.arm: reading for reading in readings if reading.number == 1}
    earlier: list[Reading | None] = []
    for reading in readings:
        if reading.number > 1 and reading.arm not in first:
            first[reading.arm] = read_run(reading.files, reading.arm, 1)
        old = first[reading.arm]
        useful = reading.number > 1 and old.arm is not None and in_common(old, reading)
        earlier.append(old if useful else None)
    return earlier


def kinds_of(*readings: Reading) -> Kinds:
    """Kinds of step with the names that occur in the questions and responses of some runs."""
    questions = [problem.question for reading in readings for problem in reading.problems.values()]
    texts = [t.completion.text for reading in readings for group in reading.first for t in group.trajectories]
    return Kinds([*questions, *texts])
