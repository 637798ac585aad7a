"""What `gpo advise` chooses and foretells, against what finished suites found and counted.

    python benchmarks/advise.py SUITE RESULTS DIRECTORY [--questions 32] [--out FILE]

For each row (regime, method) of a suite whose arms are plain and one that searches, over the cells of RESULTS (the
`results.jsonl` of `gpo compare`): a pilot is sampled into DIRECTORY with the row's options and its first seed, and

- its choice is right if the chosen arm is the best one, or if the interval of the difference to the best holds 0;
- its cost is right if sampled and trained tokens of every arm are within 20% of what the cells counted, in the mean.

A line for each row, and how many of each; with few rows that says little, and it is said how many there are. What ships
as evidence must not be of the rows that are judged: `--without WHERE` leaves out evidence whose source has that text.
With `--out` what was found is written as JSON lines.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from gpo.advice.advise import plain_arm, sample_pilot, searching_arm
from gpo.advice.expect import Evidence, expect, known_evidence
from gpo.advice.pilot import Pilot
from gpo.advice.work import Training, work_of
from gpo.config.components import describe_component
from gpo.config.options import resolve
from gpo.config.run import RunConfig, settled
from gpo.experiment.run import Run
from gpo.statistics import Interval
from gpo.storage.chunks import Chunks
from gpo.suites.outcome import Outcome
from gpo.suites.suite import Cell, Suite, read_suite
from gpo.suites.table import contrasts

WITHIN = 0.2


@dataclass(frozen=True)
class Judged:
    """Advice on one row of a suite."""

    regime: str
    method: str
    chosen: str
    tie: bool
    best: str
    difference: Interval  # the arm that searches minus plain
    right: bool  # the choice
    sampled: dict[str, float]  # foretold over counted, by arm
    trained: dict[str, float]  # the same; empty where the method does not tell

    @property
    def costs(self) -> bool:
        """Whether all costs are within a fifth."""
        return all(abs(ratio - 1) <= WITHIN for ratio in (*self.sampled.values(), *self.trained.values()))


def judge(
    suite: Suite, outcomes: Sequence[Outcome], regime: str, method: str, pilot: Pilot, evidence: Sequence[Evidence]
) -> Judged | None:
    """None where the row has not both kinds of arms, or no finished cell."""
    rows = [row for row in outcomes if (row.cell.regime, row.cell.method, row.cell.phase) == (regime, method, "test")]
    if not rows:
        return None
    config: RunConfig = settled(resolve(rows[0].options))
    plain, search = plain_arm(config), searching_arm(config)
    found = next(
        (c for c in contrasts(suite, rows) if (c.regime, c.method, c.arm, c.other) == (regime, method, search, plain)),
        None,
    )
    if plain is None or search is None or found is None:
        return None
    training, name = Training.of(config), describe_component("method", config.method)["name"]
    expected = expect(pilot, training.pairs, evidence, config.by_stratum(search), name)
    chosen = search if expected.search else plain
    difference = found.difference
    best = search if difference.estimate > 0 else plain
    sampled, trained = {}, {}
    for arm in (plain, search):
        cells = [row.arms[arm] for row in rows if arm in row.arms]
        work = work_of(config, arm, config.problems, pilot, training)
        sampled[arm] = work.tokens / fmean(cell.sampled_tokens for cell in cells)
        counted = [cell.trained_tokens for cell in cells if cell.trained_tokens is not None]
        if counted:
            trained[arm] = work.trained / fmean(counted)
    right = chosen == best or difference.lower <= 0 <= difference.upper
    return Judged(regime, method, chosen, expected.tie, best, difference, right, sampled, trained)


def told(judged: Sequence[Judged]) -> list[str]:
    """A line for each row, and the counts."""
    lines = []
    for each in judged:
        found = each.difference
        points = f"{100 * found.estimate:+.1f} [{100 * found.lower:+.1f}, {100 * found.upper:+.1f}]"
        ratios = ", ".join(
            f"{arm} {ratio:.2f}/{each.trained.get(arm, float('nan')):.2f}" for arm, ratio in each.sampled.items()
        )
        lines.append(
            f"{each.regime}, {each.method}: chose {each.chosen}{' (a tie)' if each.tie else ''}, measured {points}: "
            f"{'right' if each.right else 'wrong'}; sampled/trained over counted: {ratios}"
        )
    clear = [each for each in judged if each.difference.lower > 0 or each.difference.upper < 0]
    lines += [
        f"Choice right in {sum(each.right for each in judged)} of {len(judged)} rows; of these {len(clear)} have a "
        f"difference clear of 0, and there it is right in {sum(each.right for each in clear)}.",
        f"Costs within {WITHIN:.0%} in {sum(each.costs for each in judged)} of {len(judged)} rows.",
    ]
    if len(judged) < 20:
        lines.append(f"{len(judged)} rows cannot tell 80% from much less.")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suite")
    parser.add_argument("results", type=Path)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--questions", type=int, default=32)
    parser.add_argument("--without", default="")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    suite = read_suite(options.suite)
    outcomes = Chunks(options.results, Outcome).read()
    evidence = [row for row in known_evidence() if not options.without or options.without not in row.where]
    judged = []
    for regime in suite.regimes:
        for method in suite.methods:
            cell = Cell(regime, method, suite.seeds[0])
            run = Run(options.directory / cell.name, resolve(suite.options(cell)))
            pilot, _ = sample_pilot(run, options.questions)
            if (found := judge(suite, outcomes, regime, method, pilot, evidence)) is not None:
                judged.append(found)
    for line in told(judged):
        print(line)
    if options.out is not None:
        rows: list[dict[str, Any]] = [
            {**vars(each), "difference": [each.difference.estimate, each.difference.lower, each.difference.upper]}
            for each in judged
        ]
        options.out.write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    main()
