"""How a run directory begins, and which of its settings may still change, by what is in it."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gpo import __version__
from gpo.config.options import with_defaults
from gpo.config.run import differences
from gpo.config.trust import remember
from gpo.errors import ConfigError
from gpo.experiment.questions import choose_problems
from gpo.images.tokenizer import shows_images
from gpo.rollout.prompting import question_start
from gpo.storage.directory import RunDirectory
from gpo.storage.files import remove, write_json
from gpo.storage.rounds import RoundState
from gpo.types import Problem, Split

if TYPE_CHECKING:
    from gpo.experiment.resources import Resources

OF_TRAINING = ("method.", "credit ", "pairs.")  # may change until a model is trained
OF_TEST = ("test_", "task.test_path ")
OF_QUESTIONS = ("problems ", *OF_TEST)  # which are chosen anew then, and begin with those that were asked
# What the first rollouts do not depend on: may change until an arm has sampled more than searches.
OF_ARMS = (
    *("arms.", "budget ", "locate_share ", "locate_per_problem ", "reset_rollouts ", "reset_fraction ", "reuse "),
    *("reset_turns ", "rounds ", "round_problems ", "allocation ", "fresh_least ", "buffer ", *OF_QUESTIONS),
)
# May differ from call to call: what is computed does not depend on them, but for rounding. `max_staleness` is no more.
FREE = ("launch", "max_staleness", "piece_seconds", "workers", "engine.max_rows ", "engine.max_batch_tokens ")

log = logging.getLogger(__name__)


def stored_settings(files: RunDirectory) -> dict[str, Any] | None:
    """Those of a directory; None where it has none.

    Raises:
        ConfigError: it holds something else than a run.
    """
    stored = files.config_or_none()
    if stored is not None and "arms" not in stored:
        raise ConfigError(f"{files.path} is no run. Choose another directory.")
    return stored


def changed_settings(files: RunDirectory, stored: Mapping[str, Any] | None, now: Mapping[str, Any]) -> list[str]:
    """Those of a described configuration that differ from the stored ones, which then give way to them.

    Raises:
        ConfigError: one has changed too late.
    """
    known = {} if stored is None else with_defaults(stored)
    changed = [each for each in differences(known, now) if not each.startswith(FREE)] if known else []
    if changed and (refused := too_late(files, known, now, changed)):
        raise ConfigError(
            f"{files.path} was made with other settings: {'; '.join(refused[:3])}. "
            "Leave these as they were, or choose another run directory."
        )
    return changed


def begin(work: Resources) -> None:
    """Write the problems and the configuration, once everything that they name has been found to work."""
    files = work.files
    stored = stored_settings(files)  # somebody else may have begun since
    changed = changed_settings(files, stored, work.described)
    if stored is not None and files.version != __version__ and files.events.version(__version__):
        log.warning("%s was begun by GPO %s and goes on with %s.", files.path, files.version, __version__)
    asked = [group.start.problem_id for group in files.rollouts.read()]
    if stored is not None and not changed and files.problems("train") is not None:
        return
    # What was begun with other settings is not gone on with.
    for name in ("journal.jsonl", "pieces.json"):
        remove(files.path / name)
    if any(each.startswith(("credit ", "pairs.")) for each in changed):
        for arm in work.config.arms:
            remove(files.dataset(arm))
            remove(files.pairs(arm))
    if asked and stored is None:
        raise ConfigError(
            f"{files.path} has samples and no config.json, which says what they are. Put it back, or choose "
            "another run directory."
        )
    if not asked:
        chosen = work.given or choose_problems(work.task, work.config)
        engine = work.engine()
        every = (problem for problems in chosen.values() for problem in problems)
        if shown := next((each for each in every if shows_images(work.task.prompt(each))), None):
            question_start(shown, work.task, engine.tokenizer)  # an engine that takes none says so here
        files.write_problems(chosen)
    elif any(each.startswith(OF_QUESTIONS) for each in changed):
        files.write_problems(_chosen_anew(work, asked, changed))
    write_json(files.path / "config.json", {"gpo": __version__, **work.described})
    remember(files.path)


def _chosen_anew(work: Resources, asked: Sequence[str], changed: Sequence[str]) -> dict[Split, list[Problem]]:
    """The problems by other settings than those by which some were asked.

    Raises:
        ConfigError: those that were asked are not the first of them.
    """
    if any(each.startswith("problems ") for each in changed):
        chosen = choose_problems(work.task, work.config)
    else:  # what is trained on stays what it is, wherever it came from
        train = work.files.problems("train") or []
        chosen = {"train": train, **choose_problems(work.task, work.config, "test")}
    if list(asked) != [problem.id for problem in chosen["train"]][: len(asked)]:
        raise ConfigError(
            f"{work.files.path} has asked {len(asked)} questions, which are not the first of the "
            f"{len(chosen['train'])} that these settings choose. Choose another run directory."
        )
    return chosen


def too_late(
    files: RunDirectory, before: Mapping[str, Any], now: Mapping[str, Any], changed: Sequence[str]
) -> list[str]:
    """Those of the changes that what is sampled and trained does not allow any more.

    Before anything is sampled all settings may change. A search that is there may be left aside with its arm, and not
    become another one.

    Args:
        before, now: described configurations.
        changed: what `differences` says of them.
    """
    evaluated = any(path.stat().st_size for path in (files.path / "evaluation").glob("*.jsonl"))
    if not files.rollouts.read() and not evaluated:
        return []
    arms = list(before["arms"])
    asked = () if evaluated else OF_TEST
    if any((files.arm(arm) / name).exists() for arm in arms for name in ("model", "checkpoints")):
        return [each for each in changed if not each.startswith(asked)]
    free = (*OF_TRAINING, *asked) if evaluated or _have_sampled(files, arms) else (*OF_TRAINING, *OF_ARMS)
    kept = tuple(f"arms.{arm}." for arm in arms if arm in now["arms"] and files.scores(arm).read())
    return [each for each in changed if not each.startswith(free) or (kept and each.startswith(kept))]


def _have_sampled(files: RunDirectory, arms: Sequence[str]) -> bool:
    """Whether one of these arms has more than the first rollouts and searches of the first round."""
    states = [RoundState.of(files, arm) for arm in arms]
    return any(state.resets.read() or state.more.read() or files.rounds(state.arm) != [1] for state in states)
