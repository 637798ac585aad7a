"""`gpo evaluate --models`: models that belong to no run."""

from __future__ import annotations

from pathlib import Path

from gpo.config.help import entry, settings
from gpo.config.trust import refuse_strangers
from gpo.evaluation.evaluation import Evaluation, EvaluationConfig, is_evaluation, resolve_evaluation
from gpo.evaluation.harness import HarnessConfig, evaluate_with
from gpo.evaluation.scoreboard import count_rows, score_rows
from gpo.report.console import Console, say
from gpo.report.progress import ProgressDisplay, rich_table
from gpo.storage.directory import RunDirectory

DEFAULT = Path("runs/evaluation")


def evaluate_models(directory: Path, options: dict[str, str]) -> None:
    """Measure models that belong to no run, with a task of ours or with those of another harness."""
    console = Console()
    if (harness := options.pop("harness", None)) is not None:
        tables = [evaluate_with(harness, directory, options)]
    else:
        files = RunDirectory(directory)
        stored = files.config_or_none() if is_evaluation(directory) else None
        refuse_strangers(directory, files.config_or_none(), options.values())
        with ProgressDisplay(console) as display:
            board = Evaluation(directory, resolve_evaluation(options, stored), on_progress=display).all()
        tables = [score_rows(board), count_rows(board)]
    for header, rows in tables:
        console.print()
        console.print(rich_table(header, rows))
    say(console, f"\nEverything is in {directory}: table.md, results.json", whole=True)


def evaluate_help() -> list[str]:
    """The options of evaluations that belong to no run."""
    models = "directories or hub ids, or NAME=A,NAME=B; the others are compared with the first"
    return [
        "",
        "gpo evaluate [DIRECTORY] --models A,B: measure models that belong to no run, on",
        f"the same questions with the same seeds; without DIRECTORY in {DEFAULT}.",
        *entry("--models A,B", models),
        *entry("--task, --engine", "as of a run (gpo rollout --help)"),
        *settings(EvaluationConfig, "--", skip=("models", "task", "engine")),
        "",
        "gpo evaluate [DIRECTORY] --models A,B --harness lm-eval: with the tasks of",
        "lm-evaluation-harness in place of those of GPO.",
        *settings(HarnessConfig, "--", skip=("models",)),
    ]
