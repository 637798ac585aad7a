"""A run: the stages of GPO on a run directory, each of which goes on where it was left."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from gpo import __version__
from gpo.config.components import made
from gpo.config.presets import model_path
from gpo.errors import ConfigError, EngineError
from gpo.experiment.budget import (
    expected_lengths,
    next_resets,
    next_searches,
    reset_starts,
    rollouts_from,
    search_weight,
    to_search,
    tokens_of,
)
from gpo.experiment.resources import Resources, label
from gpo.experiment.rounds import questions_of, train_round, trains_on_pairs, write_rounds
from gpo.preferences.dataset import write_dataset
from gpo.preferences.pairs import build_pairs, read_pairs, write_pairs
from gpo.report.results import Results, summarize, write_results
from gpo.rollout.sampler import question_start
from gpo.storage.chunks import Chunks
from gpo.storage.directory import BASE
from gpo.types import Group, Pair, Problem, Split, Start, StepScores

SEARCH_CHUNK = 32  # trajectories searched between two writes
SEARCH_FIRST = 2  # of them in the first chunk, which tells what a search costs; then as many as there were before
PAIR_SETTINGS = ("pairs_per_start", "pairs_per_problem", "max_pairs", "truncated", "prefix_in")


class Run(Resources):
    """The stages on one run directory. A stage does what is left of it, and what is missing before it.

    With several `rounds` each goes on with the model that the one before has trained; `train` goes through all of them.
    """

    @cached_property
    def _spent(self) -> dict[tuple[str, int], int]:
        """Tokens that an arm sampled in a round whose sampling is over."""
        return {}

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
        return number * self.budget(self.rollout()) - self.spent(arm, number - 1)

    def spent(self, arm: str, number: int) -> int:
        """Tokens that an arm has sampled in its rounds up to this one, all of which have sampled."""
        for n in range(1, number + 1):
            if (arm, n) not in self._spent:
                searched = sum(score.tokens for score in self.files.scores(arm, n).read())
                self._spent[arm, n] = searched + tokens_of(self.files.groups(arm, n, search=False))
        return sum(self._spent[arm, n] for n in range(1, number + 1))

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
        pairs = self.build(arm, number) if trains_on_pairs(self.config.method) else []
        self.reset(arm, number)
        with self._piece("train", arm, number) as report:
            self._engine = None  # makes room
            name = label(arm, number)
            metrics = train_round(
                self.config,
                self.files,
                arm,
                number,
                pairs,
                self.spent(arm, number),
                lambda row: self._tell("train", name, round(row["step"]), round(row["steps"]), "steps"),
            )
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
        from gpo.report.plots import write_plots

        with self._held(), self._piece("report", None) as report:
            results = summarize(self.files)
            write_results(self.files, results)
            write_plots(self.files, results)
            report(1, 1, "report", 0)
        return results

    def _sampled_by(self, arm: str, number: int) -> Path | None:
        """The checkpoint that samples in a round; None for the model before training."""
        return None if number == 1 else self.files.checkpoint(arm, number - 1)

    def _estimator(self, arm: str) -> Any:
        if arm not in self.config.arms:
            raise ConfigError(f"This run has no arm {arm!r}. Its arms: {', '.join(self.config.arms)}.")
        return self.config.arms[arm]

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
