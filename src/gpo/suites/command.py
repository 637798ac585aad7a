"""`gpo compare`: a suite of runs, and what its arms differ by."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from pathlib import Path

from gpo.config.help import entries
from gpo.config.options import flag, resolve, split, take_data_folder
from gpo.errors import ConfigError, DataError, unknown
from gpo.storage.chunks import Chunks
from gpo.storage.files import refuse_folder
from gpo.suites.suite import SHIPPED, Cell, Suite, read_suite

DEFAULT = "runs/compare"
OPTIONS = {
    "--quick": "one seed and small runs: the suite's options for it, no tuning",
    "--dry-run": "say what would be run, what difference it could tell and what it takes, and stop",
    "--finished": "run nothing; the page of the cells that are finished",
    "--results FILES": "results.jsonl from elsewhere; their cells are not run again",
    "--page FILE": "write the page there too, such as docs/results.md",
    "--data FOLDER": "where data sets are (also: the environment variable GPO_DATA)",
}


def main(arguments: Sequence[str]) -> int:
    """Run the command line of `gpo compare`; the exit code."""
    names, options = split(arguments)
    if "help" in options or not names:
        print(usage())
        return 0 if "help" in options else 2
    take_data_folder(options)
    if "plan" in options:
        raise ConfigError("What a suite would run is asked with --dry-run.")
    for name in options:
        if name not in ("quick", "dry-run", "finished", "results", "page"):
            raise unknown("option", f"--{name}", [entry.partition(" ")[0] for entry in OPTIONS])
    if len(names) > 2:
        raise ConfigError(f"gpo compare takes a suite and a directory, got {len(names)} names: {' '.join(names)}.")
    suite = read_suite(names[0])
    if flag(options, "quick"):
        suite = suite.shortened()
    check(suite)
    folder = Path(names[1] if len(names) > 1 else f"{DEFAULT}/{suite.name}")
    if flag(options, "dry-run"):
        from gpo.suites.plan import plan

        print(plan(suite))
        return 0
    compare(suite, folder, options, run=not flag(options, "finished"))
    return 0


def check(suite: Suite) -> None:
    """Raises: ConfigError if a cell could not be started; the message names it. Nothing has run by then."""
    cells = [*suite.tuning_cells(), *(Cell(r, m, suite.seeds[0]) for r, m in product(suite.regimes, suite.methods))]
    for cell in cells:
        try:
            config = resolve(suite.options(cell))
            if config.test_problems == 0:
                raise ConfigError("test_problems is 0; a suite compares answers to test questions.")
        except ConfigError as error:
            raise ConfigError(f"In {cell.name} of the suite {suite.name}: {error}") from error


def compare(suite: Suite, folder: Path, options: dict[str, str], *, run: bool = True) -> None:
    """Run what is missing if that is wanted, then write and show the page."""
    from gpo.report.console import Console, say
    from gpo.report.progress import ProgressDisplay, rich_table
    from gpo.suites.cells import SuiteRuns
    from gpo.suites.outcome import Outcome
    from gpo.suites.page import difference_rows, verdict, write_page
    from gpo.suites.settings import cells_of
    from gpo.suites.table import contrasts

    if (folder / "config.json").exists():
        raise ConfigError(f"{folder} is a run or an evaluation. Choose another directory for the suite.")
    console = Console()
    known: list[Outcome] = []
    if (results := options.get("results")) is not None:
        for file in map(Path, results.split(",")):
            if not file.is_file():
                raise ConfigError(f"--results {file}: there is no such file.")
            known += Chunks(file, Outcome).read()
    page = Path(options["page"]) if "page" in options else None
    if page is not None:
        refuse_folder(page, "--page")
    with ProgressDisplay(console) as display:

        def announce(cell: Cell, left: int) -> None:
            display.stages.clear()  # each run has stages of the same names
            say(console, f"{cell.name} ({left} more)", whole=True)

        def show(cell: Cell) -> None:
            """After the last cell of a seed, while other seeds are left."""
            seeds = {each.seed for each in runs.left(cells)}
            if seeds and cell.phase == "test" and cell.seed not in seeds:
                write()

        def write() -> None:
            with runs.alone():
                write_page(suite, runs.outcomes(), folder, page)

        def wait(left: Sequence[Cell]) -> None:
            say(console, f"waiting for other processes: {', '.join(cell.name for cell in left)}", whole=True)

        runs = SuiteRuns(
            suite, folder, known=known, on_cell=announce, on_outcome=show, on_wait=wait, on_progress=display
        )
        cells: list[Cell] = []
        if run:
            runs.run(list(suite.tuning_cells()))
            if suite.matched != "tokens":
                runs.run(cells_of(suite, runs.outcomes(), suite.tuning_seeds[0], "matching"))
            # A whole table of one seed first.
            cells += [cell for seed in suite.seeds for cell in cells_of(suite, runs.outcomes(), seed)]
            runs.run(cells)
        if not runs.outcomes():
            raise DataError(f"No cell of {suite.name} is finished in {folder}. Run it without --finished.")
        write()
    found = contrasts(suite, runs.outcomes())
    console.print()
    console.print(rich_table(*difference_rows(found)))
    for line in verdict(found):
        say(console, line)
    say(console, f"\nEverything is in {folder}: table.md, results.jsonl, differences.png, costs.png", whole=True)


def usage() -> str:
    """What `gpo compare --help` says."""
    shipped = ", ".join(sorted(file.stem for file in SHIPPED.glob("*.toml")))
    text = (
        "Usage: gpo compare SUITE [DIRECTORY] [--OPTION VALUE]...\n\n"
        "Runs of several methods, regimes and seeds, and what their arms differ by.\n"
        f"SUITE is a TOML file (docs/compare.md), or one that ships with GPO:\n{shipped}.\n"
        f"The same command goes on where it was left. DIRECTORY is {DEFAULT}/SUITE\nif none is given.\n"
    )
    return "\n".join([text, "Options:", *entries(OPTIONS)])
