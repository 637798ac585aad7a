"""The one verb: rollouts from starts, graded and cut into steps, with every sampled token counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

from gpo.errors import ConfigError, DataError
from gpo.rollout.prompting import question_start
from gpo.rollout.segmenters import Newline, Segmenter
from gpo.types import Completion, Engine, Group, Problem, Request, Score, Start, Task, Trajectory

__all__ = ["Sampler", "question_start", "request_seed"]


def request_seed(seed: int, stream: str, token_ids: Sequence[int], draws: int) -> int:
    """A 63-bit hash that is the same in every process and on every machine."""
    text = f"{seed}|{stream}|{draws}|{','.join(map(str, token_ids))}"
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


@dataclass
class Sampler:
    """Samples from starts (the `Sample` protocol).

    Two samplers with the same seed, stream and starts draw the same trajectories, however the starts are split over
    calls. Samplers of one run differ in `stream`; it also makes trajectory ids unique: `stream:problem:serial`.

    A start with no room left (the context or `max_tokens` is full, or its prefix has ended) gives a group without
    trajectories and counts as skipped.
    """

    engine: Engine
    task: Task
    problems: Mapping[str, Problem]
    segmenter: Segmenter = field(default_factory=Newline)
    temperature: float = 1.0
    max_tokens: int = 512  # of a response: prefix and completion together
    seed: int = 0
    stream: str = "rollout"
    logprobs: bool = False
    limit: int | None = None  # tokens that it may sample in all; None: no limit

    tokens: int = field(default=0, init=False)  # sampled so far
    failed: int = field(default=0, init=False)  # trajectories that could not be graded because the grader broke
    ungradable: int = field(default=0, init=False)  # trajectories without an extractable answer
    truncated: int = field(default=0, init=False)  # completions that ran into their token budget
    skipped: int = field(default=0, init=False)  # starts with no room to sample
    _draws: Counter[tuple[int, ...]] = field(default_factory=Counter, init=False, repr=False)
    _serials: Counter[str] = field(default_factory=Counter, init=False, repr=False)

    @property
    def left(self) -> int | None:
        """Tokens that may still be sampled; None: no limit."""
        return None if self.limit is None else max(0, self.limit - self.tokens)

    def __call__(self, starts: Sequence[Start], n: int) -> list[Group]:
        """One group of n trajectories for each start, in order.

        Raises:
            ConfigError: n is not positive.
            DataError: a start belongs to no known problem.
        """
        if n < 1:
            raise ConfigError(f"Cannot sample {n} trajectories from a start; expected n of at least 1.")
        for start in starts:
            if start.problem_id not in self.problems:
                raise DataError(
                    f"Start of unknown problem {start.problem_id!r}; the sampler knows {len(self.problems)} problems. "
                    "Pass the problems that the starts were made from."
                )
        requests: list[Request] = []
        requested: list[int] = []
        for position, start in enumerate(starts):
            room = self._room(start)
            if room < 1:
                self.skipped += 1
                continue
            seed = request_seed(self.seed, self.stream, start.token_ids, self._draws[start.token_ids])
            self._draws[start.token_ids] += n
            requests.append(Request(start.token_ids, n, room, seed))
            requested.append(position)
        completions: list[list[Completion]] = [[] for _ in starts]
        if requests:
            answers = self.engine.generate(requests, temperature=self.temperature, logprobs=self.logprobs)
            for position, answer in zip(requested, answers, strict=True):
                completions[position] = answer
        return [
            Group(start, tuple(self._trajectory(start, completion) for completion in answer))
            for start, answer in zip(starts, completions, strict=True)
        ]

    def _room(self, start: Start) -> int:
        """Tokens that a completion of this start may have."""
        if start.prefix_ids and start.prefix_ids[-1] == self.engine.tokenizer.eos_token_id:
            return 0
        return min(self.max_tokens - len(start.prefix_ids), self.engine.context_length - len(start.token_ids))

    def _trajectory(self, start: Start, completion: Completion) -> Trajectory:
        tokenizer = self.engine.tokenizer
        response = start.prefix_ids + completion.token_ids
        # Decoded in one piece: a character may be split between prefix and completion.
        text = tokenizer.decode(response, skip_special_tokens=True) if start.prefix_ids else completion.text
        score = self._score(self.problems[start.problem_id], text)
        logprobs = None
        if completion.logprobs is not None:
            logprobs = (float("nan"),) * len(start.prefix_ids) + completion.logprobs
        serial = self._serials[start.problem_id]
        self._serials[start.problem_id] += 1
        self.tokens += len(completion.token_ids)
        self.failed += score.verdict == "failed"
        self.ungradable += score.verdict == "ungradable"
        self.truncated += completion.finish_reason == "length"
        return Trajectory(
            id=f"{self.stream}:{start.problem_id}:{serial}",
            start=start,
            completion=completion,
            score=score,
            step_ends=self.segmenter(response, tokenizer, logprobs),
        )

    def _score(self, problem: Problem, text: str) -> Score:
        try:
            return self.task.score(problem, text)
        except Exception:  # a broken grader is an outcome of this trajectory; `failed` counts it
            return Score(None, "failed")
