"""The report as one HTML file that needs nothing else."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from importlib.resources import files as package_files
from math import isnan
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from gpo.report.clean import counted, one_line
from gpo.report.compare import Comparison
from gpo.report.kinds import Kinds
from gpo.report.losses import check_choice, rank_losses
from gpo.report.pictures import pictures_of, room_for
from gpo.report.places import by_kind, by_length, by_position, with_choice
from gpo.report.reading import Reading, Searched
from gpo.report.results import INTERVALS, Results, accuracy_rows, origin, strata_rows, token_rows
from gpo.report.show import Shown, level_lengths, show, signed
from gpo.report.strata import OF_STRATA
from gpo.statistics import Interval
from gpo.storage.directory import model_name

ROWS = 80  # of each table of kinds, over all searches of the page
QUESTIONS_SHOWN = 40  # of the comparisons, over all of them


@dataclass(frozen=True, slots=True)
class View:
    """One search as the page has it."""

    key: str  # in links
    label: str
    arm: str | None
    trajectories: list[Shown]
    found: int  # trajectories that were searched
    diagnosis: dict[str, Any] | None
    comparison: Comparison | None
    links: dict[str, str]  # the anchors of the trajectories on the page, by trajectory id


def render(
    readings: Sequence[Reading],
    results: Results,
    figures: Mapping[str, Markup],
    kinds: Kinds,
    comparisons: Sequence[Comparison | None],
    most: int = 200,
) -> str:
    """The page: of each search the trajectories whose critical step has the largest advantage, `most` in all.

    Args:
        readings: the searches; the page opens with the first.
        comparisons: of each search with another one, or None.
    """
    # The tables of a search take about as much of a page as two trajectories.
    room = max(len(readings), most - 2 * (len(readings) - 1))
    limit = level_lengths([len(reading.searched) for reading in readings], room)
    rows = max(3, min(20, ROWS // len(readings)))
    picture_size = room_for(_prompt(item) for reading in readings for item in ranking(reading)[:limit])
    views = [
        _view(reading, kinds, comparison, limit, rows, picture_size)
        for reading, comparison in zip(readings, comparisons, strict=True)
    ]
    shown = [item for view in views for item in view.trajectories]
    compared = sum(comparison is not None for comparison in comparisons)
    script, style = _asset("report.js"), _asset("report.css")
    environment = Environment(
        loader=PackageLoader("gpo.report", "pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": percent,
        "points": points,
        "line": one_line,
        "signed": signed,
        "counted": counted,
    }
    return environment.get_template("report.html").render(
        title=readings[0].run,
        script=Markup(script),
        script_hash=base64.b64encode(sha256(script.encode()).digest()).decode(),
        style=Markup(style),
        origin=origin(results),
        intervals=INTERVALS,
        facts=_facts(readings),
        accuracy=accuracy_rows(results) if results.models else None,
        strata=strata_rows(results),
        of_strata=OF_STRATA,
        tokens=token_rows(results),
        figures=figures,
        views=views,
        pictured=any(item.pictures for item in shown),
        searched=readings[0].arm is not None,
        tasks=sorted({item.task for item in shown} - {""}),
        verdicts=sorted({item.verdict for item in shown}),
        questions_shown=max(3, QUESTIONS_SHOWN // max(1, compared)),
    )


def ranking(reading: Reading) -> list[Searched]:
    """The trajectories, those whose critical step has the largest advantage first."""
    return sorted(reading.searched, key=lambda item: -abs(item.gain or 0.0))


def _prompt(item: Searched) -> Sequence[int]:
    return item.trajectory.start.prompt_ids


def _view(
    reading: Reading, kinds: Kinds, comparison: Comparison | None, limit: int, rows: int, picture_size: int
) -> View:
    ranked = ranking(reading)[:limit]
    folder = reading.files.images
    shown = [
        (item.trajectory.id, show(item, reading.key, pictures_of(_prompt(item), folder, picture_size)))
        for item in ranked
    ]
    return View(
        key=reading.key,
        label=reading.label,
        arm=reading.arm,
        trajectories=[item for _, item in shown],
        found=len(reading.searched),
        diagnosis=_diagnosis(reading, kinds, rows),
        comparison=comparison,
        links={name: item.anchor for name, item in shown},
    )


def percent(value: float | Interval) -> str:
    """Such as 41 %, or 41 % [38, 45], on one line."""
    if isinstance(value, Interval):
        if not value.n:
            return "–"
        return f"{100 * value.estimate:.0f}\u00a0% [{100 * value.lower:.0f}, {100 * value.upper:.0f}]"
    return "–" if isnan(value) else f"{100 * value:.0f}\u00a0%"


def points(value: Interval) -> str:
    """A difference in percentage points, such as +5.8 [+2.7, +10.6]."""
    if not value.n:
        return "–"
    # Adding 0.0 makes -0.0 positive.
    estimate, lower, upper = (round(100 * each, 1) + 0.0 for each in (value.estimate, value.lower, value.upper))
    return f"{estimate:+.1f} [{lower:+.1f}, {upper:+.1f}]".replace("-", "−")


def _asset(name: str) -> str:
    return (package_files("gpo.report") / "pages" / name).read_text(encoding="utf-8")


def _facts(readings: Sequence[Reading]) -> list[tuple[str, str]]:
    """What ran, in a few lines."""
    reading = min(readings, key=lambda reading: reading.number)
    config = reading.config
    arms = ", ".join(f"{name} ({arm['name']})" for name, arm in config["arms"].items())
    facts = [("model", model_name(config)), ("task", config["task"]["name"]), ("arms", arms)]
    for name, label in (("method", "trained with"), ("segmenter", "steps by")):
        if name in config:
            facts.append((label, config[name]["name"]))
    facts.append(("first rollouts", f"{sum(len(group.trajectories) for group in reading.first):,}"))
    facts.append(("on questions", f"{len(reading.first):,}"))
    facts.append(("budget of each arm", f"{config['budget']:g} times the tokens of the first rollouts"))
    if config.get("rounds", 1) > 1:
        facts.append(("rounds", str(config["rounds"])))
    for name in ("temperature", "seed"):
        if name in config:
            facts.append((name, f"{config[name]:g}"))
    if seconds := reading.files.events.seconds():
        told = {stage: f"{s:.0f} s" if s < 120 else f"{s / 60:.0f} min" for stage, s in seconds.items() if s >= 0.5}
        facts.append(("time", ", ".join(f"{stage} {took}" for stage, took in told.items()) or "under a second"))
    return [(name, one_line(str(value), 300)) for name, value in facts]


def _diagnosis(reading: Reading, kinds: Kinds, rows: int) -> dict[str, Any] | None:
    chosen = with_choice(reading.searched)
    if reading.arm is None:
        return None
    return {
        "searched": len(reading.searched),
        "chosen": len(chosen),
        "tables": [
            ("Position", "part of the trajectory, counted in steps", by_position(chosen)),
            ("Length", "tokens, compared with the median step of its trajectory", by_length(chosen)),
            ("Kind", "first words, names and numbers masked", by_kind(chosen, kinds)[:rows]),
        ],
        "losses": rank_losses(reading, kinds, rows),
        "choice": check_choice(reading.searched),
    }
