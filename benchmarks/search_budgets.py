"""Adaptive search against uniform search, and against bisection at equal tokens: two tables from `search.py`'s results.

    python benchmarks/search_budgets.py [--results benchmarks/results] [--held_out]

Trajectories are the same for all searches, so that differences are paired; 95% intervals are bootstrap percentiles over
questions. Between two settings of a search lies the search that takes one of them by lot: tokens, hit rate and regret
are straight lines there. Below its least setting a search cannot be had; above its greatest it takes that one.
`held_out` keeps the half of the questions on which the defaults of adaptive search were not chosen.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from itertools import compress, pairwise
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np

PANELS = (("near_exact", "advantage"), ("near_exact", "drop"), ("human", "drop"))
TITLES = {"near_exact": "own", "human": "BIG-Bench-Mistake"}
BUDGETS = (400, 800, 1600, 3200, 6400, 12_800)
TOKENS, HIT, REGRET = range(3)
UNIFORM = ("monte_carlo", 32)
RESAMPLES = 2000

Results = list[dict[str, Any]]
Array = np.ndarray[Any, np.dtype[np.float64]]
Curves = dict[str, Array]  # (settings, 3) tokens, hit rate and regret of each search, means over trajectories


def panel(results: Results, ground: str, rule: str) -> dict[str, Results]:
    """The results of one panel by search, in order of budget."""
    found: dict[str, Results] = {}
    for result in sorted(results, key=lambda r: r["budget"]):
        if (result["ground"], result["rule"]) == (ground, rule):
            found.setdefault(result["search"], []).append(result)
    return found


def held_out(results: Results) -> Results:
    """The results on the questions whose checksum is odd."""
    kept: Results = []
    for result in results:
        odd = [crc32(question.encode()) % 2 == 1 for question in result.get("questions", [])]
        each = {name: list(compress(column, odd)) for name, column in result.get("each", {}).items()}
        kept.append(result | {"each": each, "questions": list(compress(result.get("questions", []), odd))})
    return kept


def at(curve: Array, tokens: float) -> Array:
    """(3,) the search that takes so many tokens on average; NaN below the least setting."""
    curve = curve[np.argsort(curve[:, TOKENS], kind="stable")]
    if tokens < curve[0, TOKENS]:
        return np.full(3, np.nan)
    return np.array([np.interp(tokens, curve[:, TOKENS], column) for column in curve.T])


def needed(curve: Array, hit: float) -> float:
    """The tokens at which a search reaches a hit rate; NaN if it never does."""
    curve = curve[np.argsort(curve[:, TOKENS], kind="stable")]
    if curve[0, HIT] >= hit:
        return float(curve[0, TOKENS])
    for before, after in pairwise(curve):
        if after[HIT] >= hit:
            return float(np.interp(hit, [before[HIT], after[HIT]], [before[TOKENS], after[TOKENS]]))
    return float("nan")


def resampled(lines: dict[str, Results], searches: Sequence[str]) -> list[Curves]:
    """The curves of some searches: first as they are, then of each resample of the questions."""
    rows = [row for name in searches for row in lines[name]]
    columns = np.array([[row["each"][name] for name in ("tokens", "hit", "regret")] for row in rows])
    ids = np.unique(rows[0]["questions"], return_inverse=True)[1]
    count = int(ids.max()) + 1
    sums = np.stack([np.bincount(ids, column, count) for column in columns.reshape(-1, columns.shape[-1])])
    sizes = np.bincount(ids, minlength=count)
    rng = np.random.default_rng(0)
    found: list[Curves] = []
    for i in range(RESAMPLES + 1):
        weights = np.ones(count) if i == 0 else np.bincount(rng.integers(count, size=count), minlength=count)
        means = (sums @ weights / (sizes @ weights)).reshape(len(rows), 3)
        split = np.split(means, np.cumsum([len(lines[name]) for name in searches])[:-1])
        found.append(dict(zip(searches, split, strict=True)))
    return found


def interval(curves: Sequence[Curves], number: Callable[[Curves], float], form: str) -> str:
    """A number with its interval over the resamples in which it exists, and how often it does not."""
    first, *rest = [number(curve) for curve in curves]
    if np.isnan(first):
        return "out of reach"
    there = np.array(rest)[~np.isnan(rest)]
    lower, upper = np.quantile(there, (0.025, 0.975))
    missing = 1 - len(there) / len(rest)
    also = f", out of reach in {missing:.2%} of resamples" if missing else ""
    return f"{first:{form}} [{lower:{form}}, {upper:{form}}]{also}"


def against_uniform(lines: dict[str, Results], search: str, budget: int | None) -> list[str]:
    """What a search saves for uniform search's hit rate; and its tokens, hit rate and regret at one setting."""
    curves = resampled(lines, [UNIFORM[0], search])
    uniform = [row["budget"] for row in lines[UNIFORM[0]]].index(UNIFORM[1])

    def saved(curve: Curves) -> float:
        tokens, hit, _ = curve[UNIFORM[0]][uniform]
        return float(tokens / needed(curve[search], hit))

    cells = [interval(curves, saved, ".1f")]
    if budget is not None:
        own = [row["budget"] for row in lines[search]].index(budget)
        for column, form in ((TOKENS, ".3f"), (HIT, "+.3f"), (REGRET, "+.4f")):

            def compared(curve: Curves, column: int = column) -> float:
                ours, theirs = curve[search][own, column], curve[UNIFORM[0]][uniform, column]
                return float(ours / theirs if column == TOKENS else ours - theirs)

            cells.append(interval(curves, compared, form))
    return cells


def at_equal_tokens(lines: dict[str, Results], search: str, other: str) -> list[list[str]]:
    """For each budget the hit rate and the regret of `search` minus those of `other`."""
    curves = resampled(lines, [search, other])
    table = []
    for tokens in BUDGETS:
        cells = []
        for column, form in ((HIT, "+.3f"), (REGRET, "+.4f")):

            def difference(curve: Curves, column: int = column, tokens: int = tokens) -> float:
                return float(at(curve[search], tokens)[column] - at(curve[other], tokens)[column])

            cells.append(interval(curves, difference, form))
        table.append(cells)
    return table


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--default", type=float, default=8, help="rollouts of the default adaptive search")
    parser.add_argument("--held_out", action="store_true")
    options = parser.parse_args(arguments)
    results = [json.loads(line) for line in (options.results / "search_ranks.jsonl").read_text().splitlines()]
    if options.held_out:
        results = held_out(results)
    panels = {(ground, rule): panel(results, ground, rule) for ground, rule in PANELS}
    print("| ground, rule | search | times fewer tokens for the hit rate of uniform N = 32 |\n|---|---|---|")
    for (ground, rule), lines in panels.items():
        for search in ("adaptive", "adaptive, certainty 0.9", "adaptive, critic", "bisect", "monte_carlo, shared path"):
            if search in lines:
                print(f"| {TITLES[ground]}, {rule} | {search} | {against_uniform(lines, search, None)[0]} |")
    print("\n| ground, rule | share of uniform's tokens | hit rate, minus uniform's | regret, minus uniform's |")
    print("|---|---|---|---|")
    for (ground, rule), lines in panels.items():
        print(f"| {TITLES[ground]}, {rule} |", " | ".join(against_uniform(lines, "adaptive", options.default)[1:]), "|")
    print("\n| tokens |", " | ".join(f"{TITLES[g]}, {r}: hit rate | regret" for g, r in panels), "|")
    print("|---|" + "---|---|" * len(panels))
    tables = [at_equal_tokens(lines, "adaptive", "bisect") for lines in panels.values()]
    for tokens, *cells in zip(BUDGETS, *tables, strict=True):
        print(f"| {tokens:,} |", " | ".join(cell for pair in cells for cell in pair), "|")


if __name__ == "__main__":
    main()
