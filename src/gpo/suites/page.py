"""The tables and plots of a suite."""

from __future__ import annotations

from collections.abc import Sequence
from math import isnan, nan
from pathlib import Path
from typing import Literal

from matplotlib.figure import Figure

from gpo.report.clean import counted, one_line
from gpo.report.plots import COLORS, MARKERS, look, new_figure, reach, save
from gpo.report.results import NAME, markdown_table, percent
from gpo.statistics import Interval
from gpo.storage.directory import BASE
from gpo.storage.files import write_text
from gpo.suites.outcome import Outcome
from gpo.suites.settings import present
from gpo.suites.suite import Matched, Suite
from gpo.suites.table import Contrast, Standing, contrasts, reached_by_all, standings, tokens_to_reach

Table = tuple[list[str], list[list[str]]]
MATCHED: dict[Matched, str] = {
    "tokens": "trained on equally many sampled tokens",
    "flops": "given budgets that take equally many FLOPs, of sampling and training, by a run of one seed,",
    "seconds": "given budgets that take equally long, sampling and training, by a run of one seed,",
}


def difference_rows(found: Sequence[Contrast]) -> Table:
    """Header and rows: paired differences of accuracy in points."""
    header = ["regime", "method", "arms", "difference", "seeds", "questions"]
    rows = [
        [*_names(each, each.name), percent(each.difference, signed=True), str(each.seeds), str(each.difference.n)]
        for each in found
    ]
    return header, rows


def _names(each: Contrast | Standing, *more: str) -> list[str]:
    return [one_line(name, NAME) for name in (each.regime, each.method, *more)]


def standing_rows(found: Sequence[Standing]) -> Table:
    """Header and rows: accuracy and what it took."""
    header = ["regime", "method", "arm", "accuracy", "sampled", "trained", "FLOPs", "seconds", "tuned"]
    rows = [
        [
            *_names(each, each.arm),
            f"{100 * each.accuracy:.1f}",
            f"{each.sampled_tokens:,.0f}",
            "-" if each.trained_tokens is None else f"{each.trained_tokens:,.0f}",
            "-" if each.flops is None else f"{each.flops:.2e}",
            f"{each.seconds:.0f}",
            ", ".join(f"{name} {value}" for name, value in each.tuned),
        ]
        for each in found
    ]
    return header, rows


def strata_rows(found: Sequence[Contrast], kind: Literal["strata", "horizons"] = "strata") -> Table:
    """Header and rows: the differences among questions by how often the model solved them, or in how many steps."""
    found = [each for each in found if each.other != BASE]
    told: list[dict[str, Interval]] = [getattr(each, kind) for each in found]
    names = list(told[0]) if told else []
    rows = []
    for each, intervals in zip(found, told, strict=True):
        cells = [f"{percent(intervals[name], signed=True)} (n={intervals[name].n})" for name in names]
        rows.append([", ".join(_names(each)), one_line(each.name, NAME), *cells])
    return ["row", "arms", *names], rows


def learning_rows(found: Sequence[Contrast], standing: Sequence[Standing]) -> Table:
    """Header and rows: how much sooner an arm is right in training, and the tokens until all arms are equally often."""
    rows = []
    for each in found:
        if not each.learning.n:
            continue
        theirs = [s for s in standing if (s.regime, s.method) == (each.regime, each.origin) and s.curve]
        ours = [s for s in standing if (s.regime, s.method) == (each.regime, each.method) and s.curve]
        target = reached_by_all([*ours, *theirs])
        mine, yours = (
            next((tokens_to_reach(s.curve, target) for s in row if s.arm == arm), nan)  # a seed may have no rounds
            for row, arm in ((ours, each.arm), (theirs, each.other))
        )
        rows.append(
            [
                ", ".join(_names(each)),
                one_line(each.name, NAME),
                percent(each.learning, signed=True),
                "-" if isnan(target) else f"{100 * target:.1f}",
                *("-" if isnan(tokens) else f"{tokens:,.0f}" for tokens in (mine, yours)),
            ]
        )
    return ["row", "arms", "in training", "tokens until all reach", "the first", "the second"], rows


def verdict(found: Sequence[Contrast]) -> list[str]:
    """One sentence for each pair of arms: in how many rows the first is ahead, and surely."""
    lines = []
    for name in dict.fromkeys(each.name for each in found):
        ours = [each.difference for each in found if each.name == name]
        arm, _, other = name.partition(" - ")
        ahead = sum(each.estimate > 0 for each in ours)
        surely, behind = sum(each.lower > 0 for each in ours), sum(each.upper < 0 for each in ours)
        lines.append(
            f"{arm} is ahead of {other} in {ahead} of {len(ours)} rows, in {surely} with an interval clear of 0; "
            f"behind with one clear of 0 in {behind}."
        )
    return lines


def _by_chance(found: Sequence[Contrast]) -> str:
    """How often an interval is clear of 0 where nothing is, by what `crossed_mean` was simulated with."""
    seeds = {each.seeds for each in found}
    told = ["Of so many intervals one in twenty is clear of 0 by chance"]
    if 2 in seeds:
        told.append("of those over two seeds one in ten")
    if 1 in seeds:
        told.append("of those of one seed, which are over questions only, one in ten to one in three")
    return f"{', '.join(told)}."


def markdown(suite: Suite, outcomes: Sequence[Outcome]) -> str:
    """The page of a suite; it says only what finished cells say."""
    found, standing = contrasts(suite, outcomes), standings(suite, outcomes)
    tested = present(suite, outcomes)
    if not tested:
        return f"# {suite.title}\n\nNo cell is finished yet.\n"
    seeds = sorted({row.cell.seed for row in tested})
    questions, samples = max(len(row.questions) for row in tested), max(row.samples for row in tested)
    parts = [
        f"# {suite.title}",
        f"Written by `gpo compare {suite.source}` from {counted(len(tested), 'finished cell')}; "
        f"{'seeds' if len(seeds) > 1 else 'seed'} {', '.join(map(str, seeds))}. "
        f"Arms of a row are {MATCHED[suite.matched]} and compared on the same {questions} "
        f"{'development ' if suite.split == 'dev' else ''}questions, {counted(samples, 'sample')} each. "
        "Differences are paired; intervals are 95%, over seeds and questions where there are several seeds. "
        f"{_by_chance(found)}",
        "\n".join(f"- {line}" for line in verdict(found)),
        "## Differences in points",
        markdown_table(*difference_rows(found)),
        "## Accuracy and cost",
        "Means over seeds. FLOPs are 2 for each parameter and sampled token and 6 for each trained one (4 under "
        "adapters), without the prompts and prefixes that sampling reads; seconds are of sampling and training, on "
        "whatever machine it was, the median over seeds.",
        markdown_table(*standing_rows(standing)),
        *_learning(found, standing),
        "## By how often the question was solved before training",
        "Never; up to a quarter; up to three quarters; nearly always; always. Of several seeds, each is told by the "
        "answers of the others; with one seed by its own, whose luck an arm that hardly moved repeats: not a fair "
        "measure.",
        markdown_table(*strata_rows(found)),
    ]
    if any(interval.n for each in found for interval in each.horizons.values()):
        parts.append("## By how many steps the model took before training")
        parts.append(markdown_table(*strata_rows(found, "horizons")))
    return "\n\n".join(parts) + "\n"


def _learning(found: Sequence[Contrast], standing: Sequence[Standing]) -> list[str]:
    """Paragraphs on runs of several rounds."""
    header, rows = learning_rows(found, standing)
    if not rows:
        return []
    return [
        "## How soon",
        "Before it trains on the questions of a round each arm's model answers them, the same ones in every arm: the "
        "difference of these accuracies, mean over the rounds from the second. Questions that come round again were "
        "trained on before: what was learned by heart counts. Beside it the highest accuracy that every arm of the row "
        "has in some round, in %, and the tokens that the two had sampled when they got there.",
        markdown_table(header, rows),
    ]


def curve_figure(found: Sequence[Standing]) -> Figure:
    """Accuracy in training against sampled tokens, a panel for each regime and method."""
    rows = list(dict.fromkeys((each.regime, each.method) for each in found if each.curve))
    wide = min(3, len(rows))
    tall = -(-len(rows) // wide)
    figure = new_figure(1 + 3.6 * wide, 0.6 + 3.2 * tall)
    arms = [name for name in dict.fromkeys(each.arm for each in found) if name != BASE]
    panels = figure.subplots(tall, wide, squeeze=False).flat
    for axes, row in zip(panels, rows, strict=False):
        for each in found:
            if (each.regime, each.method) == row and each.curve:
                color, shape = look(arms.index(each.arm))
                tokens, accuracy = zip(*each.curve, strict=True)
                axes.plot(tokens, [100 * x for x in accuracy], marker=shape, ms=4, lw=1, color=color, label=each.arm)
        axes.set_title(f"{row[0]}: {row[1]}", fontsize=10)
        axes.set_xlabel("sampled tokens")
        axes.grid(alpha=0.3)
    for axes in list(panels):
        axes.set_axis_off()
    figure.axes[0].set_ylabel("right in training, %")
    figure.axes[0].legend()
    return figure


def difference_figure(found: Sequence[Contrast]) -> Figure:
    """Every difference with its interval, a row for each regime and method."""
    rows = list(dict.fromkeys((each.regime, each.method) for each in found))
    pairs = list(dict.fromkeys(each.name for each in found))
    figure = new_figure(8, 1.4 + 0.2 * len(rows) * (len(pairs) + 0.6))
    axes = figure.subplots()
    apart = min(0.3, 0.8 / max(1, len(pairs)))
    for i, name in enumerate(pairs):
        ours = [each for each in found if each.name == name]
        places = [rows.index((each.regime, each.method)) + (i - (len(pairs) - 1) / 2) * apart for each in ours]
        values = [100 * each.difference.estimate for each in ours]
        errors = reach([each.difference for each in ours])
        color, shape = COLORS[(i + 1) % len(COLORS)], MARKERS[i % len(MARKERS)]
        axes.errorbar(values, places, xerr=errors, fmt=shape, ms=5, capsize=2, color=color, label=name)
    axes.axvline(0, color="black", lw=0.8)
    axes.set_yticks(range(len(rows)), [f"{regime}: {method}" for regime, method in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlabel("difference of accuracy in points, 95% interval over seeds and questions")
    axes.grid(axis="x", alpha=0.3)
    axes.legend(
        loc="upper center", bbox_to_anchor=(0.5, 1.0 + 0.7 / figure.get_size_inches()[1]), ncols=min(3, len(pairs))
    )
    return figure


def cost_figure(found: Sequence[Standing]) -> Figure:
    """Accuracy against sampled tokens, FLOPs and seconds; a line from the model before training to each arm."""
    figure = new_figure(11, 4)
    arms = [name for name in dict.fromkeys(each.arm for each in found) if name != BASE]
    base = {(each.regime, each.method): each.accuracy for each in found if each.arm == BASE}
    costs = (("sampled tokens", "sampled_tokens"), ("FLOPs of sampling and training", "flops"), ("seconds", "seconds"))
    for axes, (label, name) in zip(figure.subplots(1, 3, sharey=True), costs, strict=True):
        for i, arm in enumerate(arms):
            points = [(getattr(each, name), each) for each in found if each.arm == arm and getattr(each, name)]
            color, shape = look(i)
            for x, each in points:
                ends = [100 * base[each.regime, each.method], 100 * each.accuracy]
                axes.plot([0, x], ends, color=color, lw=0.5, alpha=0.5)
            values = [100 * each.accuracy for _, each in points]
            axes.plot([x for x, _ in points], values, shape, ms=6, color=color, label=arm)
        axes.set_xlabel(label)
        axes.set_xlim(left=0)
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("accuracy in %")
    figure.axes[0].legend()
    return figure


def write_page(suite: Suite, outcomes: Sequence[Outcome], folder: Path, page: Path | None = None) -> None:
    """`table.md` and the plots into `folder`; the page to `page` too."""
    text = markdown(suite, outcomes)
    write_text(folder / "table.md", text)
    if page is not None:
        write_text(page, text)
    if found := [each for each in contrasts(suite, outcomes) if each.other != BASE]:
        save(difference_figure(found), folder / "differences.png")
        standing = standings(suite, outcomes)
        save(cost_figure(standing), folder / "costs.png")
        if any(each.curve for each in standing):
            save(curve_figure(standing), folder / "curves.png")
