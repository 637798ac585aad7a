"""How long a run will take, said once its first rollouts are there, or before it starts (`--dry-run`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from math import isnan, nan
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from gpo.config.components import made
from gpo.config.run import RunConfig, describe
from gpo.errors import ConfigError
from gpo.experiment.plan import Look, foretell_training, look_ahead
from gpo.experiment.trial import STEPS, training_speed
from gpo.report.clean import visible
from gpo.report.progress import clock, rich_table, short
from gpo.rollout.segmenters import pieces
from gpo.storage.directory import Partial, Progress
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
            self.console.print(line, highlight=False, markup=False, soft_wrap=True)


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
    with console.status("The model is loaded and sampled from"):
        seen = look_ahead(run)
        tokenizer = run.engine().tokenizer
    with console.status("A few steps are trained, and thrown away"):
        training = training_ahead(run, seen)
    print_look(console, run.config, seen, tokenizer, training)


def in_words(planned: Mapping[str, int], speed: float) -> str:
    """Such as `Sampling takes up to 1.2 h in all at 18 tok/s (77k tokens: first rollouts 12k, ...).`"""
    parts = ", ".join(f"{name} {short(tokens)}" for name, tokens in planned.items())
    tokens = sum(planned.values())
    took = f"Sampling takes up to {clock(tokens / speed)} in all at {short(speed)} tok/s"
    return f"{took} ({short(tokens)} tokens: {parts}); training comes on top, --dry-run says how long."


def training_ahead(run: Run, seen: Look) -> tuple[int, float]:
    """Tokens that all arms train on at most, all epochs and a pass of the reference included, and tokens a second."""
    trajectories = [trajectory for group in seen.groups for trajectory in group.trajectories]
    if not trajectories:
        return 0, nan
    method: Any = made("method", run.config.method)
    prompt = fmean(len(trajectory.start.prompt_ids) for trajectory in trajectories)
    questions = len(seen.problems["train"])
    length, pairs = seen.tokens / len(trajectories), method.trains_on == "pairs"
    tokens = foretell_training(run.config, questions, prompt, length, pairs=pairs)
    # A pass without gradients takes a third of one with them.
    passes = getattr(method, "epochs", 1) + 1 / 3
    return round(len(run.config.arms) * passes * tokens), training_speed(run, seen.groups)


def print_look(
    console: Console, config: RunConfig, look: Look, tokenizer: Any, training: tuple[int, float] = (0, nan)
) -> None:
    """What a run would ask, get and take.

    Args:
        training: tokens that all arms train on at most, and tokens a second; NaN: that could not be told.
    """

    def say(text: str) -> None:
        console.print(Text(visible(text)), soft_wrap=True)

    say(f"The first of {len(look.problems['train'])} training questions, as the model is given it:\n\n{look.prompt}\n")
    trajectories = [trajectory for group in look.groups for trajectory in group.trajectories]
    if trajectories:
        first = trajectories[0]
        ids = first.response_ids
        say(f"One of its responses ({first.score.verdict}: {first.score.answer}), step by step:\n")
        for number, (begin, end) in enumerate(pairwise(first.boundaries), 1):
            say(f"{number:>3}  {''.join(pieces(ids[begin:end], tokenizer)).rstrip()}")
        count, right = len(trajectories), sum(trajectory.score.right for trajectory in trajectories)
        steps = sum(len(trajectory.step_ends) for trajectory in trajectories) / count
        say(
            f"\n{count} responses to {len(look.groups)} questions: {right} right, {look.ungradable} without an answer, "
            f"{look.truncated} cut off at {config.max_tokens} tokens; {look.tokens / count:.0f} tokens and {steps:.1f} "
            f"steps each, {look.speed:.1f} tok/s."
        )
    described = describe(config)
    for kind in ("method", "segmenter"):
        settings = {key: value for key, value in described[kind].items() if key in SHOWN or kind == "segmenter"}
        name = settings.pop("name", described[kind]["name"])
        say(f"{kind} {name}: {', '.join(f'{key} {_worded(key, value)}' for key, value in settings.items())}")
    rows = [[name, short(tokens), clock(tokens / look.speed)] for name, tokens in look.planned.items()]
    took = sum(look.planned.values()) / look.speed
    trained, speed = training
    if not isnan(speed):
        rows.append(["training", short(trained), clock(trained / speed)])
        took += trained / speed
    rows.append(["in all", "", clock(took)])
    console.print()
    console.print(rich_table(["at most", "tokens", "time"], rows))
    if isnan(speed):
        say("\nTraining comes on top.")
    else:
        say(f"\nTraining: {short(speed)} tok/s, context included, by {STEPS - 1} steps that were thrown away.")
    say("Nothing was written; without --dry-run the run starts.")


def _worded(key: str, value: Any) -> str:
    if value is None:
        return "1e-6 of all weights, 1e-5 of adapters" if key == "learning_rate" else "none"
    return f"{value}".lower() if isinstance(value, bool) else f"{value}"
