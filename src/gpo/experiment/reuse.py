"""The samples of a run for a second method: what was sampled does not depend on what is trained on it."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from gpo.config.models import search_of
from gpo.config.options import resolve
from gpo.config.run import RunConfig, describe, differences, settled
from gpo.config.trust import foreign_code, refuse_strangers
from gpo.errors import ConfigError
from gpo.estimators.matched import MatchedRandom
from gpo.experiment.changes import FREE, OF_ARMS, OF_TEST, OF_TRAINING
from gpo.experiment.resources import Resources
from gpo.storage.directory import BASE, RunDirectory
from gpo.storage.files import replacing
from gpo.storage.rounds import RoundState

TRAINED = (*OF_TRAINING, *OF_TEST, *FREE)  # settings that say nothing about what is sampled to train on
ROUNDS = ("problems ", "rounds ", "round_problems ")  # settings of arms that the first rollouts depend on
LATER = (*TRAINED, *(name for name in OF_ARMS if name not in ROUNDS))  # settings that say nothing about the first ones


def take_samples(source: Path, target: Path, options: Mapping[str, str]) -> RunConfig:
    """Begin a run with the first rollouts, searches and resets of another one; the settings of the new run.

    Args:
        source: a run of one round, whose settings the new one takes.
        target: a directory without samples.
        options: that differ, such as `{"method": "kto"}`.

    Raises:
        ConfigError: the directory has samples of its own, the run has several rounds or other people's code, or an
            option would change what is sampled.
    """
    files, found = RunDirectory(source), RunDirectory(target)
    stored = files.config()
    refuse_strangers(source, stored, options.values())
    if files.traces.exists():
        raise ConfigError(f"{source} holds solutions that somebody else wrote: nothing can be trained on them.")
    if found.rollouts.read() and found.rollouts.read() == files.rollouts.read():
        return resolve(options, found.config())  # the same command again
    if found.rollouts.read():
        raise ConfigError(f"{target} has samples of its own. Choose another directory for those of {source}.")
    before, config = resolve({}, stored), resolve(options, stored)
    if before.rounds > 1 or config.rounds > 1:
        raise ConfigError(f"{source} has {before.rounds} rounds; only samples of the first model serve another method.")
    known, wanted = describe(before), describe(config)
    known["arms"] = {arm: each for arm, each in known["arms"].items() if arm in wanted["arms"]}  # some may be left out
    changed = [each for each in differences(known, wanted) if not each.startswith(TRAINED)]
    if changed:
        raise ConfigError(f"The samples of {source} were made with other settings: {'; '.join(changed[:3])}.")
    copy_samples(source, target, config)
    return config


def first_alike(one: RunConfig, other: RunConfig) -> bool:
    """Whether two runs have the same first rollouts; then the same questions have the same answers before training."""
    changed = differences(_without_arms(one), _without_arms(other))
    return all(each.startswith(LATER) for each in changed)


def arms_alike(one: RunConfig, other: RunConfig) -> set[str]:
    """The arms that search and reset in both runs alike. None where there are several rounds, which train between."""
    one, other = settled(one), settled(other)
    changed = differences(_without_arms(one), _without_arms(other))
    if max(one.rounds, other.rounds) > 1 or not all(each.startswith(TRAINED) for each in changed):
        return set()
    first, second = describe(one)["arms"], describe(other)["arms"]
    same = {arm for arm in first if first[arm] == second.get(arm)}
    searches = {arm: search_of(one, arm) for arm in same}
    return {arm for arm, each in searches.items() if not isinstance(each, MatchedRandom) or each.arm in same}


def _without_arms(config: RunConfig) -> dict[str, Any]:
    return {name: value for name, value in describe(config).items() if name != "arms"}


def copy_samples(source: Path, target: Path, config: RunConfig) -> None:
    """What a run has sampled that another one would sample alike: first rollouts, searches and resets of arms, and,
    where the same is asked, questions and answers before training.

    Samples that the other run has already stay.

    Raises:
        ConfigError: the run names other people's code that the new one does not.
    """
    files = RunDirectory(source)
    raw = files.config()
    refuse_strangers(source, raw, foreign_code(describe(config)))
    stored = resolve({}, raw)
    if RunDirectory(target).rollouts.read() or not first_alike(stored, config):
        return
    arms = arms_alike(stored, config)
    work = Resources(target, replace(config, launch=None))
    with work.held():
        for path in _samples(files, sorted(arms), same_questions=ask_alike(stored, config)):
            with replacing(target / path.relative_to(source)) as partial:
                shutil.copyfile(path, partial)


def ask_alike(one: RunConfig, other: RunConfig) -> bool:
    """Whether two runs that have the same first rollouts ask the same test questions alike."""
    return not any(each.startswith(OF_TEST) for each in differences(describe(one), describe(other)))


def _samples(files: RunDirectory, arms: list[str], same_questions: bool) -> list[Path]:
    """The first rollouts last: a directory that was not filled to its end has no samples."""
    paths = [files.path / "problems.jsonl"] if same_questions else []
    paths += [files.evaluation(BASE).path] if same_questions else []
    paths += sorted(files.images.glob("*.png"))
    for arm in arms:
        state = RoundState.of(files, arm)
        paths += [state.scores.path, state.resets.path, state.more.path]
    return [path for path in [*paths, files.rollouts.path] if path.exists()]
