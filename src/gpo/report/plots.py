"""PNG plots of a run: accuracy of the models, tokens of the arms, value curves with the critical step marked."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from gpo.report.clean import counted
from gpo.report.results import STAGES, ModelResults, Results
from gpo.report.texts import text_lines
from gpo.statistics import Interval
from gpo.storage.directory import BASE, RunDirectory
from gpo.storage.files import replacing, whole_rows
from gpo.types import StepScores, Trajectory

COLORS = ("#7F7F7F", "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9")  # Okabe and Ito
MARKERS = "osD^vP*"
STAGE_COLORS = ("#999999", "#D55E00", "#0072B2")
STAGE_HATCHES = ("", "///", "...")
# The first that a method reports is drawn; `reward` of an offline one is of its data, the same at every step.
REWARDS = ("rewards/margins", "logps_per_token/margins", "reward", "loss")
PANELS = 4  # trajectories in values.png
MAX_STEPS = 24  # of a panel; more are cut off around the critical step
STEP_WIDTH = 46  # characters of a step's text


def write_plots(files: RunDirectory, results: Results, folder: Path | None = None) -> list[Path]:
    """Write the plots that the run directory has data for, into its own folder if none is given; their paths."""
    folder = folder or files.plots
    figures = {f"{name}.png": figure for name, figure in run_figures(files, results).items()}
    if curves := choose_curves(files):
        figures["values.png"] = values_figure(curves)
    for name, figure in figures.items():
        save(figure, folder / name)
    return [folder / name for name in figures]


def run_figures(files: RunDirectory, results: Results) -> dict[str, Figure]:
    """The plots of a run as a whole that it has data for, by name."""
    figures = {"tokens": tokens_figure(results)}
    if results.models:
        figures["accuracy"] = accuracy_figure(results)
        figures["budget"] = budget_figure(results)
    if curves := training_curves(files):
        figures["training"] = training_figure(*curves)
    if rounds := round_curves(files):
        figures["rounds"] = rounds_figure(rounds)
    return figures


def look(number: int) -> tuple[str, str]:
    """Colour and marker of a model or an arm."""
    return COLORS[number % len(COLORS)], MARKERS[number % len(MARKERS)]


def new_figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), dpi=130, layout="constrained")


def reach(intervals: Sequence[Interval]) -> list[list[float]]:
    """How far each interval goes below and above its estimate, in percent, as `errorbar` takes it."""
    below = [100 * max(0.0, each.estimate - each.lower) for each in intervals]
    return [below, [100 * max(0.0, each.upper - each.estimate) for each in intervals]]


def save(figure: Figure, path: Path) -> None:
    """Write a PNG, whole or not at all. A character that the font does not have becomes a box."""
    with replacing(path) as partial, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        FigureCanvasAgg(figure).print_png(partial)


def accuracy_figure(results: Results) -> Figure:
    """Accuracy of every model with its interval: over all questions, and by sub-task."""
    models = results.models
    rows = ["all questions", *models[0].subtasks]
    height = 1.3 + 0.13 * len(rows) * (len(models) + 1.5)
    figure = new_figure(8, max(2.6, height))
    axes = figure.subplots()
    for i, model in enumerate(models):
        intervals = [model.overall, *(model.subtasks[name] for name in rows[1:])]
        place = [row + (i - (len(models) - 1) / 2) * 0.8 / max(1, len(models)) for row in range(len(rows))]
        values = [100 * interval.estimate for interval in intervals]
        color, marker = look(i)
        label, reached = f"{model.name}  {values[0]:.1f} %{_against(model)}", reach(intervals)
        axes.errorbar(values, place, xerr=reached, fmt=marker, ms=4, capsize=2, lw=1.2, color=color, label=label)
    axes.axhspan(-0.5, 0.5, color="#808080", alpha=0.12, lw=0, zorder=0)
    axes.set_yticks(range(len(rows)), [shorten(name.replace("_", " ")) for name in rows])
    axes.get_yticklabels()[0].set_fontweight("bold")
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlim(-1.5, 101.5)
    axes.set_xlabel("accuracy in %, with 95% intervals over questions")
    title = f"{counted(results.questions, 'test question')}, {counted(results.samples, 'sample')} each"
    axes.set_title(title + (f"\n{results.test_questions}" if results.test_questions else ""), fontsize=10)
    axes.grid(axis="x", color="#80808055", lw=0.6)
    axes.set_axisbelow(True)
    for row in range(1, len(rows)):
        axes.axhline(row - 0.5, color="#80808033", lw=0.8)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    _bare(axes)
    return figure


def _against(model: ModelResults) -> str:
    """The paired difference to the model before training."""
    if BASE not in model.against:
        return ""
    difference = model.against[BASE]
    lower, upper = 100 * difference.lower, 100 * difference.upper
    return f"  ({100 * difference.estimate:+.1f} [{lower:+.1f}, {upper:+.1f}] to {BASE})"


def tokens_figure(results: Results) -> Figure:
    """Sampled tokens of every arm by stage, beside the budget."""
    figure = new_figure(8, 1.5 + 0.45 * len(results.arms))
    axes = figure.subplots()
    for i, arm in enumerate(results.arms):
        left = 0
        for stage, color, hatch in zip(STAGES, STAGE_COLORS, STAGE_HATCHES, strict=True):
            tokens = arm.tokens[stage]
            axes.barh(i, tokens, left=left, color=color, height=0.6, hatch=hatch, label=stage if i == 0 else None)
            left += tokens
        axes.text(left, i, f"  {left:,}", va="center", fontsize=8)
    budget = max((arm.budget for arm in results.arms), default=0)
    axes.axvline(budget, color="#808080", lw=1, ls="--", label="budget")
    axes.set_yticks(range(len(results.arms)), [f"{arm.name} ({arm.estimator})" for arm in results.arms])
    axes.set_ylim(len(results.arms) - 0.5, -0.5)
    axes.set_xlim(0, max(1, budget, *(sum(arm.tokens[stage] for stage in STAGES) for arm in results.arms)) * 1.16)
    axes.set_xlabel("sampled tokens")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    figure.legend(loc="outside upper center", ncols=4, frameon=False, fontsize=9)
    _bare(axes)
    return figure


def budget_figure(results: Results) -> Figure:
    """Accuracy of every model over the tokens that were sampled for it; those of an evaluation are no part of them."""
    spent = {arm.name: sum(arm.tokens.values()) for arm in results.arms}
    figure = new_figure(8, 3.6)
    axes = figure.subplots()
    for i, model in enumerate(results.models):
        value, error = [100 * model.overall.estimate], reach([model.overall])
        # Arms that spent the same would hide each other's intervals.
        shift = (i - len(results.models) / 2) * 0.008 * max(1, *spent.values())
        place = spent[model.name] + shift if model.name in spent else 0
        color, marker = look(i)
        axes.errorbar([place], value, yerr=error, fmt=marker, ms=6, capsize=3, color=color, label=model.name)
    axes.set_xlim(left=-0.03 * max(1, *spent.values()))
    axes.set_xlabel("tokens sampled to train the model; arms that spent the same stand side by side")
    axes.set_ylabel("accuracy in %")
    _finish(figure)
    return figure


def training_curves(files: RunDirectory) -> tuple[str, dict[str, list[float]]] | None:
    """The reward that training reported at each step, by arm, and its name; None if there is none."""
    rows = {arm: whole_rows(files.arm(arm) / "training.jsonl") for arm in files.arms()}
    for name in REWARDS:
        curves = {arm: [float(row[name]) for row in found if _number(row.get(name))] for arm, found in rows.items()}
        if curves := {arm: values for arm, values in curves.items() if values}:
            return name, curves
    return None


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def training_figure(name: str, curves: dict[str, list[float]]) -> Figure:
    """What training reported, step by step, as a moving mean over a tenth of the longest arm."""
    figure = new_figure(8, 3.2)
    axes = figure.subplots()
    width = max(1, max(map(len, curves.values())) // 10)
    for i, (arm, values) in enumerate(curves.items(), 1):  # colours and markers as in the other plots
        means = [sum(part) / len(part) for k in range(len(values)) if (part := values[max(0, k + 1 - width) : k + 1])]
        color, marker = look(i)
        axes.plot(range(1, len(means) + 1), means, color=color, marker=marker, markevery=0.12, ms=4, lw=1.3, label=arm)
    axes.set_xlabel("step of training")
    axes.set_ylabel(f"{name}, mean of {width} steps" if width > 1 else name)
    _finish(figure)
    return figure


def round_curves(files: RunDirectory) -> dict[str, list[tuple[int, float]]]:
    """By arm the tokens sampled before each round and the mean reward of its first rollouts, if there are several."""
    curves = {}
    for arm in files.arms():
        spent, points = 0, []
        for row in whole_rows(files.arm(arm) / "rounds.jsonl"):
            if _number(row.get("accuracy")):
                points.append((spent, float(row["accuracy"])))
            spent += sum(tokens for tokens in row.get("tokens", {}).values() if _number(tokens))
        if len(points) > 1:
            curves[arm] = points
    return curves


def rounds_figure(curves: dict[str, list[tuple[int, float]]]) -> Figure:
    """Reward on the training questions, round after round, by the model that each round began with."""
    figure = new_figure(8, 3.2)
    axes = figure.subplots()
    for i, (arm, points) in enumerate(curves.items(), 1):  # colours and markers as in the other plots
        tokens, rewards = zip(*points, strict=True)
        color, marker = look(i)
        axes.plot(tokens, rewards, color=color, marker=marker, ms=4, lw=1.3, label=arm)
    axes.set_xlabel("tokens sampled before the round")
    axes.set_ylabel("mean reward of first rollouts")
    _finish(figure)
    return figure


def choose_curves(files: RunDirectory) -> list[tuple[Trajectory, StepScores]]:
    """The searched trajectories with the largest advantage at the critical step, each of another problem."""
    searched = [
        (trajectory, score)
        for arm in files.arms()
        for trajectory, score in files.searched(arm)
        if score.tokens and score.critical_step is not None
    ]
    by_problem: dict[str, tuple[Trajectory, StepScores]] = {}
    for trajectory, score in sorted(searched, key=lambda pair: -_gain(pair[1])):
        by_problem.setdefault(trajectory.start.problem_id, (trajectory, score))
    return list(by_problem.values())[:PANELS]


def _gain(score: StepScores) -> float:
    gain = score.advantages[score.critical_step or 0]
    return 0.0 if math.isnan(gain) else abs(gain)


def values_figure(curves: Sequence[tuple[Trajectory, StepScores]]) -> Figure:
    """For each trajectory its steps as text, downwards, and the success probability at the boundaries between them."""
    sizes = [min(MAX_STEPS, len(trajectory.step_ends)) for trajectory, _ in curves]
    columns = min(2, len(curves))
    rows = math.ceil(len(curves) / columns)
    heights = [max(sizes[row * columns : (row + 1) * columns]) + 4 for row in range(rows)]
    figure = new_figure(6.2 * columns, 0.19 * sum(heights) + 0.6)
    grid = figure.add_gridspec(rows, columns, height_ratios=heights)
    for i, (trajectory, score) in enumerate(curves):
        _draw_curve(figure.add_subplot(grid[i // columns, i % columns]), trajectory, score)
    figure.supxlabel("success probability, with the interval of the search; the critical step is shaded", fontsize=9)
    return figure


def _draw_curve(axes: Any, trajectory: Trajectory, score: StepScores) -> None:
    steps = len(trajectory.step_ends)
    critical = score.critical_step or 0
    first = max(0, min(critical - MAX_STEPS // 2, steps - MAX_STEPS))
    last = min(steps, first + MAX_STEPS)
    known = [k for k in range(first, last + 1) if not math.isnan(score.values[k])]
    axes.axhspan(critical, critical + 1, color="#F6D8A8", zorder=0)
    lower, upper = [score.lower[k] for k in known], [score.upper[k] for k in known]
    axes.fill_betweenx(known, lower, upper, color=COLORS[1], alpha=0.15, lw=0)
    axes.plot([score.values[k] for k in known], known, "o-", ms=3, lw=1.2, color=COLORS[1])
    texts = step_texts(trajectory)
    axes.set_yticks([k + 0.5 for k in range(first, last)], [shorten(texts[k]) for k in range(first, last)], fontsize=7)
    axes.get_yticklabels()[critical - first].set_fontweight("bold")
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(last + 0.2, first - 0.2)
    axes.set_xlim(-0.03, 1.03)
    axes.set_title(f"{shorten(trajectory.start.problem_id)}, {trajectory.score.verdict}", fontsize=8)
    axes.grid(axis="x", color="#80808055", lw=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(axis="x", labelsize=7)
    _bare(axes)


def step_texts(trajectory: Trajectory) -> list[str]:
    """The lines of the response where they are its steps; numbers where it was cut otherwise."""
    return text_lines(trajectory) or [f"step {k + 1}" for k in range(len(trajectory.step_ends))]


def shorten(text: str) -> str:
    """One line of printable text that a plot takes as it is."""
    line = "".join(character if character.isprintable() else " " for character in text).strip()
    line = line if len(line) <= STEP_WIDTH else line[: STEP_WIDTH - 1] + "…"
    return line.replace("$", r"\$")


def _finish(figure: Figure) -> None:
    """Legend, grid and thousands of a figure whose one pair of axes has numbers both ways."""
    [axes] = figure.axes
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.10g}")
    axes.grid(color="#80808055", lw=0.6)
    axes.set_axisbelow(True)
    figure.legend(loc="outside upper center", ncols=4, frameon=False, fontsize=9)
    _bare(axes)


def _bare(axes: Any) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
