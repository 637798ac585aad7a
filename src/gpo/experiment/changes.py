"""Which settings of a run may still change, by what is in its directory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gpo.storage.directory import RunDirectory
from gpo.storage.rounds import RoundState

OF_TRAINING = ("method.", "credit ", "pairs.")  # may change until a model is trained
OF_TEST = ("test_", "task.test_path ")
OF_QUESTIONS = ("problems ", *OF_TEST)  # which are chosen anew then, and begin with those that were asked
# What the first rollouts do not depend on: may change until an arm has sampled more than searches.
OF_ARMS = (
    *("arms.", "budget ", "locate_share ", "locate_per_problem ", "reset_rollouts ", "reset_fraction ", "reuse "),
    *("reset_turns ", "rounds ", "round_problems ", "allocation ", "fresh_least ", "buffer ", *OF_QUESTIONS),
)
# May differ from call to call: what is computed does not depend on them, but for rounding.
FREE = ("launch", "max_staleness", "piece_seconds", "workers", "engine.max_rows ", "engine.max_batch_tokens ")


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
