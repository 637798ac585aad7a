"""Values of a text while a model writes it: a critic's, on its hidden states, with one forward pass for each step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.live import Live

from gpo.config.components import made
from gpo.config.models import resolve_model
from gpo.config.run import RunConfig
from gpo.contracts import Engine, Task
from gpo.errors import DataError
from gpo.report.clean import counted
from gpo.report.terminal import Row, print_question, print_verdict, rows_between, table
from gpo.rollout.prompting import question_start
from gpo.rollout.sampler import request_seed
from gpo.rollout.segmenters import Segmenter, pieces
from gpo.rollout.thought import Thought
from gpo.rollout.turns import in_turns
from gpo.storage.directory import RunDirectory
from gpo.types import Completion, Problem, Request, Score, Start, Trajectory

if TYPE_CHECKING:
    from gpo.estimators.critic import Critic, Head

TAUGHT_BY = 200  # trajectories of a run that teach a critic
CHUNK = 8  # tokens that are written between two looks at them


@dataclass(frozen=True, slots=True)
class Written:
    """What a model has written so far."""

    token_ids: tuple[int, ...]
    step_ends: tuple[int, ...]  # of finished steps
    finished: bool
    cut_off: bool = False  # finished because it has no room left


def write(
    engine: Engine, segmenter: Segmenter, start: Start, *, temperature: float, max_tokens: int, seed: int
) -> Iterator[Written]:
    """Let a model write an answer, a few tokens at a time."""
    ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] | None = ()  # some segmenters read them
    room = min(max_tokens, engine.context_length - len(start.prompt_ids))
    finished = room < 1
    while not finished:
        size = min(CHUNK, room - len(ids))
        request = Request(start.prompt_ids + ids, 1, size, request_seed(seed, "watch", start.prompt_ids + ids, 0))
        [[completion]] = engine.generate([request], temperature=temperature, logprobs=True)
        ids += completion.token_ids
        logprobs = None if logprobs is None or completion.logprobs is None else logprobs + completion.logprobs
        stopped = completion.finish_reason == "stop"
        finished = stopped or len(ids) >= room or not completion.token_ids
        ends = segmenter(ids, engine.tokenizer, logprobs)
        # The last step goes on until the next one begins.
        yield Written(ids, ends if finished else ends[:-1], finished, finished and not stopped)


@dataclass
class Monitor:
    """Values of the steps that are finished so far."""

    critic: Critic
    head: Head
    start: Start
    tokenizer: Any
    steps: list[str] = field(default_factory=list)
    values: list[tuple[float, float, float]] = field(default_factory=list)  # with their intervals, the question's first

    def __post_init__(self) -> None:
        self.values.append(self._value(Written((), (), False), 0))

    def see(self, written: Written) -> None:
        """Judge the steps that are finished since the last call."""
        for k in range(len(self.steps), len(written.step_ends)):
            begin = written.step_ends[k - 1] if k else 0
            self.steps.append("".join(pieces(written.token_ids[begin : written.step_ends[k]], self.tokenizer)))
            self.values.append(self._value(written, k + 1))

    def rows(self) -> list[Row]:
        from gpo.estimators.tally import choose

        block = choose([value for value, _, _ in self.values], self.critic.rule)
        return rows_between(self.steps, self.values, None if block is None else block[0])

    def _value(self, written: Written, steps: int) -> tuple[float, float, float]:
        ends = written.step_ends[:steps]
        ids = written.token_ids[: ends[-1] if ends else 0]
        partial = Trajectory("", self.start, Completion(ids, "", "length"), Score(None, "failed"), ends)
        value, lower, upper = self.head.values(self.critic.states([partial])[0][-1:], self.critic.confidence)
        return float(value[0]), float(lower[0]), float(upper[0])


def watch(console: Console, files: RunDirectory, config: RunConfig, task: Task, problem: Problem) -> Monitor:
    """Show the value after each step while the model writes; the last value is the reward if an answer is known.

    Raises:
        DataError: the run has no graded trajectories of other questions.
    """
    from gpo.estimators.critic import Critic

    engine: Engine = made("engine", config.engine, model=resolve_model(config).source)
    groups = [[t for t in group.trajectories if t.score.value is not None] for group in files.rollouts.read()]
    known = [t for t in in_turns(groups) if t.start.problem_id != problem.id][:TAUGHT_BY]
    if not known:
        raise DataError(f"{files.path} has no graded trajectories to learn values from: gpo rollout {files.path}")
    critic = Critic(model=engine.model_ref.source)
    with console.status(f"A critic learns from {counted(len(known), 'trajectory/trajectories')}"):
        head = critic.head(known)
    start = question_start(problem, task, engine.tokenizer)
    monitor = Monitor(critic, head, start, engine.tokenizer)
    print_question(console, problem)
    answered: Trajectory | None = None
    with Live(console=console, auto_refresh=False) as live:
        for written in write(
            engine,
            made("segmenter", config.segmenter),
            start,
            temperature=config.temperature,
            max_tokens=config.max_tokens,
            seed=config.seed,
        ):
            monitor.see(written)
            if written.finished:
                if problem.answer:
                    answered = graded(task, problem, engine, start, written)
                    reward = answered.score.value
                    if monitor.steps and reward is not None:
                        monitor.values[-1] = (reward, reward, reward)
                live.update(table(monitor.rows()), refresh=True)
                continue
            begin = written.step_ends[-1] if written.step_ends else 0
            rows = [*monitor.rows(), Row("".join(pieces(written.token_ids[begin:], engine.tokenizer)) + " …")]
            live.update(table(rows, max(0, len(rows) - console.height // 2)), refresh=True)
    if not console.is_terminal:
        console.print()
    if answered is not None:
        print_verdict(console, answered)
    console.print("Values are a critic's, with the interval of its fit. Nothing was sampled for them.")
    return monitor


def graded(task: Task, problem: Problem, engine: Engine, start: Start, written: Written) -> Trajectory:
    """What was written, as a trajectory with its score."""
    text = engine.tokenizer.decode(written.token_ids, skip_special_tokens=True)
    completion = Completion(written.token_ids, text, "length" if written.cut_off else "stop")
    turn = Thought(engine.tokenizer).turn(start.prompt_ids, written.token_ids, text)
    return Trajectory("watch", start, completion, task.score(problem, turn), written.step_ends)
