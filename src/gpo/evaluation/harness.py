"""Leaderboard numbers: models on the own tasks of lm-evaluation-harness, with its prompts, filters and metrics.

Source: github.com/EleutherAI/lm-evaluation-harness, MIT. Each task of each model is a file of the directory; those that
are there are not run again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_type_hints

from gpo.config.parse import parse
from gpo.config.presets import EMBEDDED, model_path
from gpo.config.run import differences
from gpo.engines.templates import with_arguments
from gpo.errors import ConfigError, DataError, EngineError, MissingDependency, unknown
from gpo.evaluation.evaluation import model_names
from gpo.report.results import markdown_table
from gpo.rollout.thought import ANSWER
from gpo.storage.files import read_json, write_json, write_text
from gpo.storage.hub import hub_options
from gpo.storage.lock import locked
from gpo.storage.weights import adapters_at, check_files, first_line

TASKS = ("bbh", "gsm8k", "hendrycks_math", "mmlu", "mmlu_pro", "aime24", "aime25")
HARNESSES = ("lm-eval",)
Table = tuple[list[str], list[list[str]]]


@dataclass(frozen=True)
class HarnessConfig:
    """What lm-evaluation-harness is asked for."""

    models: Mapping[str, str] = field(default_factory=lambda: {EMBEDDED: EMBEDDED})  # name -> directory or hub id
    tasks: tuple[str, ...] = TASKS
    include: Path | None = None  # folder of task files beside those of the harness
    limit: int | None = None  # documents of each task; None: all
    chat: Literal["auto", "true", "false"] = "auto"  # through the chat template; auto: where there is one
    chat_template_kwargs: Mapping[str, Any] | None = None  # what the template reads beside the turns, as JSON
    batch_size: int = 8
    seed: int = 0  # of the choice of few-shot examples, and of sampling


def evaluate_with(harness: str, directory: Path, options: Mapping[str, str]) -> Table:
    """The command `gpo evaluate --harness`: header and rows of its table.

    Raises:
        ConfigError: an unknown harness or option.
    """
    if harness not in HARNESSES:
        raise unknown("harness", harness, HARNESSES)
    left = dict(options)
    hints = get_type_hints(HarnessConfig)
    values: dict[str, Any] = {"models": model_names(left.pop("models", EMBEDDED))}
    for name, text in left.items():
        if name not in hints:
            raise unknown("option", f"--{name}", [f"--{known}" for known in hints])
        values[name] = parse(hints[name], text, f"--{name}")
    return run_harness(directory, HarnessConfig(**values))


def run_harness(directory: Path, config: HarnessConfig) -> Table:
    """Run every task on every model that has no result yet; header and rows of the table.

    Raises:
        MissingDependency: lm-evaluation-harness is not installed.
        ConfigError: an unknown task, or results with other settings are there.
        DataError: a task's data cannot be loaded.
        EngineError: there is no such model; none is measured then.
    """
    manager = task_manager(config.include)
    for task in config.tasks:
        if task not in manager.all_tasks:
            raise ConfigError(f"lm-evaluation-harness has no task {task!r}. Its tasks for GPO: {', '.join(TASKS)}.")
    left = [
        name
        for name in config.models
        if not all((directory / "harness" / name / f"{task}.json").exists() for task in config.tasks)
    ]
    parts = {name: _parts(model_path(config.models[name])) for name in left}
    asked = {item.name: getattr(config, item.name) for item in fields(config) if item.name not in ("models", "tasks")}
    asked["include"] = None if config.include is None else str(config.include)
    found: dict[str, dict[str, Any]] = {name: {} for name in config.models}
    with locked(directory):
        for name, model in config.models.items():
            loaded = None
            for task in config.tasks:
                file = directory / "harness" / name / f"{task}.json"
                settings = {"model": model, **asked}
                if not file.exists():
                    loaded = loaded or _load(parts[name], config)
                    write_json(file, {"settings": settings, **_evaluate(loaded, task, manager, config)})
                found[name][task] = read_json(file)
                if changed := differences(found[name][task]["settings"], settings):
                    raise ConfigError(
                        f"{file} was made with other settings: {'; '.join(changed)}. Choose another place."
                    )
        write_json(directory / "results.json", found)
        table = _table(found)
        write_text(directory / "table.md", "# lm-evaluation-harness\n\n" + markdown_table(*table) + "\n")
    return table


@cache
def task_manager(include: Path | None = None) -> Any:
    """The tasks of lm-evaluation-harness, and those of a folder. Finding them takes seconds.

    Raises:
        MissingDependency: lm-evaluation-harness is not installed.
    """
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise MissingDependency("--harness lm-eval needs lm-evaluation-harness: pip install 'gpo[lm-eval]'.") from error
    return TaskManager(include_path=None if include is None else str(include))


def _parts(source: str) -> dict[str, str]:
    """Where the harness finds a model, and, for adapters, what they are put into.

    Raises:
        EngineError: there is no such model.
    """
    from transformers import AutoConfig

    check_files(Path(source))
    try:
        adapters = adapters_at(source, hub_options(source))
        base = source if adapters is None else str(adapters.base_model_name_or_path)
        AutoConfig.from_pretrained(base, trust_remote_code=False, **hub_options(base))
    except (OSError, ValueError) as error:
        raise EngineError(
            f"No model in {source!r} ({first_line(error)}). Expected a directory of a model or of LoRA adapters, or a "
            "hub id that can be reached."
        ) from error
    return {"pretrained": base} if adapters is None else {"pretrained": base, "peft": source, "tokenizer": source}


def _load(parts: Mapping[str, str], config: HarnessConfig) -> Any:
    import torch
    from lm_eval.models.huggingface import HFLM

    device = "cuda" if torch.cuda.is_available() else "cpu"
    arguments = dict(config.chat_template_kwargs or {})
    model = HFLM(**parts, device=device, batch_size=config.batch_size, dtype="auto", chat_template_args=arguments)
    with_arguments(model.tokenizer, arguments)  # refuses what its template does not read
    if ANSWER in str(model.tokenizer.chat_template):
        model.think_end_token = ANSWER  # what is thought before it is no answer
    return model


def _evaluate(model: Any, task: str, manager: Any, config: HarnessConfig) -> dict[str, Any]:
    from lm_eval import simple_evaluate

    chat = config.chat == "true" or (config.chat == "auto" and bool(getattr(model.tokenizer, "chat_template", None)))
    try:
        done = simple_evaluate(
            model=model,
            tasks=[task],
            limit=config.limit,
            task_manager=manager,
            apply_chat_template=chat,
            log_samples=False,
            bootstrap_iters=1000,
            **{f"{of}random_seed": config.seed for of in ("", "numpy_", "torch_", "fewshot_")},
        )
    # datasets, huggingface_hub and httpx all raise their own errors where the hub cannot be reached.
    except (OSError, RuntimeError, ValueError) as error:
        reason = str(error).partition("\n")[0][:200]
        raise DataError(f"lm-evaluation-harness cannot run {task!r}: {type(error).__name__}: {reason}") from error
    results = {name: _numbers(metrics) for name, metrics in done["results"].items()}
    whole = _numbers(done.get("groups", {}).get(task, {})) or results[task]
    return {
        "metrics": whole,
        "subtasks": {name: metrics for name, metrics in results.items() if name != task},
        "documents": sum(count["effective"] for count in done["n-samples"].values()),
        "versions": {name: str(version) for name, version in done["versions"].items()},
        "templated": chat,
    }


def _numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The metrics by their names in the harness, "metric,filter" and "metric_stderr,filter"."""
    return {key: float(value) for key, value in metrics.items() if "," in key and isinstance(value, int | float)}


def _table(found: Mapping[str, Mapping[str, Any]]) -> Table:
    """A line for each metric of each task, a column for each model: the value in percent and its standard error."""
    rows = []
    for task, first in next(iter(found.values())).items():
        for key in first["metrics"]:
            metric, _, kind = key.partition(",")
            if metric.endswith("_stderr"):
                continue
            cells = []
            for results in found.values():
                numbers = results[task]["metrics"]
                error = numbers.get(f"{metric}_stderr,{kind}")
                cells.append(f"{100 * numbers[key]:.1f}" + ("" if error is None else f" ± {100 * error:.1f}"))
            rows.append([f"{task} ({first['documents']}): {metric}, {kind}", *cells])
    return ["task (documents): metric, filter; in %", *found], rows
