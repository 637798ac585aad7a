"""A run: the stages of GPO on a run directory, each of which goes on where it was left."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from gpo import __version__
from gpo.config import RunConfig, describe, differences, made, model_path
from gpo.dataset import write_dataset
from gpo.directory import BASE, Progress, RunDirectory
from gpo.errors import ConfigError, DataError, EngineError
from gpo.options import resolve, with_defaults
from gpo.pairs import Pair, build_pairs, read_pairs, write_pairs
from gpo.results import Results, summarize, write_results
from gpo.rounds import questions_of, training_start, trains_on_pairs, write_rounds
from gpo.sampling import Sampler, question_start
from gpo.stages import (
    evenly,
    expected_lengths,
    next_resets,
    next_searches,
    reset_starts,
    rollouts_from,
    search_weight,
    to_search,
    tokens_of,
)
from gpo.store import Chunks, locked, to_json, write_json
from gpo.trackers import check_trackers
from gpo.types import Engine, Group, Problem, Split, Start, StepScores, Task

SEARCH_CHUNK = 32  # trajectories searched between two writes
SEARCH_FIRST = 2  # of them in the first chunk, which tells what a search costs; then as many as there were before
PAIR_SETTINGS = ("pairs_per_start", "pairs_per_problem", "max_pairs", "truncated", "prefix_in")


class Run:
    """The stages on one run directory. A stage does what is left of it, and what is missing before it.

    With several `rounds` each goes on with the model that the one before has trained; `train` goes through all of them.

    Args:
        directory: made if it is not there.
        config: None takes that of the directory.
        on_progress: called after every piece of work.

    Raises:
        ConfigError: the directory was made with another configuration, or has none and none is given.
    """

    def __init__(
        self,
        directory: Path | str,
        config: RunConfig | None = None,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> None:
        self.files = RunDirectory(Path(directory))
        self.on_progress = on_progress
        self._problems: dict[Split, list[Problem]] = {}
        self._engine: tuple[Path | None, Engine] | None = None
        self._spent: dict[tuple[str, int], int] = {}  # tokens of rounds that are over
        self._holding = False
        stored = self.files.config() if config is None else self.files.config_or_none()
        self.config = resolve({}, stored) if config is None else config
        self.described = json.loads(json.dumps(to_json(describe(self.config))))
        check_trackers(self.described["method"].get("trackers") or ())
        if stored is None:
            write_json(self.files.path / "config.json", {"gpo": __version__, **self.described})
        elif changed := differences(with_defaults(stored), self.described):
            raise ConfigError(
                f"{self.files.path} was made with other settings: {'; '.join(changed[:3])}. "
                "Leave these as they were, or choose another run directory."
            )

    def all(self) -> Results:
        """Every stage for every arm, then tables and plots."""
        with self._held():
            self.rollout()
            for stage in (self.locate, self.reset, self.build, self.train):
                for arm in self.config.arms:
                    stage(arm)
            for name in self.models():
                self.evaluate(name)
            return self.report()

    def models(self) -> list[str]:
        """What is evaluated: base and the arms."""
        return [BASE, *self.config.arms]

    def problems(self, split: Split) -> list[Problem]:
        """The training or test problems; chosen once, and read from the directory from then on."""
        if split not in self._problems:
            with self._held():
                known = self.files.problems(split)
                if known is None:
                    self._choose_problems()
                    known = self.files.problems(split)
            self._problems[split] = known or []
        return self._problems[split]

    def _choose_problems(self) -> None:
        chosen: dict[Split, list[Problem]] = {
            "train": evenly(self.task.problems("train"), self.config.problems),
            "test": evenly(self.task.problems(self.config.test_split), self.config.test_problems),
        }
        for name, problems in chosen.items():
            if not problems:
                raise DataError(f"The task has no {name} problems. Choose another task or another path.")
        self.files.write_problems(chosen)

    def rollout(self, arm: str | None = None, number: int = 1) -> list[Group]:
        """Rollouts from the questions of a round; those of the first round are the same for all arms."""
        with self._held():
            problems = questions_of(self.problems("train"), self.config.round_problems, number)
            stream, n = _stream("rollout", number), self.config.rollouts
            if arm is None or number == 1:
                return self._ask(stream, self.files.rollouts, problems, n, None, None)
            file, checkpoint = self.files.fresh(arm, number), self._sampled_by(arm, number)
            return self._ask(stream, file, problems, n, arm, checkpoint, number)

    def locate(self, arm: str, number: int = 1) -> list[StepScores]:
        """Search trajectories for their critical steps until the search's share of the budget is spent."""
        with self._held():
            first, checkpoint = self.rollout(arm, number), self._sampled_by(arm, number)
            model = model_path(self.config.model) if checkpoint is None else str(checkpoint)
            estimator = made("estimator", self._estimator(arm), model=model)
            scores = self.files.scores(arm, number)
            found = scores.read()
            candidates = to_search(first, self.config.locate_per_problem)
            limit = round(self.config.locate_share * self.allowance(arm, number))
            while True:
                searched = candidates[: len(found)]
                batch = next_searches(
                    candidates[len(found) :],
                    weight=sum(map(search_weight, searched)),
                    spent=sum(score.tokens for score in found),
                    left=limit - sum(score.tokens for score in found),
                    first=SEARCH_FIRST,
                    most=max(SEARCH_FIRST, min(SEARCH_CHUNK, len(found))),
                )
                if not batch:
                    break
                with self._piece("locate", arm, number) as report:
                    # The number of the first trajectory names the chunk.
                    sampler = self._sampler(f"{_stream('locate', number)}/{arm}/{len(found)}", "train", checkpoint)
                    new = estimator(batch, sampler)
                    _check_scores(new, batch, sampler.tokens)
                    scores.append(new)
                    found += new
                    # In trajectories, of as many as the budget is expected to pay for.
                    spent = sum(score.tokens for score in found)
                    paid = round(limit * len(found) / spent) if spent else len(candidates)
                    report(len(found), max(len(found), min(paid, len(candidates))), "trajectories", sampler.tokens)
            return found

    def reset(self, arm: str, number: int = 1) -> list[Group]:
        """Rollouts from the reset boundaries, in turns, until the arm's budget is spent.

        An arm whose estimator resets nowhere spends its budget on the questions, as every arm does with what
        `reset_fraction` leaves.
        """
        with self._held():
            first, scores = self.rollout(arm, number), self.locate(arm, number)
            searched = [group for score in scores for group in score.rollouts]
            known = [*first, *searched]
            trajectories = [trajectory for group in first for trajectory in group.trajectories]
            questions = [group.start for group in first]
            starts = reset_starts(scores, trajectories) or questions
            budget = self.allowance(arm, number)
            left = budget - tokens_of(first) - sum(score.tokens for score in scores)
            at_most = min(left, round(self.config.reset_fraction * budget))
            # What the search sampled from a reset start is trained on, so that the start needs less.
            had = rollouts_from(searched) if self.config.reuse else None
            groups = self._fill("reset", self.files.resets(arm, number), arm, number, starts, at_most, known, had)
            if self.config.reset_fraction < 1:
                known, left = [*known, *groups], left - tokens_of(groups)
                groups = groups + self._fill("more", self.files.more(arm, number), arm, number, questions, left, known)
            return groups

    def _fill(
        self,
        stage: str,
        file: Chunks[Group],
        arm: str,
        number: int,
        starts: Sequence[Start],
        budget: int,
        known: Sequence[Group],
        had: Mapping[tuple[int, ...], int] | None = None,
    ) -> list[Group]:
        """Rollouts from these starts in turns until the tokens of a budget are spent."""
        groups, checkpoint = file.read(), self._sampled_by(arm, number)
        most = max(1, self.config.chunk // self.config.reset_rollouts)
        while True:
            empty = {group.start.token_ids for group in groups if not tokens_of([group])}
            usable = [start for start in starts if start.token_ids not in empty]
            lengths = expected_lengths(usable, [*known, *groups])
            left = budget - tokens_of(groups)
            batch, n = next_resets(
                usable, lengths, done=len(groups), left=left, n=self.config.reset_rollouts, most=most, had=had
            )
            if not batch:
                return groups
            with self._piece("reset", arm, number) as report:
                sampler = self._sampler(f"{_stream(stage, number)}/{arm}/{len(groups)}", "train", checkpoint)
                new = sampler(batch, n)
                file.append(new)
                groups += new
                report(min(tokens_of(groups), budget), budget, "tokens", sampler.tokens)

    def budget(self, first: Sequence[Group]) -> int:
        """Tokens that every arm may sample in a round, the first rollouts included."""
        return round(self.config.budget * tokens_of(first))

    def allowance(self, arm: str, number: int) -> int:
        """Tokens that an arm may sample in a round: as many as in the first, plus what earlier ones left."""
        spent = 0
        for earlier in range(1, number):
            if (arm, earlier) not in self._spent:
                searched = sum(score.tokens for score in self.files.scores(arm, earlier).read())
                sampled = tokens_of(self.files.groups(arm, earlier, search=False))
                self._spent[arm, earlier] = searched + sampled
            spent += self._spent[arm, earlier]
        return number * self.budget(self.rollout()) - spent

    def build(self, arm: str, number: int = 1) -> list[Pair]:
        """Preference pairs of what the arm has sampled in a round, as JSON lines and as a data set with its card."""
        with self._held():
            self._estimator(arm)
            path, dataset = self.files.pairs(arm, number), self.files.dataset(arm, number)
            if path.exists() and dataset.exists():
                return read_pairs(path)
            if not path.exists():
                self.reset(arm, number)
            with self._piece("build", arm, number) as report:
                method = self.described["method"]
                settings = {key: method[key] for key in PAIR_SETTINGS if key in method}
                prefix_in = settings.pop("prefix_in", "prompt")
                origin = {
                    "model": self.config.model,
                    "arm": arm,
                    "estimator": self.described["arms"][arm]["name"],
                    "seed": self.config.seed,
                    "pairing_seed": method.get("seed", self.config.seed),
                } | ({} if number == 1 else {"round": number})
                if not path.exists():
                    pairs = build_pairs(
                        self.files.groups(arm, number, search=self.config.reuse),
                        self.engine(self._sampled_by(arm, number)).tokenizer,
                        scores=self.files.scores(arm, number).read(),
                        seed=origin["pairing_seed"],
                        provenance=origin,
                        **settings,
                    )
                    write_pairs(pairs, path, prefix_in)
                pairs = read_pairs(path)
                about = {"task": self.described["task"]["name"], **origin, **settings, "gpo": __version__}
                write_dataset(pairs, dataset, prefix_in, seed=origin["pairing_seed"], about=about)
                report(len(pairs), len(pairs), "pairs", 0)
            return pairs

    def train(self, arm: str) -> Path:
        """Train the arm's model, round after round; the directory of the last checkpoint."""
        with self._held():
            self._estimator(arm)
            for number in range(1, self.config.rounds + 1):
                if number > self.trained(arm):
                    self._train(arm, number)
            if self.config.rounds > 1:
                write_rounds(self.files, arm)
            for leftover in ("unfinished", "checkpoints"):
                shutil.rmtree(self.files.arm(arm) / leftover, ignore_errors=True)
            return self.files.model(arm)

    def trained(self, arm: str) -> int:
        """The last round whose model is there; 0 before the first."""
        if self.files.model(arm).exists():
            return self.config.rounds
        return max((n for n in self.files.rounds(arm) if self.files.checkpoint(arm, n).exists()), default=0)

    def _train(self, arm: str, number: int) -> None:
        """What one round samples, and an update on it."""
        on_pairs = trains_on_pairs(self.config.method)
        pairs = self.build(arm, number) if on_pairs else []
        self.reset(arm, number)
        with self._piece("train", arm, number) as report:
            self._engine = None  # makes room
            name = _name(arm, number)
            method = training_start(
                self.config,
                self._sampled_by(arm, number),
                work_dir=self.files.arm(arm) / "unfinished",
                metrics_path=self.files.arm(arm) / "training.jsonl",
                on_step=lambda row: self._tell("train", name, round(row["step"]), round(row["steps"]), "steps"),
            )
            if hasattr(method, "updates"):
                method.updates = number - 1  # counts over rounds; a method's random numbers may depend on it
            groups = [] if on_pairs else self.files.groups(arm, number, search=self.config.reuse)
            metrics = method.update_pairs(pairs) if on_pairs else method.update(groups)
            write_json(self.files.arm(arm, number) / "training.json", metrics)
            last = number == self.config.rounds
            if not last and hasattr(method, "merge"):
                method.merge = False  # the next round goes on with the adapters
            method.save(self.files.model(arm) if last else self.files.checkpoint(arm, number))
            # A later checkpoint stands for the earlier ones, which would fill the disk.
            shutil.rmtree(self.files.checkpoint(arm, number - 1), ignore_errors=True)
            steps = round(metrics.get("steps", 1))
            report(steps, steps, "steps", 0)

    def evaluate(self, name: str = BASE) -> list[Group]:
        """Sample the test questions with an arm's model, or with the model before training (`base`).

        All models answer the same questions with the same seeds, so that they can be compared question by question.
        """
        with self._held():
            checkpoint = None if name == BASE else self.train(name)
            file, n = self.files.evaluation(name), self.config.test_samples
            return self._ask("evaluate", file, self.problems("test"), n, name, checkpoint)

    def report(self) -> Results:
        """Tables and plots of what is there."""
        from gpo.plots import write_plots

        with self._held(), self._piece("report", None) as report:
            results = summarize(self.files)
            write_results(self.files, results)
            write_plots(self.files, results)
            report(1, 1, "report", 0)
        return results

    @cached_property
    def task(self) -> Task:
        task: Task = made("task", self.config.task)
        return task

    def engine(self, checkpoint: Path | None = None) -> Engine:
        """The engine with the weights of a checkpoint, or with those it begins with. One is kept at a time."""
        if self._engine is None or self._engine[0] != checkpoint:
            self._engine = None
            engine = made("engine", self.config.engine, model=model_path(self.config.model))
            if checkpoint is not None:
                engine.load(checkpoint)
            self._engine = (checkpoint, engine)
        return self._engine[1]

    def _sampled_by(self, arm: str, number: int) -> Path | None:
        """The checkpoint that samples in a round; None for the model before training."""
        return None if number == 1 else self.files.checkpoint(arm, number - 1)

    def _estimator(self, arm: str) -> Any:
        if arm not in self.config.arms:
            raise ConfigError(f"This run has no arm {arm!r}. Its arms: {', '.join(self.config.arms)}.")
        return self.config.arms[arm]

    def _sampler(self, stream: str, split: Split, checkpoint: Path | None = None) -> Sampler:
        # Log-probabilities of what is searched tell an estimator how often a rollout would repeat it; those of all that
        # is sampled are the behaviour policy's of an online method.
        wanted = "rollout/" in stream or (split == "train" and not trains_on_pairs(self.config.method))
        return Sampler(
            self.engine(checkpoint),
            self.task,
            {problem.id: problem for problem in self.problems(split)},
            segmenter=made("segmenter", self.config.segmenter),
            temperature=self.config.temperature,
            max_tokens=self.config.max_tokens,
            seed=self.config.seed,
            stream=stream,
            logprobs=wanted,
        )

    def _ask(
        self,
        stream: str,
        file: Chunks[Group],
        problems: Sequence[Problem],
        n: int,
        arm: str | None,
        checkpoint: Path | None,
        number: int = 1,
    ) -> list[Group]:
        """n rollouts from every question."""
        groups, size = file.read(), max(1, self.config.chunk // n)
        stage = stream.rpartition("/")[2]
        while len(groups) < len(problems):
            with self._piece(stage, arm, number) as report:
                # No arm in the stream: all models are asked on the same random numbers.
                split: Split = "test" if stage == "evaluate" else "train"
                sampler = self._sampler(f"{stream}/{len(groups)}", split, checkpoint)
                batch = problems[len(groups) : len(groups) + size]
                new = sampler([question_start(problem, self.task, sampler.engine.tokenizer) for problem in batch], n)
                file.append(new)
                groups += new
                report(len(groups), len(problems), "problems", sampler.tokens)
        return groups

    def _tell(self, stage: str, arm: str | None, done: int, total: int, unit: str) -> None:
        if self.on_progress is not None:
            self.on_progress(Progress(stage, arm, done, total, unit, 0, 0.0))

    @contextmanager
    def _piece(self, stage: str, arm: str | None, number: int = 1) -> Iterator[Callable[[int, int, str, int], None]]:
        """Time a piece of work; the function says what came of it: done, total, unit, sampled tokens."""
        began = time.monotonic()

        def report(done: int, total: int, unit: str, tokens: int) -> None:
            progress = Progress(
                stage, arm and _name(arm, number), done, total, unit, tokens, round(time.monotonic() - began, 3)
            )
            self.files.log(progress)
            if self.on_progress is not None:
                self.on_progress(progress)

        yield report

    @contextmanager
    def _held(self) -> Iterator[None]:
        """Hold the run directory; a stage that calls another holds it already."""
        if self._holding:
            yield
            return
        with locked(self.files.path):
            self._holding = True
            try:
                yield
            finally:
                self._holding = False


def _name(arm: str, number: int) -> str:
    """What progress and events call an arm in a round."""
    return arm if number == 1 else f"{arm} {number}"


def _stream(stage: str, number: int) -> str:
    """Names the random numbers of a stage; each round has its own."""
    return stage if number == 1 else f"round{number}/{stage}"


def _check_scores(scores: Sequence[StepScores], batch: Sequence[Any], tokens: int) -> None:
    """Raises: EngineError if an estimator does not account for what it was given and what it sampled."""
    told = sum(score.tokens for score in scores)
    if len(scores) != len(batch) or told != tokens:
        raise EngineError(
            f"The estimator gave {len(scores)} results with {told} tokens for {len(batch)} trajectories and {tokens} "
            "sampled tokens. Expected one result for each trajectory, and `StepScores.tokens` that add up."
        )
