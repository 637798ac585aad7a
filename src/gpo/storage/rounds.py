"""What an arm has in one round of a run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gpo.storage.chunks import Chunks
from gpo.storage.directory import RunDirectory
from gpo.types import Evidence, Group, Stage, StepScores, tokens_of


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
            Stage.ROLLOUT: tokens_of(self.rollouts.read()),
            Stage.LOCATE: sum(score.tokens for score in self.scores.read()),
            Stage.RESET: tokens_of(self.resets.read()),
            Stage.MORE: tokens_of(self.more.read()),
        }


def sampled_by(files: RunDirectory, arm: str, number: int) -> dict[str, int]:
    """What training notes of the files of an arm's rounds up to this one: if one is cut off later, that is seen."""
    states = [RoundState.of(files, arm, each) for each in range(1, number + 1)]
    return {
        "tokens_sampled": sum(sum(state.tokens().values()) for state in states),
        "trajectories_searched": sum(len(state.scores.read()) for state in states),
    }
