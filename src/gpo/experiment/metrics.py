"""What a round came to: by how it was sampled, and all rounds of an arm as a table."""

from __future__ import annotations

from statistics import fmean
from typing import Any

from gpo.experiment.resources import Resources
from gpo.storage.directory import RunDirectory
from gpo.storage.files import read_json, write_rows
from gpo.storage.rounds import RoundState, Sampled, Searched
from gpo.types import Stage, Trajectory


def round_metrics(work: Resources, state: RoundState) -> dict[str, float]:
    """What every row of a round's metrics tells of its sampling, as far as it is known.

    reward (mean score of the round's groups), tokens_sampled (by the arm so far), tokens_per_second (while it sampled
    so far, by the clock) and critical_advantage (mean over the searched trajectories with a critical step).
    """
    groups = state.groups(search=bool(work.config.reuse))
    rewards = [t.score.value for group in groups for t in group.trajectories if t.score.value is not None]
    known = {
        "reward": fmean(rewards) if rewards else None,
        "tokens_sampled": float(work.spent(state.arm, state.number)),
        "tokens_per_second": work.files.events.tokens_per_second(state.arm),
        "critical_advantage": state.scores.summary(Searched.of).critical_advantage,
    }
    return {name: value for name, value in known.items() if value is not None}


def write_rounds(files: RunDirectory, arm: str) -> None:
    """Write `rounds.jsonl`: a line for each round, with what it sampled and the metrics of its update."""
    buffer = files.config().get("buffer", 0)
    write_rows(files.arm(arm) / "rounds.jsonl", [_row(files, arm, number, buffer) for number in files.rounds(arm)])


def _row(files: RunDirectory, arm: str, number: int, buffer: int) -> dict[str, Any]:
    """`accuracy` is that of the first rollouts of the round, by the model that the round began with.

    `buffered` is how many of the trajectories that were searched are of rounds before.
    """
    state = RoundState.of(files, arm, number)
    tokens, buffered = state.tokens(), 0
    if buffer and number > 1:  # else a search looks at trajectories of its round only
        buffered = sum(_older(t, number) for t, _ in files.searched(arm, number))
        if number > buffer:
            files.forget(arm, number - buffer)
    return {
        "round": number,
        "accuracy": state.rollouts.summary(Sampled.of).accuracy,
        "tokens": {
            "rollout": tokens[Stage.ROLLOUT] + tokens[Stage.MORE],
            "locate": tokens[Stage.LOCATE],
            "reset": tokens[Stage.RESET],
        },
        "buffered": buffered,
        "critical_advantage": state.scores.summary(Searched.of).critical_advantage,
        "training": read_json(files.arm(arm, number) / "training.json"),
    }


def _older(trajectory: Trajectory, number: int) -> bool:
    """Whether a trajectory that a round searches is one of the buffer, sampled in a round before."""
    return trajectory.policy_version is not None and trajectory.policy_version < number - 1
