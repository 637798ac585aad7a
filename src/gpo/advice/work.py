"""What the arms of a run will sample and train on, foretold from a pilot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, isnan
from typing import Any

from scipy.stats import betabinom

from gpo.advice.cost import ModelShape, Operations, TrainingMemory, Work, operations, training_memory
from gpo.advice.pilot import Asked, Pilot
from gpo.config.components import Spec, made
from gpo.config.run import RunConfig, describe, settled
from gpo.estimators.matched import MatchedRandom
from gpo.estimators.none import NoReset
from gpo.estimators.random import RandomStep
from gpo.experiment.budget import search_limit
from gpo.experiment.plan import FIRST, foretell
from gpo.types import Stage

STRENGTHS = tuple(2.0**power for power in range(-3, 6))  # of the prior of a question's success, that are tried
# Where no search was tried, as seen of the embedded reasoner: the part that a search takes of the rollouts it may have,
# and how many times as many pairs a question has once one of its trajectories was searched.
TAKEN, GAIN = {"adaptive": 0.4}, 2.1


@dataclass(frozen=True)
class Training:
    """The settings of a method that its cost depends on."""

    pairs: bool  # trains on preference pairs, else on groups
    epochs: int = 1
    minibatches: int = 1
    lora: int | None = None
    twice: bool = False  # activations are computed twice
    bf16: bool = False
    reference: bool = False  # a second model beside the policy
    looks: int = 0  # passes without gradients in an update, beside those of the reference and of the policy before it
    pairs_together: int = 16  # in memory
    tokens_together: int = 8192  # of an online method

    @classmethod
    def of(cls, config: RunConfig) -> Training:
        method: Any = made("method", config.method)
        pairs = method.trains_on == "pairs"
        return cls(
            pairs=pairs,
            epochs=getattr(method, "epochs", 1),
            minibatches=getattr(method, "minibatches", 1),
            lora=getattr(method, "lora", None),
            twice=getattr(method, "gradient_checkpointing", False),
            bf16=getattr(method, "bf16", False),
            reference=not pairs and getattr(method, "beta", 0) > 0,
            looks=getattr(method, "extra_passes", 0),
            pairs_together=getattr(method, "batch_size", 16),
            tokens_together=getattr(method, "max_tokens", 8192),
        )

    def memory(self, shape: ModelShape, pilot: Pilot) -> TrainingMemory:
        """By the distinct tokens of a batch."""
        one = pilot.prompt + (2 if self.pairs else 1) * pilot.response
        tokens = self.pairs_together * one if self.pairs else max(one, float(self.tokens_together))
        return training_memory(shape, tokens, lora=self.lora, twice=self.twice, models=1 + self.reference)

    def operations(self, shape: ModelShape, work: Work) -> Operations:
        return operations(shape, work, lora=self.lora, twice=self.twice)


def searches(estimator: Any) -> bool:
    """Whether an arm samples to find its reset."""
    return not issubclass(_class_of(estimator), NoReset | MatchedRandom | RandomStep)


def search_rollouts(config: RunConfig, arm: str) -> float:
    """How many a search is taken to sample from every boundary of a trajectory, by its settings; 0: none."""
    arms = describe(config)["arms"]
    found = arms[arm]
    if issubclass(_class_of(config.arms[arm]), MatchedRandom):
        found = arms[found["arm"]]
    return float(TAKEN.get(found["name"], 1.0) * found.get("rollouts", 0))


def _class_of(estimator: Any) -> type:
    if isinstance(estimator, Spec | str):
        spec = Spec("estimator", estimator) if isinstance(estimator, str) else estimator
        found: type = spec.component_class()
        return found
    return type(estimator)


def work_of(config: RunConfig, arm: str, questions: int, pilot: Pilot, training: Training) -> Work:
    """What an arm samples and trains on in all rounds, if every question is like those of the pilot.

    Pairs: a question that was not searched has as many as the more frequent of its outcomes, among different responses;
    further rollouts follow the Beta-binomial law of what the pilot saw of it. One that was searched has as many as
    those that the pilot searched. A round is like the first. Where the pilot searched nothing, a search takes what its
    settings say (`search_rollouts`).

    Args:
        questions: training problems.
    """
    config = settled(config)
    kind = _class_of(config.arms[arm])
    asked = min(config.round_problems or questions, questions)
    length, prompt = pilot.response, pilot.prompt
    planned = foretell(config, questions, 0, length)
    first = float(planned[FIRST])
    budget = (first + planned[arm]) / config.rounds
    looks = not issubclass(kind, NoReset | RandomStep)
    resets = not issubclass(kind, NoReset)
    stratum = resets and config.by_stratum(arm)
    each = search_rollouts(config, arm) * pilot.weight if isnan(pilot.search_tokens) else pilot.search_tokens
    candidates = asked * min(config.locate_per_problem, config.rollouts)
    located = 0.0
    if looks and not isnan(each):
        share = config.locate_share or 0.0
        share = min(share, 1 - config.fresh_least) if stratum else share
        located = min(search_limit(budget, first, share), candidates * each)
    left = budget - first - located
    searched = located / each if located else 0.0

    tail = length
    if resets:
        anywhere = issubclass(kind, MatchedRandom | RandomStep) or isnan(pilot.tail)
        tail = pilot.weight / max(pilot.steps, 1.0) if anywhere else pilot.tail
    behind = min(left, config.reset_fraction * budget) if resets else left
    if stratum:
        behind = max(0.0, min(behind, (1 - config.fresh_least) * budget - located))
    elif resets and (turns := config.reset_turns):
        behind = min(behind, turns * config.reset_rollouts * tail * (searched if looks and located else candidates))
    more = left - behind
    rollout = [one.rollout_tokens for one in pilot.searched if not isnan(one.rollout_tokens)]
    of_search = sum(rollout) / len(rollout) if rollout else length
    from_questions = asked * config.rollouts + (more if resets else left) / length
    from_resets = behind / max(tail, 1.0) if resets else 0.0
    from_search = located / of_search if located else 0.0
    starts = min(from_resets / config.reset_rollouts, searched if resets and searched else inf)
    prompts = asked * prompt + (searched * (prompt + length) + starts * (prompt + length - tail) if resets else 0.0)

    details = {"searched": searched, "trajectories": from_questions + from_resets + from_search}
    trained = scored = 0.0
    if training.pairs:
        per_question = from_questions / asked
        count, tokens = _pairs(config, pilot, asked, per_question, searched if searched else starts)
        trained, scored = training.epochs * tokens, tokens * (1 + training.looks)
        details["pairs"] = count
    else:
        whole = (from_questions + from_resets + from_search * bool(config.reuse)) * (prompt + length)
        trained = training.epochs * whole
        scored = whole * ((training.epochs * training.minibatches > 1) + training.reference + training.looks)
    stages = {Stage.ROLLOUT: first, Stage.LOCATE: located, Stage.RESET: behind, Stage.MORE: more}
    rounds = config.rounds
    return Work(
        sampled={stage.value: rounds * tokens for stage, tokens in stages.items()},
        prompts=rounds * prompts,
        trained=rounds * trained,
        scored=rounds * scored,
        context=prompt + length,
        details={name: rounds * value for name, value in details.items()},
    )


def _pairs(config: RunConfig, pilot: Pilot, asked: int, rollouts: float, searched: float) -> tuple[float, float]:
    """Pairs of a round, and the tokens of both sequences of each."""
    cap = config.pairs.per_problem or config.rollouts * config.pairs.per_start
    scale = asked / len(pilot.asked)
    mixed = sum(scale for each in pilot.asked if 0 < each.right < each.graded)
    share = min(1.0, searched / mixed) if mixed else 0.0  # of the questions with both outcomes, that were searched
    prior, most = prior_of(pilot.asked), min(cap, config.pairs.per_start)
    # How many times as many pairs a question has once one of its trajectories was searched.
    seen = [(each.searched_pairs, pairs_of(each, 0, most, prior)) for each in pilot.asked if each.searched_pairs]
    gain = sum(after for after, _ in seen) / max(sum(before for _, before in seen), 1.0) if seen else GAIN
    count = tokens = 0.0
    for each in pilot.asked:
        pairs = pairs_of(each, rollouts, most, prior)
        if 0 < each.right < each.graded:
            found = (
                min(float(cap), gain * pairs_of(each, 0, most, prior))
                if each.searched_pairs is None
                else each.searched_pairs
            )
            pairs = (1 - share) * pairs + share * max(pairs, found)
        count += scale * pairs
        tokens += scale * pairs * 2 * (each.prompt + each.response)
    if config.pairs.most is not None and count > config.pairs.most:
        tokens, count = tokens * config.pairs.most / count, float(config.pairs.most)
    return count, tokens


def prior_of(asked: Sequence[Asked]) -> tuple[float, float]:
    """The Beta prior of a question's success whose strength makes the pilot most likely; its mean is the pilot's."""
    right, graded = sum(each.right for each in asked), sum(each.graded for each in asked)
    mean = (right + 0.5) / (graded + 1)

    def likelihood(strength: float) -> float:
        a, b = mean * strength, (1 - mean) * strength
        counts = [each.right for each in asked], [each.graded for each in asked]
        return float(betabinom.logpmf(*counts, a, b).sum())

    strength = max(STRENGTHS, key=likelihood)
    return mean * strength, (1 - mean) * strength


def pairs_of(asked: Asked, rollouts: float, cap: int, prior: tuple[float, float]) -> float:
    """Expected pairs of a question that is asked so often, in all."""
    again = max(0, round(rollouts) - asked.graded)
    law = betabinom(again, asked.right + prior[0], asked.wrong + prior[1])
    total = 0.0
    for new, chance in enumerate(law.pmf(range(again + 1)).tolist()):
        right, wrong = kinds(asked.kinds_right, new), kinds(asked.kinds_wrong, again - new)
        if right and wrong:
            total += chance * min(cap, max(right, wrong))
    return total


def kinds(counts: Sequence[int], again: int) -> float:
    """Expected number of different responses once `again` more are drawn.

    Source: Chao et al. 2014, equation 9, with the estimate of unseen ones by Chao 1984. Where nothing was seen all are
    taken for different.
    """
    seen, once, twice = sum(counts), counts.count(1), counts.count(2)
    if not seen:
        return float(again)
    if not once:
        return float(len(counts))
    unseen = (seen - 1) / seen * (once**2 / (2 * twice) if twice else once * (once - 1) / 2)
    if not unseen:
        return len(counts) + again * once / seen if seen == 1 else float(len(counts))
    return len(counts) + unseen * (1 - (1 - once / (seen * unseen + once)) ** again)
