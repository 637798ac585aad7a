"""`gpo advise`: what a run would take and which arm to choose, from a pilot that the run goes on with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from math import isinf, isnan
from pathlib import Path
from typing import Any

from rich.table import Table

from gpo.advice.advise import QUESTIONS, Advice, advise, sample_pilot
from gpo.advice.cost import GPUS, gpu_named
from gpo.config.help import entries, options_text
from gpo.config.options import resolve, split, take_data_folder
from gpo.config.parse import parse
from gpo.config.trust import refuse_strangers
from gpo.errors import ConfigError
from gpo.experiment.run import Run
from gpo.report.console import Console, say
from gpo.report.progress import ProgressDisplay, clock, rich_table, short
from gpo.storage.codec import to_json
from gpo.storage.directory import RunDirectory
from gpo.storage.files import write_json
from gpo.types import DEFAULT_RUN, Stage

OPTIONS = {
    "--budget_tokens N": "sampled tokens that an arm may take; questions and budget are fitted to them",
    "--gpu NAME": f"hours of one GPU at stated utilisations: {', '.join(GPUS)}",
    "--questions N": f"of the pilot, at most ({QUESTIONS}); it asks fewer if they take more than a minute",
}


def main(arguments: Sequence[str]) -> int:
    """Run the command line of `gpo advise`; the exit code."""
    names, options = split(arguments)
    if "help" in options:
        options.pop("help")
        print(usage(options))
        return 0
    if len(names) > 1:
        raise ConfigError(f"gpo advise takes one run directory, got {len(names)} names: {' '.join(names)}.")
    take_data_folder(options)
    directory = names[0] if names else DEFAULT_RUN
    own = {name: options.pop(name, None) for name in ("budget_tokens", "gpu", "questions")}
    tokens = _positive("budget_tokens", own["budget_tokens"])
    gpu = None if own["gpu"] is None else gpu_named(own["gpu"])
    questions = _positive("questions", own["questions"]) or QUESTIONS
    console = Console()
    print_advice(console, give_advice(console, directory, options, questions, tokens, gpu), directory)
    return 0


def give_advice(
    console: Console, directory: str, options: dict[str, str], questions: int, tokens: int | None, gpu: Any
) -> Advice:
    """Sample the pilot, and write `advice.json` beside it."""
    files = RunDirectory(Path(directory))
    stored = files.config_or_none()
    refuse_strangers(files.path, stored, options.values())
    with ProgressDisplay(console) as display:
        run = Run(files.path, resolve(options, stored))
        run.teller.on_progress = display
        pilot, model = sample_pilot(run, questions)
    found = advise(run, pilot, model, budget_tokens=tokens, gpu=gpu, directory=directory)
    write_json(files.path / "advice.json", summary(found))
    return found


def usage(options: dict[str, str]) -> str:
    """What `gpo advise --help` says."""
    text = (
        "gpo advise [RUN]: what a run would take and which arm to choose, from a pilot\n"
        f"of its first training questions. RUN is {DEFAULT_RUN} if none is given; gpo run RUN\n"
        "goes on with what was sampled. All options of gpo run, and:\n"
    )
    return "\n".join([text, *entries(OPTIONS), "", options_text("run", options)])


def _positive(name: str, text: str | None) -> int | None:
    if text is None:
        return None
    value: int = parse(int, text.replace(",", "").replace("_", ""), f"--{name}")
    if value < 1:
        raise ConfigError(f"--{name} is {value}, expected at least 1.")
    return value


def summary(advice: Advice) -> dict[str, Any]:
    """As JSON: what was seen, what each arm takes, and what is expected."""
    pilot = advice.pilot
    seen = ("success", "mixed", "strata", "prompt", "response", "steps", "repeat", "reached", "search_tokens", "tail")
    found: dict[str, Any] = to_json(
        {
            "pilot": {"questions": len(pilot.asked), "searched": len(pilot.searched)}
            | {name: getattr(pilot, name) for name in seen},
            "questions": advice.questions,
            "budget": advice.config.budget,
            "arms": {name: asdict(cost) for name, cost in advice.arms.items()},
            "model": None if advice.shape is None else asdict(advice.shape),
            "training_memory": None if advice.memory is None else advice.memory.total,
            "expected": None if advice.expected is None else asdict(advice.expected),
            "arm": advice.arm,
            "command": advice.command,
        }
    )
    return found


def print_advice(console: Console, advice: Advice, directory: str) -> None:
    """On 80 columns."""
    pilot = advice.pilot
    rollouts = sum(each.graded for each in pilot.asked)
    asked = f"{len(pilot.asked)} questions, {rollouts} responses, {len(pilot.searched)} searches"
    say(console, f"\nPilot: {asked}; kept in {directory}", whole=True)
    seen = Table.grid(padding=(0, 2))
    seen.add_column(width=14)
    seen.add_column()
    for label, text in seen_rows(advice):
        seen.add_row(f"  {label}", text)
    console.print(seen, highlight=False, markup=False)
    console.print()
    console.print(rich_table(*cost_rows(advice)))
    for line in [*memory_lines(advice), *advice.notes, "", *expectation_lines(advice)]:
        say(console, line)
    say(console, f"\n  {advice.command}\n", whole=True)
    if len(advice.config.arms) > 1:
        say(console, f"Without --arms {advice.arm} all arms are trained and compared on test questions.")


def seen_rows(advice: Advice) -> list[tuple[str, str]]:
    """What the pilot showed: a label and a sentence each."""
    pilot = advice.pilot
    strata = ", ".join(f"{name} {count}" for name, count in pilot.strata.items())
    tokens = f"{pilot.response:.0f} a response; prompts of {pilot.prompt:.0f}"
    rows = [
        ("solved", f"{strata}; {pilot.success:.0%} of the responses"),
        ("horizon", f"{pilot.steps:.1f} steps of {pilot.response / max(pilot.steps, 1):.0f} tokens, {tokens}"),
    ]
    if pilot.repeats:
        low, high = quartiles(pilot.repeats)
        again = f"a step is taken again with probability {pilot.repeat:.2f} (median; quartiles {low:.2f}, {high:.2f})"
        told = f"a rollout from the question tells of {pilot.reached:.0%} of the boundaries"
        rows.append(("shared paths", f"{again}; {told}"))
    if pilot.search is not None and not isnan(pilot.search_tokens):
        work = advice.arms[pilot.search].work
        candidates = advice.questions * min(advice.config.locate_per_problem, advice.config.rollouts)
        uniform = f"uniform with 4 rollouts a boundary: {advice.uniform:,.0f}"
        paid = f"the budget pays for {work.details['searched']:,.0f} of {candidates:,}"
        rows.append(("search", f"{pilot.search}: {pilot.search_tokens:,.0f} tokens a trajectory ({uniform}); {paid}"))
    if not isnan(pilot.tail):
        values = [each.value for each in pilot.searched if not isnan(each.value)]
        value = sum(values) / len(values)
        rows.append(("resets", f"{pilot.tail:.0f} tokens before the end, at a value of {value:.2f}"))
    return rows


def quartiles(values: Sequence[float]) -> tuple[float, float]:
    """The first and the third."""
    ordered = sorted(values)
    return ordered[len(ordered) // 4], ordered[(3 * len(ordered)) // 4]


def cost_rows(advice: Advice) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the arms' table."""
    hours = any(cost.hours is not None for cost in advice.arms.values())
    header = ["arm", "sampled", "of it search", "trained", "FLOPs", *(["GPU time"] if hours else [])]
    rows = []
    for name, cost in advice.arms.items():
        row = [
            name,
            short(round(cost.work.tokens)),
            short(round(cost.work.sampled[Stage.LOCATE.value])),
            short(round(cost.work.trained)),
            "-" if cost.operations is None else f"{cost.operations.total:.1e}",
        ]
        if hours:
            row.append("-" if cost.hours is None else duration(cost.hours.total))
        rows.append(row)
    return header, rows


def duration(hours: float) -> str:
    """Such as 2.5 s, 12:40 or 3.1 h."""
    seconds = 3600 * hours
    return "does not fit" if isinf(hours) else f"{seconds:.2g} s" if seconds < 60 else clock(seconds)


def memory_lines(advice: Advice) -> list[str]:
    """What training and sampling hold, in GB."""
    if advice.memory is None or advice.shape is None:
        return []
    held, cost = advice.memory, advice.arms[advice.arm]
    parts = {"weights": held.weights, "gradients": held.gradients, "Adam": held.optimizer}
    parts |= {"activations": held.activations, "logits": held.logits}
    told = ", ".join(f"{name} {size / 1e9:.2g}" for name, size in parts.items())
    lines = [f"Training holds at least {held.total / 1e9:.2g} GB ({told})."]
    if cost.hours is not None:
        lines.append(
            f"Sampling: {advice.shape.parameters * advice.shape.bytes / 1e9:.2g} GB of weights, "
            f"{cost.hours.cache / 1e9:.2g} GB of keys and values for {cost.hours.batch} sequences at once."
        )
    return lines


def expectation_lines(advice: Advice) -> list[str]:
    """Which arm, by how much, and why."""
    expected, search = advice.expected, advice.pilot.search
    if expected is None:
        return [f"Arm {advice.arm}: the run has no plain arm and no search to choose between."]
    lines = []
    if (found := expected.measured) is not None:
        points = f"{100 * found.estimate:+.1f} [{100 * found.lower:+.1f}, {100 * found.upper:+.1f}] points"
        verdict = "a tie" if expected.tie else f"{advice.arm} is ahead"
        lines.append(f"{search} over plain at equal sampled tokens: {points}, {verdict} ({expected.reason}).")
        if expected.tie:
            lines.append(f"Take {advice.arm}, which searches nothing, or all arms to find out.")
        else:
            lines.append(f"Take {advice.arm}.")
    else:
        lines.append(f"No number can be given: {expected.reason}.")
        why = "theory has resets ahead where success is rare" if expected.search else "a search must pay for itself"
        lines.append(f"Take {advice.arm}: {why} (docs/theory.md).")
    if not isnan(expected.rule):
        lines.append(
            f"Rule v (1 - v) / tokens: a token behind the found places is worth {expected.rule:.1f} of one at the "
            "questions, the search not counted; it says too much where most answers are right."
        )
    return lines
