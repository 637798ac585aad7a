"""How long a run will take, said once its first rollouts are there, or before it starts (`--dry-run`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from math import isnan
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from gpo.advice.pilot import pilot_of
from gpo.advice.work import Training, work_of
from gpo.config.run import RunConfig, describe
from gpo.contracts import Tokenizer
from gpo.errors import ConfigError, GPOError
from gpo.experiment.plan import Look, look_ahead
from gpo.experiment.trial import Trial, try_training
from gpo.report.clean import counted, visible
from gpo.report.console import say
from gpo.report.progress import clock, rich_table, short
from gpo.rollout.segmenters import pieces
from gpo.storage.events import Partial, Progress
from gpo.types import Stage

if TYPE_CHECKING:
    from gpo.experiment.run import Run

SHOWN = ("lora", "learning_rate", "batch_size", "gradient_accumulation", "epochs", "beta", "max_tokens", "bf16")


@dataclass
class Forecast:
    """Hands on what a run tells of its progress, and says once how long sampling will take in all."""

    show: Callable[[Progress], None]
    console: Console
    planned: Callable[[float], Mapping[str, int]]  # tokens by what they are for, given those of a response
    rollouts: int  # of a question
    _told: bool = field(default=False, init=False)

    def __call__(self, progress: Progress) -> None:
        self.show(progress)
        if self._told or progress.stage != Stage.ROLLOUT:
            return
        if not isinstance(progress, Partial):
            self._told = True  # as fast as a model that ships with the package, or gone on with
        elif progress.expected and progress.seconds:
            self._told = True
            planned = self.planned(progress.expected / progress.piece / self.rollouts)
            line = in_words(planned, progress.tokens / progress.seconds)
            say(self.console, line, whole=not self.console.is_terminal)


def dry_run(console: Console, directory: Path, options: dict[str, str], stored: dict[str, Any] | None) -> None:
    """Show what a run would ask and take; nothing is written.

    Raises:
        ConfigError: it would take what another one has sampled.
    """
    from gpo.config.options import resolve
    from gpo.experiment.run import Run

    if "samples" in options:
        raise ConfigError("--dry-run says how long sampling takes, and --samples takes what is sampled already.")
    run = Run(directory, resolve(options, stored))
    with TemporaryDirectory() as images:
        with console.status("The model is loaded and sampled from"):
            seen = look_ahead(run, images=Path(images))
            tokenizer = run.engine().tokenizer
        print_look(console, run.config, seen, tokenizer)
        with console.status("A few steps are trained, and thrown away"):
            try:
                line = training_in_words(run, seen, tokenizer, try_training(run, seen.groups, tokenizer, Path(images)))
            except GPOError as error:  # what was seen is not lost for it
                line = f"Training comes on top. It was tried and failed: {error}"
    console.print(Text(visible(line)), soft_wrap=not console.is_terminal)
    say(console, "Nothing was written; without --dry-run the run starts.", whole=not console.is_terminal)


def in_words(planned: Mapping[str, int], speed: float) -> str:
    """Such as `Sampling takes up to 1.2 h in all at 18 tok/s (77k tokens: first rollouts 12k, ...).`"""
    parts = ", ".join(f"{name} {short(tokens)}" for name, tokens in planned.items())
    tokens = sum(planned.values())
    took = f"Sampling takes up to {clock(tokens / speed)} in all at {short(speed)} tok/s"
    return f"{took} ({short(tokens)} tokens: {parts}); training comes on top."


def training_in_words(run: Run, seen: Look, tokenizer: Tokenizer, trial: Trial) -> str:
    """About how long training takes in all arms, and with it the whole run, by the law of `gpo advise`."""
    pilot = pilot_of(seen.groups, tokenizer)
    if isnan(trial.speed) or pilot is None:
        return "Training comes on top."
    training, questions = Training.of(run.config), len(seen.problems["train"])
    works = [work_of(run.config, arm, questions, pilot, training) for arm in run.config.arms]
    tokens = sum(work.trained for work in works)
    # A pass without gradients takes a third of the time. Those of KTO in its steps were timed with them.
    scored = sum(work.scored for work in works) / (1 + training.looks if training.pairs else 1)
    took = (tokens + scored / 3) / trial.speed
    whole = clock(sum(seen.planned.values()) / seen.speed + took)
    return (
        f"Training takes about {clock(took)} more: {short(tokens)} tokens, context included, at {short(trial.speed)} "
        f"tok/s ({counted(trial.steps, 'step that was/steps that were')} timed and thrown away). "
        f"The run takes {whole} in all."
    )


def print_look(console: Console, config: RunConfig, look: Look, tokenizer: Any) -> None:
    """What a run would ask and get, and what its sampling takes."""

    def say(text: str) -> None:
        console.print(Text(visible(text)), soft_wrap=not console.is_terminal)

    def quote(text: str) -> None:
        """A prompt's line breaks and spaces are its own."""
        console.print(Text(visible(text)), soft_wrap=True)

    say(f"The first of {counted(len(look.problems['train']), 'training question')}, as the model is given it:\n")
    quote(f"{look.prompt}\n")
    trajectories = [trajectory for group in look.groups for trajectory in group.trajectories]
    if trajectories:
        first = trajectories[0]
        ids = first.response_ids
        wanted = next(p.answer for p in look.problems["train"] if p.id == first.start.problem_id)
        graded = f"{first.score.verdict}: {first.score.answer}; the right answer: {wanted}"
        say(f"One of its responses ({graded}), step by step:\n")
        for number, (begin, end) in enumerate(pairwise(first.boundaries), 1):
            quote(f"{number:>3}  {''.join(pieces(ids[begin:end], tokenizer)).rstrip()}")
        count, right = len(trajectories), sum(trajectory.score.right for trajectory in trajectories)
        steps = sum(len(trajectory.step_ends) for trajectory in trajectories) / count
        say(
            f"\n{counted(count, 'response')} to {counted(len(look.groups), 'question')}: {right} right, "
            f"{look.ungradable} without an answer, {look.truncated} cut off at {config.max_tokens} tokens; "
            f"{look.tokens / count:.0f} tokens and {steps:.1f} steps each, {look.speed:.1f} tok/s."
        )
        if advice := _advice(look, count, right, config.max_tokens):
            say(advice)
    described = describe(config)
    for kind in ("method", "segmenter"):
        settings = {key: value for key, value in described[kind].items() if key in SHOWN or kind == "segmenter"}
        name = settings.pop("name", described[kind]["name"])
        if "learning_rate" in settings and settings["learning_rate"] is None:
            settings["learning_rate"] = "1e-6" if settings.get("lora") is None else "1e-5"
        say(f"{kind} {name}: {', '.join(f'{key} {_worded(value)}' for key, value in settings.items())}")
    if not look.speed:
        return
    planned = {**look.planned, "in all": sum(look.planned.values())}
    rows = [[name, short(tokens), clock(tokens / look.speed)] for name, tokens in planned.items()]
    console.print()
    console.print(rich_table(["sampling", "tokens", "time"], rows))
    console.print()


def _advice(look: Look, count: int, right: int, max_tokens: int) -> str:
    """What to change before a run is worth its tokens; "" where nothing stands out."""
    if look.truncated >= count / 2:
        return f"Most are cut off: raise --max_tokens above {max_tokens}."
    if look.ungradable >= count / 2:
        return "Most have no answer that can be read: ask in another form (docs/models.md)."
    if right in (0, count):
        kind, change = ("right", "harder") if right else ("wrong", "easier")
        return f"All are {kind}: nothing is learned where that is so of all questions. Take {change} ones."
    return ""


def _worded(value: Any) -> str:
    return "none" if value is None else f"{value}".lower() if isinstance(value, bool) else f"{value}"
