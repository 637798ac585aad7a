"""Rounds of a run: what each one asks, what its training begins with, and what came of it.

A round samples with the model that the round before has trained, and trains that model on what it sampled. An arm may
sample as many tokens in each round as in the first one, whatever its model has become.
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from math import isnan
from pathlib import Path
from statistics import fmean
from typing import Any

from gpo.config.components import Spec, made
from gpo.config.presets import model_path
from gpo.config.run import RunConfig
from gpo.experiment.budget import tokens_of
from gpo.storage.directory import RunDirectory
from gpo.storage.files import read_json, write_json, write_rows
from gpo.types import Group, Pair, Problem, StepScores


def questions_of(problems: Sequence[Problem], size: int | None, number: int) -> list[Problem]:
    """The problems of round `number`, from 1: the next `size` of them in turns. None: all."""
    size = min(size or len(problems), len(problems))
    first = (number - 1) * size
    return [problems[i % len(problems)] for i in range(first, first + size)]


def trains_on_pairs(method: Any) -> bool:
    """Whether a method is an offline one, which takes preference pairs in place of groups."""
    spec = Spec("method", method) if isinstance(method, str) else method
    return hasattr(spec.component_class() if isinstance(spec, Spec) else spec, "update_pairs")


def training_start(config: RunConfig, checkpoint: Path | None, **more: Any) -> Any:
    """The method that trains in a round.

    In the first round it begins with the engine's model, as a path or as a copy that training may change. In a later
    one it begins with a checkpoint, which is then the reference model of an offline method; that of an online one
    stays the model before all training, and its optimizer goes on.

    Args:
        config: of the run.
        checkpoint: what the round before has trained; None in the first one.
        more: settings that the run gives.
    """
    origin = _origin(config)
    more = {"temperature": config.temperature, **more}
    if checkpoint is None:
        return made("method", config.method, **origin, **more)
    method: Any = config.method
    if isinstance(method, Spec):
        method = replace(method, settings={k: v for k, v in method.settings.items() if k not in ("model", "tokenizer")})
    elif not isinstance(method, str) and hasattr(method, "model"):
        method = replace(method, model=None, tokenizer=None)
    given = {"model": str(checkpoint), "reference": origin.get("model")}
    return made("method", method, **given, **more)


def train_round(
    config: RunConfig,
    files: RunDirectory,
    arm: str,
    number: int,
    pairs: Sequence[Pair],
    tokens: int,
    on_step: Callable[[dict[str, float]], None],
) -> dict[str, float]:
    """Train on what a round sampled, and write the model and `training.json`.

    Args:
        config: of the run.
        files: of the run.
        arm: whose model it is.
        number: of the round, from 1.
        pairs: for an offline method; an online one takes the groups.
        tokens: that the arm has sampled in this round and the ones before.
        on_step: gets the metrics of every step.
    """
    method = training_start(
        config,
        files.checkpoint(arm, number - 1) if number > 1 else None,
        work_dir=files.arm(arm) / "unfinished",
        metrics_path=files.arm(arm) / "training.jsonl",
        on_step=on_step,
    )
    if hasattr(method, "updates"):
        method.updates = number - 1  # counts over rounds; a method's random numbers may depend on it
    groups = files.groups(arm, number, search=config.reuse)
    if hasattr(method, "round_metrics"):
        method.round_metrics = round_metrics(files, arm, number, groups, tokens)
    metrics: dict[str, float]
    if trains_on_pairs(config.method):
        del groups  # makes room
        metrics = method.update_pairs(pairs)
    else:
        metrics = method.update(groups)
    write_json(files.arm(arm, number) / "training.json", metrics)
    last = number == config.rounds
    if not last and hasattr(method, "merge"):
        method.merge = False  # the next round goes on with the adapters
    method.save(files.model(arm) if last else files.checkpoint(arm, number))
    # A later checkpoint stands for the earlier ones, which would fill the disk.
    shutil.rmtree(files.checkpoint(arm, number - 1), ignore_errors=True)
    return metrics


def round_metrics(files: RunDirectory, arm: str, number: int, groups: Sequence[Group], tokens: int) -> dict[str, float]:
    """What every row of a round's metrics tells of its sampling, as far as it is known.

    reward (mean score of the round's groups), tokens_sampled (by the arm so far), tokens_per_second (while it sampled
    so far, by the clock) and critical_advantage (mean over the searched trajectories with a critical step).
    """
    known = {
        "reward": _mean(t.score.value for group in groups for t in group.trajectories),
        "tokens_sampled": float(tokens),
        "tokens_per_second": files.tokens_per_second(arm),
        "critical_advantage": _mean(map(critical_advantage, files.scores(arm, number).read())),
    }
    return {name: value for name, value in known.items() if value is not None}


def _mean(values: Iterable[float | None]) -> float | None:
    """Of the numbers; None without one."""
    numbers = [value for value in values if value is not None]
    return fmean(numbers) if numbers else None


def _origin(config: RunConfig) -> dict[str, Any]:
    """The model before training, with its tokenizer where it is no path."""
    engine = config.engine
    if isinstance(engine, str):
        return {"model": model_path(config.model)}
    if isinstance(engine, Spec):
        return {"model": engine.settings.get("model") or model_path(config.model)}
    return {name: copy.deepcopy(getattr(engine, name)) for name in ("model", "tokenizer") if hasattr(engine, name)}


def write_rounds(files: RunDirectory, arm: str) -> None:
    """Write `rounds.jsonl`: a line for each round, with what it sampled and the metrics of its update."""
    write_rows(files.arm(arm) / "rounds.jsonl", [_row(files, arm, number) for number in files.rounds(arm)])


def _row(files: RunDirectory, arm: str, number: int) -> dict[str, Any]:
    """`accuracy` is that of the first rollouts of the round, by the model that the round began with."""
    first, scores = files.fresh(arm, number).read(), files.scores(arm, number).read()
    tokens = {
        "rollout": tokens_of(first) + tokens_of(files.more(arm, number).read()),
        "locate": sum(score.tokens for score in scores),
        "reset": tokens_of(files.resets(arm, number).read()),
    }
    return {
        "round": number,
        "accuracy": _mean(t.score.value for group in first for t in group.trajectories),
        "tokens": tokens,
        "critical_advantage": _mean(map(critical_advantage, scores)),  # as searched: the best of noisy values
        "training": read_json(files.arm(arm, number) / "training.json"),
    }


def critical_advantage(score: StepScores) -> float | None:
    """The advantage of the critical step; None without one or where it was not estimated."""
    if score.critical_step is None or isnan(score.advantages[score.critical_step]):
        return None
    return score.advantages[score.critical_step]
