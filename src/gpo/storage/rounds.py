"""What an arm has in one round of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isnan
from pathlib import Path
from statistics import fmean

from gpo.storage.chunks import Chunks
from gpo.storage.directory import RunDirectory
from gpo.types import Evidence, Group, Stage, StepScores, tokens_of


@dataclass(frozen=True, slots=True)
class Sampled:
    """What is told of groups once their rows are no longer in memory."""

    tokens: int
    accuracy: float | None  # share of right ones among those that are graded; None without one
    inside: int  # distinct starts behind a step

    @classmethod
    def of(cls, groups: Sequence[Group]) -> Sampled:
        graded = [float(t.score.right) for g in groups for t in g.trajectories if t.score.value is not None]
        inside = len({group.start.key for group in groups if group.start.prefix_ids})
        return cls(tokens_of(groups), fmean(graded) if graded else None, inside)


@dataclass(frozen=True, slots=True)
class Searched:
    """The same of what a search found."""

    tokens: int
    trajectories: int
    critical: int  # of them with a critical step
    critical_advantage: float | None  # mean of the critical steps as searched, the best of noisy values; None: of none

    @classmethod
    def of(cls, scores: Sequence[StepScores]) -> Searched:
        steps = [(score, score.critical_step) for score in scores if score.critical_step is not None]
        known = [score.advantages[step] for score, step in steps if not isnan(score.advantages[step])]
        tokens = sum(score.tokens for score in scores)
        return cls(tokens, len(scores), len(steps), fmean(known) if known else None)


@dataclass(frozen=True)
class RoundState:
    """The rows of one round, as far as it is: stages add theirs, and nothing is read twice."""

    arm: str
    number: int  # from 1
    checkpoint: Path | None  # samples in this round, and training begins with it; None is the model before training
    rollouts: Chunks[Group]  # from the questions; those of the first round are of all arms
    scores: Chunks[StepScores]
    resets: Chunks[Group]
    more: Chunks[Group]  # from the questions beside the resets, where these do not take all that is left

    @classmethod
    def of(cls, files: RunDirectory, arm: str, number: int = 1) -> RoundState:
        return cls(
            arm,
            number,
            files.checkpoint(arm, number - 1) if number > 1 else None,
            files.fresh(arm, number),
            files.scores(arm, number),
            files.resets(arm, number),
            files.more(arm, number),
        )

    @property
    def label(self) -> str:
        """What progress and events call it."""
        return self.arm if self.number == 1 else f"{self.arm} {self.number}"

    def searched(self) -> list[Group]:
        """The rollouts of the search."""
        return [group for score in self.scores.read() for group in score.rollouts]

    def groups(self, *, search: bool = True) -> list[Group]:
        """Everything sampled, the search's rollouts only if `search`."""
        searched = self.searched() if search else []
        return [*self.rollouts.read(), *searched, *self.resets.read(), *self.more.read()]

    def evidence(self) -> Evidence:
        """What a search may learn from."""
        return Evidence(tuple(self.rollouts.read()), tuple(self.scores.read()))

    def tokens(self) -> dict[Stage, int]:
        """Sampled tokens by stage."""
        return {
            Stage.ROLLOUT: self.rollouts.summary(Sampled.of).tokens,
            Stage.LOCATE: self.scores.summary(Searched.of).tokens,
            Stage.RESET: self.resets.summary(Sampled.of).tokens,
            Stage.MORE: self.more.summary(Sampled.of).tokens,
        }


def sampled_by(files: RunDirectory, arm: str, number: int) -> list[dict[str, int]]:
    """What training notes of an arm's files up to each round, `number` the last: what is cut off later is seen."""
    noted, tokens, searched = [], 0, 0
    for each in range(1, number + 1):
        state = RoundState.of(files, arm, each)
        tokens += sum(state.tokens().values())
        searched += state.scores.summary(Searched.of).trajectories
        noted.append({"tokens_sampled": tokens, "trajectories_searched": searched})
    return noted
