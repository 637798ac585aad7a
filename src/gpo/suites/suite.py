"""A suite file: which runs are compared, as options of `gpo run`. docs/compare.md has one with every part.

Names are those of `gpo run --help`; a dotted name may be a table too (`[run.pairs]`, `most = 400`). A method takes the
name of its section where it has no `method` and its name is one of a method.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any, Literal, get_args

from gpo.advice.stated import Plan
from gpo.config.registry import METHODS
from gpo.errors import ConfigError, DataError, unknown
from gpo.storage.codec import dotted, from_json

Options = dict[str, str]  # of `gpo run`, without the dashes
Phase = Literal["tuning", "matching", "test"]
Matched = Literal["tokens", "flops", "seconds"]
SECTIONS = "title seeds split matched tuning_seeds run methods regimes tuning quick plan".split()
RESERVED = ("seed", "test_split", "trust")
SHIPPED = Path(__file__).parent / "files"


@dataclass(frozen=True)
class Cell:
    """One run of a suite: all its arms are sampled, and those in `arms` trained and asked."""

    regime: str
    method: str
    seed: int
    phase: Phase = "test"
    tuned: tuple[tuple[str, str], ...] = ()  # settings that were tried or chosen
    arms: tuple[str, ...] = ()  # empty: all of the run

    @property
    def name(self) -> str:
        """Where it is below the directory of the suite."""
        settings = "".join(f",{key}={value}" for key, value in self.tuned)
        parts = (self.phase, self.regime, self.method, f"{self.seed}{settings}")
        return "/".join(re.sub(r"[^\w.,=+-]", "_", part.lower()) for part in parts)


@dataclass(frozen=True)
class Suite:
    """What a suite file says."""

    name: str
    title: str
    seeds: tuple[int, ...]
    methods: Mapping[str, Options]
    regimes: Mapping[str, Options]
    run: Options = field(default_factory=dict)
    tuning: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    tuning_seeds: tuple[int, ...] = ()
    quick: Options = field(default_factory=dict)
    split: Literal["dev", "test"] = "test"
    matched: Matched = "tokens"  # sampled ones
    source: str = ""  # how the command names it
    origins: Mapping[str, str] = field(default_factory=dict)  # of a method that is another one but for some options
    plan: Mapping[str, Plan] = field(default_factory=dict)  # by regime; empty where the file has none

    def options(self, cell: Cell) -> Options:
        """What `gpo run` would be given for a cell: the regime's over the suite's, then the method's."""
        own = self.methods[cell.method]
        options = {**_of_arms({**self.run, **self.regimes[cell.regime]}, own), **own, **dict(cell.tuned)}
        if cell.phase == "matching":  # for what it takes
            options |= {"test_problems": "1", "test_samples": "1"}
        if cell.phase != "test":
            options.pop("test_skip", None)  # of test questions
        return {**options, "seed": str(cell.seed), "test_split": self.split if cell.phase == "test" else "dev"}

    def shortened(self) -> Suite:
        """The suite with the options of `quick`, one seed, no tuning and equal tokens."""
        return replace(
            self,
            name=f"{self.name}-quick",
            source=f"{self.source} --quick",
            title=f"{self.title} (quick form)",
            seeds=self.seeds[:1],
            methods={name: {**options, **self.quick} for name, options in self.methods.items()},
            tuning={},
            matched="tokens",
        )

    def tuning_cells(self) -> Iterator[Cell]:
        """Every combination of the settings that are tuned, on development questions."""
        if not self.tuning:
            return
        grid = [tuple(zip(self.tuning, values, strict=True)) for values in product(*self.tuning.values())]
        for regime, method, tuned, seed in product(self.regimes, self.methods, grid, self.tuning_seeds):
            yield Cell(regime, method, seed, "tuning", tuned)


def _missing(source: str) -> ConfigError:
    names = sorted(file.stem for file in SHIPPED.glob("*.toml"))
    if source.endswith(".toml") or "/" in source:
        return ConfigError(f"There is no suite file {source}. These ship with GPO: {', '.join(names)}.")
    return unknown("suite", source, names)


def read_suite(source: str) -> Suite:
    """A suite file, or one that ships with the package by its name.

    Raises:
        ConfigError: there is no such suite, or it says something that is not understood.
    """
    path = Path(source).expanduser()
    if not path.is_file() and "/" not in source:
        path = SHIPPED / f"{source}.toml"
    if not path.is_file():
        raise _missing(source)
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"Cannot read the suite {path}: {error}.") from error
    for name in data:
        if name not in SECTIONS:
            raise unknown(f"part of the suite {path}", name, SECTIONS)
    seeds = _seeds(data.get("seeds", [0]), path)
    if (split := data.get("split", "test")) not in ("dev", "test"):
        raise unknown("split", str(split), ["dev", "test"])
    if (matched := data.get("matched", "tokens")) not in get_args(Matched):
        raise unknown("measure to match", str(matched), get_args(Matched))
    methods, origins = _methods(_table(data, "methods", path), path)
    suite = Suite(
        name=path.stem,
        title=str(data.get("title", path.stem)),
        seeds=seeds,
        methods=methods,
        regimes={name: _options(rows, f"regimes.{name}", path) for name, rows in _table(data, "regimes", path).items()}
        or {"run": {}},
        split=split,
        matched=matched,
        run=_options(data.get("run", {}), "run", path),
        tuning=_tuning(data.get("tuning", {}), path),
        tuning_seeds=_seeds(data.get("tuning_seeds", list(seeds[:1])), path),
        quick=_options(data.get("quick", {}), "quick", path),
        source=source,
        origins=origins,
    )
    if "plan" in data:
        suite = replace(suite, plan=_plan(data["plan"], suite.regimes, path))
    if suite.tuning and split == "dev":
        raise ConfigError(f"{path}: tuning chooses on development questions; with it, split must be test.")
    if not suite.methods:
        raise ConfigError(f"The suite {path} has no methods. Give at least one, such as [methods.dpo].")
    names = [cell.name for cell in (Cell(r, m, 0) for r in suite.regimes for m in suite.methods)]
    if len(set(names)) < len(names) or "" in {*suite.regimes, *suite.methods}:
        raise ConfigError(f"Two methods or regimes of the suite {path} would share a directory. Rename one.")
    return suite


def _table(data: Mapping[str, Any], name: str, path: Path) -> Mapping[str, Any]:
    table = data.get(name, {})
    if not isinstance(table, dict) or not all(isinstance(rows, dict) for rows in table.values()):
        raise ConfigError(f"{path}: {name} must be tables of options, such as [{name}.NAME].")
    return table


def _methods(table: Mapping[str, Any], path: Path) -> tuple[dict[str, Options], dict[str, str]]:
    """The options of each, and of which other one it has what it does not say itself."""
    methods: dict[str, Options] = {}
    origins: dict[str, str] = {}
    for name, rows in table.items():
        options = _options(rows, f"methods.{name}", path)
        if name in METHODS:
            options.setdefault("method", name)
        if (origin := options.pop("from", None)) is not None:
            if origin not in methods:
                above = ", ".join(methods) or "none"
                raise ConfigError(f"{path}: methods.{name} is from {origin!r}, expected a method above it: {above}.")
            origins[name] = origin
            options = _of_arms(methods[origin], options) | options
        methods[name] = options
    return methods, origins


def _of_arms(general: Options, own: Options) -> Options:
    """The options that a method has from elsewhere, without those of arms that it does not have."""
    if "arms" not in own:
        return general
    arms = [name.strip() for name in own["arms"].split(",")]

    def fits(name: str) -> bool:
        kind, _, rest = name.partition(".")
        arm = "gpo" if kind == "estimator" else rest.partition(".")[0] if kind == "arms" and rest else None
        return arm is None or arm in arms

    return {name: text for name, text in general.items() if fits(name)}


def _options(rows: Any, where: str, path: Path) -> Options:
    return {name: _text(value, f"{path}: {where}.{name}") for name, value in _settings(rows, where, path).items()}


def _tuning(rows: Any, path: Path) -> dict[str, tuple[str, ...]]:
    found = {}
    for name, values in _settings(rows, "tuning", path).items():
        if not isinstance(values, list) or not values:
            raise ConfigError(f"{path}: tuning.{name} must be a list of values to try, got {values!r}.")
        found[name] = tuple(_text(value, f"{path}: tuning.{name}") for value in values)
    return found


def _plan(rows: Any, regimes: Mapping[str, Options], path: Path) -> dict[str, Plan]:
    """What is stated of every regime: in general, and over that of the regime itself."""
    if not isinstance(rows, dict):
        raise ConfigError(f"{path}: plan must be a table, got {rows!r}.")
    general = {name: value for name, value in rows.items() if name not in regimes}
    try:
        return {regime: from_json(Plan, {**general, **rows.get(regime, {})}) for regime in regimes}
    except (ConfigError, DataError, TypeError) as error:
        raise ConfigError(f"In the plan of the suite {path}: {error}") from error


def _settings(rows: Any, where: str, path: Path) -> dict[str, Any]:
    """Settings by dotted name, none of which the suite itself gives."""
    if not isinstance(rows, dict):
        raise ConfigError(f"{path}: {where} must be a table of options, got {rows!r}.")
    found = dotted(rows)
    for name in RESERVED:
        if name in found:
            raise ConfigError(f"{path}: {where} sets {name}, which the suite itself does. Leave it out.")
    if "from" in found and not where.startswith("methods."):
        raise ConfigError(f"{path}: {where} has from, which only methods have.")
    return found


def _text(value: Any, where: str) -> str:
    """As it would be typed."""
    if isinstance(value, bool):
        return str(value).lower()
    if where.endswith(".arms") and isinstance(value, list):
        return ",".join(map(str, value))
    try:
        return value if isinstance(value, str) else json.dumps(value)
    except TypeError as error:
        raise ConfigError(f"{where} must be text, a number, true, false or a list of these, got {value}.") from error


def _seeds(values: Any, path: Path) -> tuple[int, ...]:
    whole = isinstance(values, Sequence) and all(type(value) is int and value >= 0 for value in values)
    if not whole or not values or len(set(values)) < len(values):
        raise ConfigError(f"{path}: seeds must be a list of different whole numbers from 0, got {values!r}.")
    return tuple(values)
