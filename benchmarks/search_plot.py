"""The table and the plot of `search.py`'s results.

python benchmarks/search_plot.py [--results benchmarks/results] [--plot docs/images/search.png]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gpo.report.plots import COLORS, save
from search_budgets import PANELS, Results, panel

TITLES = {"near_exact": "the reasoner's own trajectories", "human": "BIG-Bench-Mistake"}
LINES = {
    "monte_carlo": (COLORS[0], "o-"),
    "monte_carlo, shared path": (COLORS[0], "o:"),
    "authors": (COLORS[5], "v-"),
    "bisect": (COLORS[2], "s-"),
    "adaptive": (COLORS[1], "D-"),
    "adaptive, certainty 0.9": (COLORS[6], "D-"),
    "adaptive, critic": (COLORS[4], "P-"),
    "told which two": ("black", "--"),
}
POINTS = {
    "random": (COLORS[0], "x"),
    "entropy": (COLORS[2], "+"),
    "entropy, first tokens": (COLORS[2], "1"),
    "gradient": (COLORS[3], "^"),
    "gradient, deletion": (COLORS[3], "v"),
    "critic": (COLORS[4], "P"),
    "critic, taught": (COLORS[4], "*"),
}


def draw(axes: Axes, lines: dict[str, Results], column: str) -> None:
    for name, (color, style) in LINES.items():
        rows = [row for row in lines.get(name, []) if column in row]
        if rows:
            x = [row["tokens"][0] for row in rows]
            middle, lower, upper = np.array([row[column] for row in rows]).T
            axes.plot(x, middle, style, color=color, ms=4, lw=1.3, label=name)
            if name != "told which two":
                axes.fill_between(x, lower, upper, color=color, alpha=0.1, lw=0)
    for name, (color, marker) in POINTS.items():
        for row in lines.get(name, []):
            middle, lower, upper = row[column]
            errors = [[middle - lower], [upper - middle]]
            place = max(row["tokens"][0], 8 * (1 + 0.13 * list(POINTS).index(name)))
            axes.errorbar([place], [middle], errors, fmt=marker, color=color, ms=6, lw=0.8, label=name)
    axes.set_xscale("log")
    axes.grid(color="#80808040", lw=0.6)
    axes.set_axisbelow(True)


def figure(results: Results) -> Figure:
    shown = [(ground, rule, lines) for ground, rule in PANELS if (lines := panel(results, ground, rule))]
    whole = Figure(figsize=(4.4 * len(shown), 8.2), dpi=120, layout="constrained")
    grid = whole.subplots(2, len(shown), squeeze=False)
    for column, (ground, rule, lines) in enumerate(shown):
        for row, (name, label) in enumerate((("hit", "hit rate"), ("regret", "regret"))):
            axes = grid[row][column]
            draw(axes, lines, name)
            axes.set_ylim((0, 1.02) if name == "hit" else (0, None))
            if column == 0:
                axes.set_ylabel(label)
        grid[0][column].set_title(f"{TITLES[ground]}\nrule {rule}", fontsize=10)
        grid[1][column].set_xlabel("sampled tokens a trajectory (those without at the left)", fontsize=9)
    handles, labels = grid[0][0].get_legend_handles_labels()
    whole.legend(handles, labels, loc="outside lower center", ncols=5, fontsize=8, frameon=False)
    return whole


def table(panels: Sequence[dict[str, Results]]) -> list[str]:
    """A line for each search and budget; tokens, hit rate and regret of each panel."""
    lines = ["| search | N |" + " tokens | hit rate | regret |" * len(panels), "|---|---|" + "---|" * 3 * len(panels)]
    for name in [*POINTS, *LINES]:
        for budget in [row["budget"] for row in panels[0].get(name, []) if "each" in row]:
            rows = [row for panel in panels for row in panel[name] if row["budget"] == budget]
            cells = [
                f"{row['tokens'][0]:,.0f} | "
                + " | ".join(
                    f"{middle:.{digits}f} [{lower:.{digits}f}, {upper:.{digits}f}]"
                    for (middle, lower, upper), digits in ((row["hit"], 2), (row["regret"], 3))
                )
                for row in rows
            ]
            lines.append(f"| {name} | {budget or ''} | {' | '.join(cells)} |")
    return lines


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--plot", type=Path, default=Path(__file__).parents[1] / "docs/images/search.png")
    options = parser.parse_args(arguments)
    results = [json.loads(line) for line in (options.results / "search_ranks.jsonl").read_text().splitlines()]
    print("\n".join(table([panel(results, ground, rule) for ground, rule in PANELS])))
    save(figure(results), options.plot)


if __name__ == "__main__":
    main()
