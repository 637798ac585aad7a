"""What models got on the same questions: pass@1, maj@k, unbiased pass@k, and paired differences.

Accuracy is the share of right samples, here as everywhere; the mean score of a task that gives a part of the reward
stands beside it. An ungradable sample (no answer found) is wrong. A failed one (the grader broke) is left out and
counted, and so is a question that has too few graded samples.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from gpo.contracts import ComparingTask, Task
from gpo.report.results import VERDICTS, count_verdicts, markdown_table, percent
from gpo.report.strata import right_samples
from gpo.statistics import Interval, bootstrap_mean, maj_at_k, paired_difference, pass_at_k
from gpo.types import Group, Problem, tokens_of

_NUMBER = re.compile(r"[-+]?(?:\d{1,30}(?:\.\d{0,30})?|\.\d{1,30})(?:/\d{1,30})?")


@dataclass(frozen=True, slots=True)
class ModelScore:
    """One model. Intervals are 95%, over questions."""

    name: str
    passes: dict[int, Interval]  # k -> probability that one of k samples is right; passes[1] is the accuracy
    short: dict[int, int]  # k -> questions that pass@k leaves out, since fewer than k of their samples are graded
    score: Interval | None  # mean score; None if no sample has a part of the reward
    majority: Interval  # probability that the most frequent answer of all samples is right
    subtasks: dict[str, Interval]  # pass@1
    gain: Interval | None  # pass@1 minus that of the first model, paired by question; None for the first
    verdicts: dict[str, int]  # of all samples
    truncated: int  # samples that ran into max_tokens or the context
    unanswered: int  # questions that left no room for a response
    tokens: int  # sampled


@dataclass(frozen=True, slots=True)
class Scoreboard:
    """Models on the same questions with the same seeds."""

    questions: int
    samples: int  # of each question
    models: tuple[ModelScore, ...]


def score_models(
    answers: Mapping[str, Sequence[Group]], problems: Sequence[Problem], task: Task | None = None
) -> Scoreboard:
    """Score each model's samples.

    Args:
        answers: by model, a group for each problem, in order.
        task: says which answers are the same, if it can (`ComparingTask`).
    """
    same = task.same if isinstance(task, ComparingTask) else same_answer
    right = {name: right_samples(groups) for name, groups in answers.items()}
    first = next(iter(right.values()))
    samples = max((len(group.trajectories) for groups in answers.values() for group in groups), default=0)
    rows: dict[str, list[int]] = {}
    for row, problem in enumerate(problems):
        rows.setdefault(problem.subtask, []).append(row)
    models = tuple(
        ModelScore(
            name=name,
            passes={k: bootstrap_mean([_pass(scores, k) for scores in right[name]]) for k in _ks(samples)},
            short={k: sum(not _pass(scores, k) for scores in right[name]) for k in _ks(samples)},
            score=bootstrap_mean([[t.score.value for t in g.trajectories] for g in groups])
            if _partial(groups)
            else None,
            majority=bootstrap_mean([_majority(group, same) for group in groups]),
            subtasks={task: bootstrap_mean([right[name][row] for row in at]) for task, at in rows.items() if task},
            gain=None if right[name] is first else paired_difference(first, right[name]),
            verdicts=count_verdicts(groups),
            truncated=sum(t.completion.finish_reason == "length" for group in groups for t in group.trajectories),
            unanswered=sum(not group.trajectories for group in groups),
            tokens=tokens_of(groups),
        )
        for name, groups in answers.items()
    )
    return Scoreboard(len(problems), samples, models)


def _ks(samples: int) -> list[int]:
    """1, 2, 4 and so on, and the number of samples."""
    return sorted({*(2**i for i in range(samples.bit_length()) if 2**i <= samples), max(1, samples)})


def _pass(right: Sequence[float | None], k: int) -> list[float]:
    """pass@k of one question; empty where it has fewer than k graded samples."""
    graded = [score for score in right if score is not None]
    return [pass_at_k(round(sum(graded)), len(graded), k)] if len(graded) >= k else []


def _partial(groups: Sequence[Group]) -> bool:
    """Whether the mean score is another number than the share right."""
    return any(t.score.value not in (None, float(t.score.right)) for group in groups for t in group.trajectories)


def _majority(group: Group, same: Callable[[str, str], bool]) -> list[float]:
    graded = [t.score for t in group.trajectories if t.score.verdict != "failed"]
    if not graded:
        return []
    against = [score.answer for score in graded if score.answer is not None and not score.right]
    right = sum(score.right for score in graded)
    if not right or right > len(against):  # whichever of the wrong ones are the same
        return [float(right > 0)]
    wrong = dict.fromkeys(against)
    candidates: list[str] = []
    said: dict[str | None, str] = {}  # an answer -> the first of those that say the same
    for answer in wrong:
        if answer is not None:
            said[answer] = next((known for known in candidates if same(known, answer)), answer)
            candidates += [answer] if said[answer] == answer else []
    answers = [said.get(score.answer, score.answer) for score in graded]
    return [maj_at_k(answers, [score.right for score in graded], len(graded))]


def same_answer(a: str, b: str) -> bool:
    """Whether two answers are the same number (1/2, 0.5, .5), or the same text but for case and blanks."""
    return _plain(a) == _plain(b)


def _plain(answer: str) -> Fraction | str:
    text = " ".join(answer.split()).casefold()
    number = text.replace(",", "") if re.fullmatch(r"[-+]?\d{1,3}(?:,\d{3})+(?:\.\d+)?", text) else text
    if not _NUMBER.fullmatch(number):
        return text
    above, _, below = number.partition("/")
    return Fraction(above) / int(below or 1) if int(below or 1) else text


def score_rows(board: Scoreboard) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table: a column for each model."""
    models = board.models
    rows = [[f"pass@{k}", *(percent(model.passes[k]) for model in models)] for k in models[0].passes]
    if any(model.score for model in models):
        rows.append(["mean score", *(percent(model.score or model.passes[1]) for model in models)])
    if board.samples > 1:
        rows.append([f"maj@{board.samples}", *(percent(model.majority) for model in models)])
    if len(models) > 1:
        gains = ["" if model.gain is None else percent(model.gain, signed=True) for model in models]
        rows.append([f"pass@1 minus {models[0].name}, paired", *gains])
    if len(models[0].subtasks) > 1:
        rows += [[task, *(percent(model.subtasks[task]) for model in models)] for task in models[0].subtasks]
    return ["in %", *(model.name for model in models)], rows


def count_rows(board: Scoreboard) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table of counts: a column for each model."""
    models = board.models
    rows = [[verdict, *(str(model.verdicts[verdict]) for model in models)] for verdict in VERDICTS]
    rows += [
        ["cut off", *(str(model.truncated) for model in models)],
        ["questions without room", *(str(model.unanswered) for model in models)],
        ["questions left out", *(_short(model) for model in models)],
        ["tokens", *(f"{model.tokens:,}" for model in models)],
    ]
    return ["samples", *(model.name for model in models)], rows


def _short(model: ModelScore) -> str:
    """Such as "3 of pass@4, 5 of pass@8"."""
    return ", ".join(f"{count} of pass@{k}" for k, count in model.short.items() if count) or "0"


def interval_note(board: Scoreboard) -> str:
    """How the intervals of the table were made, and what was left out."""
    every = [
        i for m in board.models for i in (*m.passes.values(), *m.subtasks.values(), m.majority, m.gain, m.score) if i
    ]
    alike = " (exact, Clopper-Pearson, where all questions are alike)" if any(i.by == "exact" for i in every) else ""
    short = any(count for model in board.models for count in model.short.values())
    left_out = " pass@k leaves out a question with fewer than k graded samples: its grader failed or it left no room."
    return f"Intervals are 95%, by bootstrap over questions{alike}.{left_out if short else ''}"


def markdown(board: Scoreboard) -> str:
    """The tables."""
    told = f"{board.questions} questions, {board.samples} samples of each, the same seeds for all models."
    tables = (markdown_table(*score_rows(board)), markdown_table(*count_rows(board)))
    return "\n\n".join(["# Evaluation", f"{told} {interval_note(board)}", *tables]) + "\n"
