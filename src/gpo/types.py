"""All data types of GPO, in one place and without torch.

Axis names used in comments: P prompt tokens, R prefix tokens, T completion tokens, K steps, G trajectories of a
group. A *response* is everything after the prompt: prefix followed by completion. Token offsets count from the start
of the response.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import pairwise
from math import inf, isnan
from pathlib import Path
from typing import Any, Literal, TypedDict, get_args

from gpo.errors import ConfigError

DEFAULT_RUN = "runs/gpo"  # the directory of a command that names none
Split = Literal["train", "dev", "test"]
Verdict = Literal["right", "wrong", "ungradable", "failed"]
FinishReason = Literal["stop", "length"]
Truncated = Literal["rejected", "excluded"]
Credit = Literal["tail", "step", "tree"]
"""What a rollout's score is credit for: all that was sampled (`tail`), the step behind a start of rollouts (`step`), or
each step by what all rollouts say that it is worth (`tree`)."""
PrefixIn = Literal["prompt", "completion", "masked"]
"""Where the shared prefix of a pair goes: to the prompt, or to both completions, where it is trained on
(`completion`) or carries no loss (`masked`: the token ids are trained as with `prompt`, only the text differs)."""


class Stage(StrEnum):
    """What a run does, in this order; `more` is what a reset fraction leaves for the questions."""

    ROLLOUT = "rollout"
    LOCATE = "locate"
    RESET = "reset"
    MORE = "more"
    BUILD = "build"
    TRAIN = "train"
    EVALUATE = "evaluate"
    REPORT = "report"


class Message(TypedDict):
    """One turn of a conversation, as chat templates take it.

    Content in parts is texts ({"type": "text", "text": ...}) and images ({"type": "image", "image": a path or an image
    of Pillow}).
    """

    role: str
    content: str | list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Problem:
    """One question with its reference answer."""

    id: str  # unique within a task, stable between runs
    question: str
    answer: str
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def subtask(self) -> str:
        """The sub-task that it belongs to; "" where its task has none."""
        return str(self.metadata.get("subtask", ""))


@dataclass(frozen=True, slots=True)
class Score:
    """The verdict on one response.

    `wrong` has an answer that is not the reference, `ungradable` has no extractable answer (both are worth 0), and
    `failed` means that the grader itself broke: its value is None and it must not be averaged as a 0.
    """

    value: float | None  # in [0, 1]; None if and only if failed
    verdict: Verdict
    answer: str | None = None  # what was extracted
    reason: str | None = None  # why the grader failed, such as "TimeoutError: 5 s"

    @property
    def right(self) -> bool:
        return self.verdict == "right"


_ROUNDING = 1e-6  # by which numbers of `StepScores` may differ that belong together
StartKey = tuple[str, tuple[int, ...], tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Start:
    """Where sampling starts: a rendered question, and the part of a response that is kept."""

    problem_id: str
    prompt_ids: tuple[int, ...]  # (P,)
    prefix_ids: tuple[int, ...] = ()  # (R,), empty for a rollout from the question
    parent: str | None = None  # id of the trajectory whose prefix this is

    @property
    def token_ids(self) -> tuple[int, ...]:
        """What the model is given, (P + R,)."""
        return self.prompt_ids + self.prefix_ids

    @property
    def key(self) -> StartKey:
        """What tells one start from another: starts with equal keys are the same place, whoever cut them.

        The problem is a part of it, because the same tokens can be graded otherwise in another.
        """
        return (self.problem_id, self.prompt_ids, self.prefix_ids)


@dataclass(frozen=True, slots=True)
class Completion:
    """Sampled tokens. The end-of-sequence token is the last of them if and only if it was sampled."""

    token_ids: tuple[int, ...]  # (T,)
    text: str  # decoded without special tokens
    finish_reason: FinishReason
    logprobs: tuple[float, ...] | None = None  # (T,) nats, of the sampled tokens at the sampling temperature


@dataclass(frozen=True, slots=True)
class Trajectory:
    """A scored and segmented response."""

    id: str
    start: Start
    completion: Completion
    score: Score
    step_ends: tuple[int, ...]  # (K,) increasing; the last is the length of the response
    policy_version: int | None = None  # rounds of training behind the policy that sampled it; None: not known

    @property
    def response_ids(self) -> tuple[int, ...]:
        """Prefix and completion, (R + T,)."""
        return self.start.prefix_ids + self.completion.token_ids

    @property
    def boundaries(self) -> tuple[int, ...]:
        """(K + 1,) the token offsets at which a value is defined: 0 and every step end."""
        return (0, *self.step_ends)

    def prefix(self, boundary: int) -> Start:
        """The start that keeps the first `boundary` steps, 0 <= boundary <= K."""
        end = self.boundaries[boundary]
        return Start(self.start.problem_id, self.start.prompt_ids, self.response_ids[:end], self.id)


@dataclass(frozen=True, slots=True)
class Group:
    """A start and the trajectories sampled from it."""

    start: Start
    trajectories: tuple[Trajectory, ...]  # (G,)


def tokens_of(groups: Iterable[Group]) -> int:
    """Sampled tokens."""
    return sum(len(trajectory.completion.token_ids) for group in groups for trajectory in group.trajectories)


@dataclass(frozen=True, slots=True)
class StepScores:
    """What an estimator says about one trajectory.

    `values[k]` estimates V_k, the success probability after k steps. The last value is the observed reward. A search
    that only counts has NaN with count 0 where it did not look; one that models the values (`adaptive`, `critic`) has a
    number there too, and the count is 0 all the same. `advantages[k] = values[k+1] - values[k]` belongs to step k.
    """

    trajectory_id: str
    values: tuple[float, ...]  # (K+1,) in [0, 1] or NaN
    counts: tuple[int, ...]  # (K+1,) scored rollouts behind each value
    lower: tuple[float, ...]  # (K+1,) interval of each value, at the estimator's `confidence`
    upper: tuple[float, ...]  # (K+1,)
    advantages: tuple[float, ...]  # (K,)
    critical_step: int | None  # 0-based step index, None if no step stands out
    reset_boundary: int | None  # boundary to reset to; 0 is the question itself
    tokens: int  # tokens sampled for this trajectory's search
    rollouts: tuple[Group, ...] = ()  # the search's own rollouts, by prefix

    def misfit(self, steps: int, *, new: bool = False) -> str | None:
        """What does not fit a trajectory of so many steps; None if all does.

        Args:
            new: a search gives it now, of which more is asked than of what was stored once.
        """
        return next(self._misfits(steps, new=new), None)

    def _misfits(self, steps: int, *, new: bool) -> Iterator[str]:
        for name in ("values", "counts", "lower", "upper", "advantages"):
            found, expected = getattr(self, name), steps + (name != "advantages")
            if not isinstance(found, tuple):
                yield f"{name} as a {type(found).__name__}; expected a tuple"
            if len(found) != expected:
                yield f"{len(found)} {name} for {steps} steps; expected {expected}"
            kinds = (int,) if name == "counts" else (float, int)
            if odd := [type(number).__name__ for number in found if not isinstance(number, kinds)]:
                yield f"{name} with a {odd[0]}; expected plain {kinds[0].__name__}"
        for value, low, high in zip(self.values, self.lower, self.upper, strict=True):
            if not (isnan(value) or 0 <= value <= 1):
                yield f"the value {value}; expected a probability, or NaN where none is known"
            if new and (low > value + _ROUNDING or high < value - _ROUNDING):
                yield f"an interval from {low:g} to {high:g} for the value {value:g}; expected one that holds it"
        for k, (advantage, (before, after)) in enumerate(zip(self.advantages, pairwise(self.values), strict=True)):
            change = after - before
            if new and (isnan(advantage) != isnan(change) or abs(advantage - change) > _ROUNDING):
                yield f"the advantage {advantage:g} of step {k}; expected {change:g}, the difference of its values"
        # Behind the last step nothing is left to sample; without steps boundary 0 is the question.
        for name, most in (("critical_step", steps - 1), ("reset_boundary", max(steps - 1, 0) if new else steps)):
            if (place := getattr(self, name)) is not None and not (type(place) is int and 0 <= place <= most):
                yield f"{name} {place!r} for {steps} steps; expected an int from 0 to {most}, or None"
        if type(self.tokens) is not int or self.tokens < 0 or min(self.counts) < 0:
            yield f"tokens {self.tokens!r} and counts from {min(self.counts)} on; expected int from 0 on"


@dataclass(frozen=True, slots=True)
class Request:
    """What an engine is asked for: n continuations of one token sequence."""

    token_ids: tuple[int, ...]
    n: int
    max_tokens: int
    seed: int  # continuation i of the same request and seed is the same on one machine


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that a round has sampled so far, unselected, for an estimator to learn from."""

    groups: tuple[Group, ...] = ()  # every rollout from the questions, whether its trajectory is searched or not
    scores: tuple[StepScores, ...] = ()  # of the trajectories searched before, their rollouts included
    earlier: tuple[StepScores, ...] = ()  # of those that policies of rounds before searched, the last ones


@dataclass(frozen=True, slots=True)
class ModelRef:
    """Which model is meant: resolved once, then handed down."""

    source: Any  # directory (of a model or of LoRA adapters) or hub id; or a model in memory, which nobody writes to
    name: str  # what tables, provenance and messages call it
    revision: str | None = None  # of a hub id
    tokenizer: Any = None  # directory, hub id or object; None: the one beside the model


@dataclass(frozen=True, slots=True)
class Pair:
    """Two continuations of prompt + prefix: `chosen` is right, `rejected` is not.

    A completion ends with the end-of-sequence token if and only if it was sampled. Texts leave out that last token.
    """

    problem_id: str
    prompt_ids: tuple[int, ...]  # (P,)
    prefix_ids: tuple[int, ...]  # (R,)
    chosen_ids: tuple[int, ...]  # (T,)
    rejected_ids: tuple[int, ...]  # (T,)
    prompt: str
    prefix: str
    chosen: str
    rejected: str
    provenance: Mapping[str, Any] = field(default_factory=dict)  # JSON values


@dataclass(frozen=True)
class PairSettings:
    """How preference pairs are made of groups.

    Raises:
        ConfigError: a setting is of another type, or out of its range.
    """

    per_start: int = 16  # as many as of a problem, so that an arm of one start a problem is not short of pairs
    per_problem: int | None = 16  # taken in turns from the starts of a problem; None: no cap
    most: int | None = None  # in all; None: no cap
    truncated: Truncated = "rejected"  # what a completion that ran out of tokens may be
    prefix_in: PrefixIn = "prompt"
    certainty: float = 0.75  # of pairs of steps: posterior probability that the chosen one is better, at least
    strength: float = 2.0  # of step credit: rollouts that the prefix's own value counts as

    def __post_init__(self) -> None:
        for name in ("per_start", "per_problem", "most"):
            cap, none = getattr(self, name), name != "per_start"
            if not ((none and cap is None) or (type(cap) is int and cap >= 1)):
                raise ConfigError(f"pairs.{name} is {cap!r}, expected at least 1{', or none for all' * none}.")
        for name, choices in (("truncated", get_args(Truncated)), ("prefix_in", get_args(PrefixIn))):
            if (choice := getattr(self, name)) not in choices:
                raise ConfigError(f"pairs.{name} is {choice!r}, expected {' or '.join(choices)}.")
        for name, low, high in (("certainty", 0.5, 1.0), ("strength", 0.0, inf)):
            value = getattr(self, name)
            if type(value) not in (float, int) or not low <= value < high:
                most = "" if high == inf else f" and below {high:g}"
                raise ConfigError(f"pairs.{name} is {value!r}, expected a number of at least {low:g}{most}.")


@dataclass(frozen=True)
class RoundContext:
    """What a method is told of the round that it trains in. Outside a run the defaults will do; paths may be texts."""

    model: ModelRef | None = None  # training begins with it; None: the method's own
    reference: ModelRef | None = None  # of the KL of online methods; None: the model as it is at the first update
    number: int = 1  # of the round, from 1; a method's random numbers may depend on it
    last: bool = True  # no round goes on from what is saved
    temperature: float = 1.0  # at which the rollouts were sampled
    pairing: PairSettings = field(default_factory=PairSettings)  # how the pairs were made
    credit: Credit = "tail"
    meaning: Callable[[str], Hashable] | None = None  # of a step's text; steps that mean the same share their credit
    sampled: Mapping[str, float] = field(default_factory=dict)  # of the round's sampling; in every row of metrics
    images: Path | None = None  # directory of the images whose tokens are in prompts
    settings: Mapping[str, Any] = field(default_factory=dict)  # of the run, and its `arm`: for trackers and cards
    work_dir: Path | None = None  # checkpoints of an unfinished update; None: none are kept
    metrics_path: Path | None = None  # JSON lines; None: none are written
    on_step: Callable[[dict[str, float]], None] | None = None  # gets the metrics of each step, with `steps` in all

    def __post_init__(self) -> None:
        for name in ("images", "work_dir", "metrics_path"):
            if (path := getattr(self, name)) is not None:
                object.__setattr__(self, name, Path(path))
