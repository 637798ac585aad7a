"""A run: the stages of GPO on a run directory, each of which goes on where it was left."""

from __future__ import annotations

import copy
import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from gpo import __version__
from gpo.config import RunConfig, Spec, describe, differences, made, model_path, resolve
from gpo.directory import BASE, Progress, RunDirectory
from gpo.errors import ConfigError, DataError, EngineError
from gpo.pairs import Pair, build_pairs, read_pairs, write_pairs
from gpo.results import Results, summarize, write_results
from gpo.sampling import Sampler, question_start
from gpo.stages import (
    evenly,
    expected_lengths,
    next_resets,
    next_searches,
    reset_starts,
    search_weight,
    to_search,
    tokens_of,
)
from gpo.store import Chunks, locked, to_json, write_json
from gpo.types import Engine, Group, Problem, Split, StepScores, Task

SEARCH_CHUNK = 32  # trajectories searched between two writes
SEARCH_FIRST = 2  # of them in the first chunk, which tells what a search costs
PAIR_SETTINGS = ("pairs_per_start", "pairs_per_problem", "max_pairs", "truncated", "prefix_in")


class Run:
    """The stages on one run directory. A stage does what is left of it, and what is missing before it.

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
        self._holding = False
        stored = self.files.config() if config is None else self.files.config_or_none()
        self.config = resolve({}, stored) if config is None else config
        self.described = json.loads(json.dumps(to_json(describe(self.config))))
        if stored is None:
            write_json(self.files.path / "config.json", {"gpo": __version__, **self.described})
        elif changed := differences(stored, self.described):
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

    def rollout(self) -> list[Group]:
        """Rollouts from the training questions, the same for all arms."""
        with self._held():
            return self._ask("rollout", self.files.rollouts, "train", self.config.rollouts)

    def locate(self, arm: str) -> list[StepScores]:
        """Search trajectories for their critical steps until the search's share of the budget is spent."""
        with self._held():
            first, estimator = (
                self.rollout(),
                made("estimator", self._estimator(arm), model=model_path(self.config.model)),
            )
            scores = self.files.scores(arm)
            found = scores.read()
            candidates = to_search(first, self.config.locate_per_problem)
            limit = round(self.config.locate_share * self.budget(first))
            while True:
                searched = candidates[: len(found)]
                batch = next_searches(
                    candidates[len(found) :],
                    weight=sum(map(search_weight, searched)),
                    spent=sum(score.tokens for score in found),
                    left=limit - sum(score.tokens for score in found),
                    first=SEARCH_FIRST,
                    most=SEARCH_CHUNK,
                )
                if not batch:
                    break
                with self._piece("locate", arm) as report:
                    # The number of the first trajectory names the chunk.
                    sampler = self._sampler(f"locate/{arm}/{len(found)}", "train")
                    new = estimator(batch, sampler)
                    _check_scores(new, batch, sampler.tokens)
                    scores.append(new)
                    found += new
                    # In trajectories, of as many as the budget is expected to pay for.
                    spent = sum(score.tokens for score in found)
                    paid = round(limit * len(found) / spent) if spent else len(candidates)
                    report(len(found), max(len(found), min(paid, len(candidates))), "trajectories", sampler.tokens)
            return found

    def reset(self, arm: str) -> list[Group]:
        """Rollouts from the reset boundaries, round after round, until the arm's budget is spent.

        An arm whose estimator resets nowhere spends its budget on the questions.
        """
        with self._held():
            first, scores = self.rollout(), self.locate(arm)
            file = self.files.resets(arm)
            groups = file.read()
            known = [*first, *(group for score in scores for group in score.rollouts)]
            trajectories = [trajectory for group in first for trajectory in group.trajectories]
            starts = reset_starts(scores, trajectories) or [group.start for group in first]
            budget = self.budget(first) - tokens_of(first) - sum(score.tokens for score in scores)
            most = max(1, self.config.chunk // self.config.reset_rollouts)
            while True:
                empty = {group.start.token_ids for group in groups if not tokens_of([group])}
                usable = [start for start in starts if start.token_ids not in empty]
                lengths = expected_lengths(usable, [*known, *groups])
                left = budget - tokens_of(groups)
                batch, n = next_resets(
                    usable, lengths, done=len(groups), left=left, n=self.config.reset_rollouts, most=most
                )
                if not batch:
                    return groups
                with self._piece("reset", arm) as report:
                    sampler = self._sampler(f"reset/{arm}/{len(groups)}", "train")
                    new = sampler(batch, n)
                    file.append(new)
                    groups += new
                    report(min(tokens_of(groups), budget), budget, "tokens", sampler.tokens)

    def budget(self, first: Sequence[Group]) -> int:
        """Tokens that every arm may sample, the first rollouts included."""
        return round(self.config.budget * tokens_of(first))

    def build(self, arm: str) -> list[Pair]:
        """Preference pairs of everything that the arm has sampled."""
        with self._held():
            self._estimator(arm)
            path = self.files.pairs(arm)
            if path.exists():
                return read_pairs(path)
            self.reset(arm)
            with self._piece("build", arm) as report:
                method = self.described["method"]
                settings = {key: method[key] for key in PAIR_SETTINGS if key in method}
                prefix_in = settings.pop("prefix_in", "prompt")
                origin = {
                    "model": self.config.model,
                    "arm": arm,
                    "estimator": self.described["arms"][arm]["name"],
                    "seed": self.config.seed,
                }
                pairs = build_pairs(
                    self.files.groups(arm),
                    self.engine().tokenizer,
                    scores=self.files.scores(arm).read(),
                    seed=method.get("seed", self.config.seed),
                    provenance=origin,
                    **settings,
                )
                write_pairs(pairs, path, prefix_in)
                report(len(pairs), len(pairs), "pairs", 0)
            return pairs

    def train(self, arm: str) -> Path:
        """Train the arm's model; the directory of its checkpoint."""
        with self._held():
            self._estimator(arm)
            model, unfinished = self.files.model(arm), self.files.arm(arm) / "unfinished"
            if not model.exists():
                pairs = self.build(arm)
                with self._piece("train", arm) as report:
                    self._engine = None  # makes room
                    method = made(
                        "method",
                        self.config.method,
                        **self._policy(),
                        work_dir=unfinished,
                        metrics_path=self.files.arm(arm) / "training.jsonl",
                        on_step=lambda row: self._tell("train", arm, round(row["step"]), round(row["steps"]), "steps"),
                    )
                    preference = hasattr(method, "update_pairs")
                    metrics = method.update_pairs(pairs) if preference else method.update(self.files.groups(arm))
                    write_json(self.files.arm(arm) / "training.json", metrics)
                    method.save(model)
                    steps = round(metrics.get("steps", 1))
                    report(steps, steps, "steps", 0)
            shutil.rmtree(unfinished, ignore_errors=True)
            return model

    def evaluate(self, name: str = BASE) -> list[Group]:
        """Sample the test questions with an arm's model, or with the model before training (`base`).

        All models answer the same questions with the same seeds, so that they can be compared question by question.
        """
        with self._held():
            checkpoint = None if name == BASE else self.train(name)
            file, n = self.files.evaluation(name), self.config.test_samples
            return self._ask("evaluate", file, "test", n, arm=name, checkpoint=checkpoint)

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

    def _policy(self) -> dict[str, Any]:
        """What a method begins with: the engine's model, as a path or as a copy that training may change."""
        engine = self.config.engine
        if isinstance(engine, str):
            return {"model": model_path(self.config.model)}
        if isinstance(engine, Spec):
            return {"model": engine.settings.get("model") or model_path(self.config.model)}
        return {name: copy.deepcopy(getattr(engine, name)) for name in ("model", "tokenizer") if hasattr(engine, name)}

    def _estimator(self, arm: str) -> Any:
        if arm not in self.config.arms:
            raise ConfigError(f"This run has no arm {arm!r}. Its arms: {', '.join(self.config.arms)}.")
        return self.config.arms[arm]

    def _sampler(self, stream: str, split: Split, checkpoint: Path | None = None) -> Sampler:
        # Log-probabilities of what is searched tell an estimator how often a rollout would repeat it.
        return Sampler(
            self.engine(checkpoint),
            self.task,
            {problem.id: problem for problem in self.problems(split)},
            segmenter=made("segmenter", self.config.segmenter),
            temperature=self.config.temperature,
            max_tokens=self.config.max_tokens,
            seed=self.config.seed,
            stream=stream,
            logprobs=stream.startswith("rollout/"),
        )

    def _ask(
        self,
        stage: str,
        file: Chunks[Group],
        split: Split,
        n: int,
        *,
        arm: str | None = None,
        checkpoint: Path | None = None,
    ) -> list[Group]:
        """n rollouts from every question of a split."""
        problems, groups = self.problems(split), file.read()
        size = max(1, self.config.chunk // n)
        while len(groups) < len(problems):
            with self._piece(stage, arm) as report:
                # No arm in the stream: all models are evaluated on the same random numbers.
                sampler = self._sampler(f"{stage}/{len(groups)}", split, checkpoint)
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
    def _piece(self, stage: str, arm: str | None) -> Iterator[Callable[[int, int, str, int], None]]:
        """Time a piece of work; the function says what came of it: done, total, unit, sampled tokens."""
        began = time.monotonic()

        def report(done: int, total: int, unit: str, tokens: int) -> None:
            progress = Progress(stage, arm, done, total, unit, tokens, round(time.monotonic() - began, 3))
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


def _check_scores(scores: Sequence[StepScores], batch: Sequence[Any], tokens: int) -> None:
    """Raises: EngineError if an estimator does not account for what it was given and what it sampled."""
    told = sum(score.tokens for score in scores)
    if len(scores) != len(batch) or told != tokens:
        raise EngineError(
            f"The estimator gave {len(scores)} results with {told} tokens for {len(batch)} trajectories and {tokens} "
            "sampled tokens. Expected one result for each trajectory, and `StepScores.tokens` that add up."
        )
