"""`gpo report RUN`: write the page and the plots."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from gpo.directory import RunDirectory
from gpo.errors import ConfigError
from gpo.plots import write_plots
from gpo.report.compare import compare, in_common
from gpo.report.figures import inline_figures
from gpo.report.kinds import Kinds
from gpo.report.page import render
from gpo.report.reading import Reading, read_run
from gpo.results import summarize
from gpo.store import write_text


def main(arguments: Sequence[str] | None = None) -> int:
    """The command.

    Raises:
        ConfigError: this is no run directory, or it has no such arm.
        DataError: there is nothing to show, or nothing to compare with.
    """
    parser = argparse.ArgumentParser(
        prog="gpo report", description="Write what a run found as one HTML file that needs nothing else, and plots."
    )
    parser.add_argument("run", type=Path, help="a run directory")
    parser.add_argument("--compare", type=Path, metavar="BEFORE", help="a run on the same questions to compare with")
    parser.add_argument("--out", type=Path, help="the HTML file (default: RUN/report.html); plots/ is beside it")
    parser.add_argument("--arm", help="the arm whose search is shown (default: gpo, else the first that searched)")
    parser.add_argument("--round", type=int, help="the round that is shown, beside the first one (default: the last)")
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
    run: Path,
    out: Path | None = None,
    before: Path | None = None,
    arm: str | None = None,
    *,
    number: int | None = None,
    most: int = 200,
) -> Path:
    """Write the page of a run, and its plots into `plots/` beside it; the page's path.

    Args:
        before: another run on the same questions, to compare with; None takes the arm's first round if it has several.
        number: the round; None takes the last one with a search.
        most: trajectories on the page.
    """
    files = RunDirectory(run)
    reading = read_run(files, arm, number)
    earlier = None
    if before is not None:
        other = RunDirectory(before)
        earlier = read_run(other, arm if arm in other.arms() else None)
    elif reading.number > 1 and in_common(first := read_run(files, reading.arm, 1), reading):
        earlier = first
    kinds = kinds_of(reading, *([] if earlier is None else [earlier]))
    results = summarize(files)
    page = render(
        reading,
        results,
        inline_figures(files, results),
        kinds,
        None if earlier is None else compare(earlier, reading, kinds),
        most,
    )
    path = out or run / "report.html"
    write_text(path, page)
    write_plots(files, results, path.parent / "plots")
    return path


def kinds_of(*readings: Reading) -> Kinds:
    """Kinds of step with the names that occur in the questions and responses of some runs."""
    questions = [problem.question for reading in readings for problem in reading.problems.values()]
    texts = [t.completion.text for reading in readings for group in reading.first for t in group.trajectories]
    return Kinds([*questions, *texts])
