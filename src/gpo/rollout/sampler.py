"""The one verb: rollouts from starts, graded and cut into steps, with every sampled token counted."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from numbers import Integral

from gpo.config.check import check_instance
from gpo.contracts import Engine, Task
from gpo.errors import ConfigError, DataError, EngineError, naming
from gpo.rollout.answers import check_answers, check_ends, check_logprobs
from gpo.rollout.prompting import question_start
from gpo.rollout.scoring import Scorer, failure_kind
from gpo.rollout.segmenters import Newline, Segmenter
from gpo.rollout.thought import Thought
from gpo.types import Completion, Group, Problem, Request, Score, Start, Trajectory

__all__ = ["Sampler", "question_start", "request_seed"]


def request_seed(seed: int, stream: str, token_ids: Sequence[int], draws: int) -> int:
    """A 63-bit hash that is the same in every process and on every machine."""
    text = f"{seed}|{stream}|{draws}|{','.join(map(str, token_ids))}"
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


@dataclass
class Sampler:
    """Samples from starts (the `Sample` protocol).

    Two samplers with the same seed, stream, starts and limit draw the same trajectories, however the starts are split
    over calls. Samplers of one run differ in `stream`; it also makes trajectory ids unique: `stream:problem:serial`.

    A start with no room left (the context or `max_tokens` is full, or its prefix has ended) gives a group without
    trajectories and counts as skipped. With a `limit`, no more than that many tokens are sampled, whatever the rollouts
    cost: what might not fit waits until it is known what the rollouts before it took, and is withheld where one more
    still might not. Then nothing is `left`.

    Raises:
        ConfigError: task or segmenter are none, or `max_tokens` or `limit` is out of its range.
    """

    engine: Engine
    task: Task
    problems: Mapping[str, Problem]
    segmenter: Segmenter = field(default_factory=Newline)
    temperature: float = 1.0
    max_tokens: int = 512  # of a response: prefix and completion together
    seed: int = 0
    stream: str = "rollout"
    logprobs: bool = False  # a segmenter that needs them gets them all the same
    limit: int | None = None  # tokens that it may sample in all; None: no limit
    policy_version: int | None = None  # of what the engine samples from; None: not known

    tokens: int = field(default=0, init=False)  # sampled so far
    failed: int = field(default=0, init=False)  # trajectories that could not be graded because the grader broke
    failures: Counter[str] = field(default_factory=Counter, init=False)  # the same by kind, such as ZeroDivisionError
    ungradable: int = field(default=0, init=False)  # trajectories without an extractable answer
    truncated: int = field(default=0, init=False)  # completions that ran into their token budget
    skipped: int = field(default=0, init=False)  # starts with no room to sample
    withheld: int = field(default=0, init=False)  # rollouts that the limit left no tokens for
    _draws: Counter[tuple[int, ...]] = field(default_factory=Counter, init=False, repr=False)
    _serials: Counter[str] = field(default_factory=Counter, init=False, repr=False)
    _thought: Thought = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for kind in ("task", "segmenter"):
            check_instance(kind, getattr(self, kind))
        for name, least in (("max_tokens", 1), ("limit", 0)):
            value = getattr(self, name)
            none = name == "limit" and value is None
            if not (none or (isinstance(value, Integral) and int(value) >= least)):
                raise ConfigError(f"{name} is {value!r}, expected a whole number of tokens of at least {least}.")
        self._thought = Thought(self.engine.tokenizer)

    @property
    def sampled(self) -> int:
        """Trajectories so far."""
        return self._serials.total()

    @property
    def left(self) -> int | None:
        """Tokens that may still be sampled, none once a rollout was withheld; None: no limit."""
        return None if self.limit is None else 0 if self.withheld else max(0, self.limit - self.tokens)

    def __call__(self, starts: Iterable[Start], n: int) -> list[Group]:
        """One group of n trajectories for each start, in order; fewer or none where the limit or the room ends.

        Raises:
            ConfigError: n is not a positive whole number.
            DataError: a start belongs to no known problem.
            EngineError: the engine answers something else than it was asked.
        """
        if not isinstance(n, Integral) or n < 1:
            raise ConfigError(f"Cannot sample {n!r} trajectories from a start; expected a whole n of at least 1.")
        starts = list(starts)
        for start in starts:
            if start.problem_id not in self.problems:
                raise DataError(
                    f"Start of unknown problem {start.problem_id!r}; the sampler knows {len(self.problems)} problems. "
                    "Pass the problems that the starts were made from."
                )
        waiting = self._requests(starts, n)
        sampled: list[list[tuple[Completion, Callable[[], Score]]]] = [[] for _ in starts]
        with Scorer(self.task) as scorer:  # which may grade while the next wave is sampled
            while waiting:
                wave = self._wave(waiting)
                for (position, _), answer in zip(wave, self._generate([request for _, request in wave]), strict=True):
                    start = starts[position]
                    for completion in answer:
                        score = scorer.score(self.problems[start.problem_id], self._text(start, completion))
                        sampled[position].append((completion, score))
            return [
                Group(start, tuple(self._trajectory(start, completion, score()) for completion, score in rollouts))
                for start, rollouts in zip(starts, sampled, strict=True)
            ]

    def _requests(self, starts: Sequence[Start], n: int) -> deque[tuple[int, Request]]:
        """The position of each start with room, and its request."""
        requests: deque[tuple[int, Request]] = deque()
        for position, start in enumerate(starts):
            room = self._room(start)
            if room < 1:
                self.skipped += 1
                continue
            seed = request_seed(self.seed, self.stream, start.token_ids, self._draws[start.token_ids])
            self._draws[start.token_ids] += n
            requests.append((position, Request(start.token_ids, n, room, seed)))
        return requests

    def _wave(self, waiting: deque[tuple[int, Request]]) -> list[tuple[int, Request]]:
        """Takes off the first requests whose longest answers fit into what is left.

        Of the very first a part may fit; the rest of it waits, with a seed of its own. If none fits it is withheld.
        """
        if self.limit is None:
            wave = list(waiting)
            waiting.clear()
            return wave
        left, wave = self.limit - self.tokens, []
        while waiting:
            position, request = waiting[0]
            fitting = min(request.n, left // request.max_tokens)
            if fitting < request.n and wave:
                break
            waiting.popleft()
            if not fitting:
                self.withheld += request.n
                continue
            wave.append((position, replace(request, n=fitting)))
            left -= fitting * request.max_tokens
            if fitting < request.n:
                seed = request_seed(request.seed, self.stream, request.token_ids, fitting)
                waiting.appendleft((position, replace(request, n=request.n - fitting, seed=seed)))
                break
        return wave

    def _generate(self, requests: Sequence[Request]) -> list[list[Completion]]:
        """The engine's answers, checked and counted, with log-probabilities where they are needed."""
        if not requests:
            return []
        needed = getattr(self.segmenter, "needs_logprobs", False)
        with naming(f"The engine {type(self.engine).__name__}"):
            answers = self.engine.generate(requests, temperature=self.temperature, logprobs=self.logprobs or needed)
            check_answers(requests, answers, self.engine)
        self.tokens += sum(len(completion.token_ids) for answer in answers for completion in answer)
        return self._with_logprobs(requests, answers) if needed else answers

    def _with_logprobs(
        self, requests: Sequence[Request], answers: Sequence[Sequence[Completion]]
    ) -> list[list[Completion]]:
        """The same answers, with those log-probabilities that the engine did not give while sampling."""
        bare = [
            (r.token_ids, c) for r, answer in zip(requests, answers, strict=True) for c in answer if c.logprobs is None
        ]
        if not bare:
            return [list(answer) for answer in answers]
        contexts, continuations = [context for context, _ in bare], [c.token_ids for _, c in bare]
        with naming(f"The engine {type(self.engine).__name__}"):
            found = self.engine.logprobs(contexts, continuations, temperature=self.temperature or 1.0)
        if len(found) != len(bare):
            raise EngineError(
                f"The engine gave {len(found)} lists of log-probabilities; expected {len(bare)}, in order."
            )
        for nats, tokens in zip(found, continuations, strict=True):
            check_logprobs("The engine answered a continuation", nats, len(tokens))
        rest = iter(found)
        return [[c if c.logprobs is not None else replace(c, logprobs=tuple(next(rest))) for c in a] for a in answers]

    def _room(self, start: Start) -> int:
        """Tokens that a completion of this start may have."""
        if start.prefix_ids and start.prefix_ids[-1] in self.engine.stop_ids:
            return 0
        return min(self.max_tokens - len(start.prefix_ids), self.engine.context_length - len(start.token_ids))

    def _text(self, start: Start, completion: Completion) -> str:
        """What is graded, decoded in one piece: a character may be split between prefix and completion."""
        whole = None if start.prefix_ids else completion.text
        return self._thought.turn(start.prompt_ids, start.prefix_ids + completion.token_ids, whole)

    def _cut(self, response: tuple[int, ...], logprobs: tuple[float, ...] | None) -> tuple[int, ...]:
        """The ends of a response's steps."""
        who = f"The segmenter {getattr(self.segmenter, '__name__', type(self.segmenter).__name__)}"
        with naming(who):
            ends = self.segmenter(response, self.engine.tokenizer, logprobs)
            return check_ends(who, ends, len(response))

    def _trajectory(self, start: Start, completion: Completion, score: Score) -> Trajectory:
        logprobs = None
        if completion.logprobs is not None:
            logprobs = (float("nan"),) * len(start.prefix_ids) + completion.logprobs
        serial = self._serials[start.problem_id]
        self._serials[start.problem_id] += 1
        if score.verdict == "failed":
            self.failed += 1
            self.failures[failure_kind(score)] += 1
        self.ungradable += score.verdict == "ungradable"
        self.truncated += completion.finish_reason == "length"
        return Trajectory(
            id=f"{self.stream}:{start.problem_id}:{serial}",
            start=start,
            completion=completion,
            score=score,
            step_ends=self._cut(start.prefix_ids + completion.token_ids, logprobs),
            policy_version=self.policy_version,
        )
