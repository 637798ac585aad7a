"""What is stated of a run that nothing was sampled for, in place of a pilot."""

from __future__ import annotations

from dataclasses import dataclass
from math import nan

from scipy.stats import betabinom

from gpo.advice.cost import ModelShape, gpu_named
from gpo.advice.pilot import Asked, Pilot
from gpo.errors import ConfigError

QUESTIONS = 32  # that stand for all
SPREAD = 4.0  # strength of the Beta law of how often a question is solved, as seen of the embedded reasoner


@dataclass(frozen=True)
class Plan:
    """Lengths are mean tokens.

    Raises:
        ConfigError: a number is out of range.
    """

    prompt: float
    response: float
    steps: float  # of a response
    right: float  # share of the responses, between 0 and 1
    gpu: str | None = None
    shape: ModelShape | None = None  # of the model, where its configuration is not at hand

    def __post_init__(self) -> None:
        if not 0 < self.right < 1:
            raise ConfigError(f"right is {self.right}, expected a share between 0 and 1, such as 0.6.")
        if self.prompt < 0 or not 1 <= self.steps <= self.response:
            raise ConfigError(
                f"A response of {self.response:g} tokens in {self.steps:g} steps to a prompt of {self.prompt:g} cannot "
                "be: a step has at least one token."
            )
        if self.gpu is not None:
            gpu_named(self.gpu)

    def pilot(self, rollouts: int) -> Pilot:
        """As if questions had been asked so often each: steps are equally long, no two responses alike.

        How many of a question's responses are right are quantiles of a Beta-binomial law of the strength `SPREAD`.
        """
        law = betabinom(rollouts, SPREAD * self.right, SPREAD * (1 - self.right))
        counts = [int(law.ppf((i + 0.5) / QUESTIONS)) for i in range(QUESTIONS)]
        asked = [
            Asked(
                id=str(number),
                prompt=round(self.prompt),
                response=self.response,
                steps=self.steps,
                right=right,
                wrong=rollouts - right,
                kinds_right=(1,) * right,
                kinds_wrong=(1,) * (rollouts - right),
            )
            for number, right in enumerate(counts)
        ]
        return Pilot(tuple(asked), (), (), nan, self.response * (self.steps + 1) / 2, None)
