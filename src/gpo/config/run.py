"""Settings of a run: components by name with their fields, and numbers, from Python or as JSON."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from math import inf
from types import NoneType
from typing import Any, Literal, get_args, get_type_hints

from gpo.config.components import Spec, describe_component, refuse_class, words
from gpo.config.models import resolve_model
from gpo.config.presets import EMBEDDED, OTHERS, PIECE_SECONDS, REASONER, SEGMENTS, SHIPPED, located
from gpo.contracts import Engine, Estimator, Method, Task
from gpo.errors import ConfigError, DataError, unknown
from gpo.rollout.segmenters import Segmenter
from gpo.storage.codec import from_json, shortened, to_json
from gpo.types import Credit, PairSettings

SEARCH = {"name": "adaptive", "rule": "drop", "rollouts": 4, "batch": 8, "certainty": 0.9, "smallest": 0.05}
ARMS: dict[str, dict[str, Any]] = {"plain": {"name": "none"}, "random": {"name": "random_matched"}, "gpo": SEARCH}
COMPONENTS = ("task", "engine", "method", "segmenter")
SAMPLE_SHIPPED = ("hf", "openai", "ray", "vllm")  # engines that sample from the models that ship with GPO


OR_ALL = ("test_problems", "round_problems")
AT_LEAST_ONE = (
    *("problems", "rollouts", "locate_per_problem", "reset_rollouts", "rounds", "test_samples", "max_tokens", "chunk"),
    *("workers", *OR_ALL),
)
RANGES: dict[str, tuple[Callable[[Any], bool], str]] = {  # whether a value is in it, and what is expected
    "budget": (lambda x: 1 < x < inf, "a number above 1: the first rollouts are part of it"),
    "seed": (lambda x: 0 <= x < 2**32, f"a whole number from 0 to {2**32 - 1}"),
    "locate_share": (lambda x: 0 < x < 1, "a share between 0 and 1"),
    **dict.fromkeys(("reset_fraction", "fresh_least"), (lambda x: 0 <= x <= 1, "a share from 0 to 1")),
    "reset_turns": (lambda x: x >= 0, "a number of turns; 0: no limit"),
    "test_skip": (lambda x: x >= 0, "a number of test problems of at least 0"),
    "buffer": (lambda x: x >= 0, "a number of rounds of at least 0"),
    "temperature": (lambda x: 0 < x < inf, "a number above 0: rollouts must differ"),
    "piece_seconds": (lambda x: 0 <= x < inf, "a number of at least 0"),
}


def default_arms() -> dict[str, Estimator | Spec | str]:
    """The plain baseline, the control, and the search that did best on development questions."""
    rest = {arm: {k: v for k, v in each.items() if k != "name"} for arm, each in ARMS.items()}
    return {arm: Spec("estimator", each["name"], rest[arm]) for arm, each in ARMS.items()}


@dataclass(frozen=True)
class RunConfig:
    """What a run is made of: components as instances or by name. Tokens are sampled tokens."""

    task: Task | Spec | str = "reasoner"
    model: str = EMBEDDED  # directory or hub id, for engine and method alike; an engine with its own ignores it
    engine: Engine | Spec | str = "hf"
    method: Method | Spec | str = "dpo"
    segmenter: Segmenter | Spec | str = "newline"
    credit: Credit = "tail"  # what carries loss: all behind a start, the step behind it, or each step by worth (tree)
    pairs: PairSettings = PairSettings()  # how an offline method's pairs are made
    arms: Mapping[str, Estimator | Spec | str] = field(default_factory=default_arms)  # one trained model each
    problems: int = 120  # training problems, taken evenly from the sub-tasks
    rollouts: int = 8  # of each training problem, before anything is located
    budget: float = 2.5  # tokens of each arm in a round, as a multiple of those of the first round's first rollouts
    locate_share: float | None = None  # of the budget, at most, for the search; None: 0.08, single steps 0.4
    locate_per_problem: int = 4  # trajectories to search at most
    reset_rollouts: int = 8  # of each reset start when its turn comes
    reset_turns: int | None = None  # of a reset start, then questions; 0: no limit; None: 1, single steps 0
    reset_fraction: float = 1.0  # of the budget, at most, from reset starts; what is left goes to the questions again
    allocation: str = "uniform"  # starts take turns; stratum, or arms that do: tokens go where most is learned for each
    fresh_least: float = 0.5  # of the budget, from the questions themselves, where tokens go by stratum
    buffer: int = 0  # rounds for which a rare outcome is kept, to be searched again, where tokens go by stratum
    reuse: bool | None = None  # train on the search's rollouts too; None: as pairs, and for steps
    rounds: int = 1  # of sampling and training; the model that a round has trained samples in the next one
    round_problems: int | None = None  # training problems of each round, in turns; None: all
    test_problems: int | None = 360  # taken evenly from the sub-tasks; None: all; 0: models are trained and not asked
    test_skip: int = 0  # test problems that are left out, the first ones: those that settings were chosen on
    test_samples: int = 4  # of each test problem
    test_split: Literal["dev", "test"] = "test"  # dev: to choose settings, so that the test questions stay unseen
    max_tokens: int = 512  # of a response
    temperature: float = 1.0
    chunk: int = 512  # rollouts between two writes, about
    piece_seconds: float | None = None  # of sampling that a kill may cost; 0: a chunk; None: 240, of a shipped model 0
    launch: str | None = None  # words that start a round's training, such as "accelerate launch -m"; None: this process
    workers: int | None = None  # processes that share the arms; None: one a thread, of a shipped model on a CPU
    seed: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.pairs, PairSettings):
            raise ConfigError(f"pairs is {self.pairs!r}, expected such as gpo.PairSettings(per_start=8).")
        if not self.model or isinstance(self.model, int | float):
            raise ConfigError(f"model is {self.model!r}, expected a directory or a hub id, or reasoner.")
        _check_types(self)
        self._name_components()
        for name in AT_LEAST_ONE:
            value = getattr(self, name)
            least = 0 if name == "test_problems" else 1
            if value is not None and value < least:
                raise ConfigError(
                    f"{name} is {value}, expected at least {least}{', or none for all' * (name in OR_ALL)}."
                )
        self._check_ranges()
        if self.piece_seconds and (self.workers or 1) > 1:
            raise ConfigError(f"{self.workers} workers write whole chunks. Add --piece_seconds 0, or take --workers 1.")
        if not self.arms:
            raise ConfigError(f"A run needs at least one arm, for instance {', '.join(ARMS)}.")
        for name in self.arms:
            if name == "base" or not name.replace("_", "").replace("-", "").isalnum():
                raise ConfigError(f"An arm cannot be called {name!r}: letters, digits, - and _ only, and not 'base'.")

    @property
    def named(self) -> bool:
        """Whether no component is an instance, so that another process can make the same ones."""
        given = [*(getattr(self, kind) for kind in COMPONENTS), *self.arms.values()]
        return all(isinstance(component, Spec | str) for component in given)

    @property
    def suits_workers(self) -> bool:
        """Whether a second process costs little beside what it does: the model ships with the package, on `hf`."""
        engine = self.engine.ancestor if isinstance(self.engine, Spec) else None
        return engine == "hf" and resolve_model(self).name in SHIPPED

    def _check_ranges(self) -> None:
        for name, (fits, expected) in RANGES.items():
            if (value := getattr(self, name)) is not None and not fits(value):
                raise ConfigError(f"{name} is {value}, expected {expected}.")
        if self.allocation not in ("uniform", "stratum"):
            for name in self.allocation.split(","):
                if name.strip() not in self.arms:
                    raise unknown("allocation", name.strip(), ("uniform", "stratum", *self.arms))

    def by_stratum(self, arm: str) -> bool:
        """Whether the tokens of an arm that resets go where most is learned for each."""
        return self.allocation == "stratum" or arm in [name.strip() for name in self.allocation.split(",")]

    def _name_components(self) -> None:
        """A name becomes a `Spec`; method and segmenter have what suits the model where nothing else is said."""
        if not isinstance(self.arms, Mapping) or not all(isinstance(name, str) for name in self.arms):
            raise ConfigError(f"arms is {self.arms!r}, expected estimators by names, such as {{'gpo': 'adaptive'}}.")
        for kind in COMPONENTS:
            refuse_class(kind, getattr(self, kind))
            if isinstance(getattr(self, kind), str):
                object.__setattr__(self, kind, Spec(kind, getattr(self, kind)))
        for arm, estimator in self.arms.items():
            refuse_class(f"estimator of arm {arm!r}", estimator)
        arms = {name: Spec("estimator", arm) if isinstance(arm, str) else arm for name, arm in self.arms.items()}
        object.__setattr__(self, "arms", arms)
        engine = self.engine if isinstance(self.engine, Spec) else None  # None: made in Python, with its model
        shipped = engine and engine.ancestor in SAMPLE_SHIPPED and resolve_model(self).name in SHIPPED
        tuned, cut = (REASONER, {}) if shipped else ({}, {}) if engine is None else (OTHERS, SEGMENTS)
        for kind, presets in (("method", tuned), ("segmenter", cut)):
            if isinstance(spec := getattr(self, kind), Spec):
                object.__setattr__(self, kind, replace(spec, preset=spec.suited(presets)))
        if self.piece_seconds is None:
            whole = self.suits_workers or (self.workers or 1) > 1
            object.__setattr__(self, "piece_seconds", 0.0 if whole else PIECE_SECONDS)


def _check_types(settings: RunConfig) -> None:
    """Raises: ConfigError if a setting that is a plain value is of another type."""
    for name, kind in get_type_hints(RunConfig).items():
        if name in (*COMPONENTS, "model", "arms", "pairs"):
            continue
        value = getattr(settings, name)
        try:
            if value is None and NoneType not in get_args(kind):
                raise DataError(name)
            from_json(kind, value)
        except (DataError, TypeError):
            raise ConfigError(f"{name} is {value!r}, expected {words(kind)}.") from None


def settled(config: RunConfig, stored: Mapping[str, Any] | None = None) -> RunConfig:
    """With what is None decided: as a directory has it stored, else by credit and method (lab notes).

    What is trained on, how much is searched and how often a start has its turn.
    """
    known = stored or {}
    config = _seeded(config, known.get("method", {}))
    if None not in (config.reuse, config.reset_turns, config.locate_share):
        return config
    method = Spec("method", config.method) if isinstance(config.method, str) else config.method
    kind = method.component_class() if isinstance(method, Spec) else type(method)
    tail = config.credit == "tail"
    reuse = _first(config.reuse, known.get("reuse"), not tail or getattr(kind, "reuses", True))
    return replace(
        config,
        reuse=reuse,
        reset_turns=_first(config.reset_turns, known.get("reset_turns"), 1 if tail else 0),
        locate_share=_first(config.locate_share, known.get("locate_share"), 0.08 if tail else 0.4),
    )


def _seeded(config: RunConfig, stored: Mapping[str, Any]) -> RunConfig:
    """With the seed that a directory has stored for the method, where the method says none."""
    method, seed = config.method, stored.get("seed")
    if seed is None:
        return config
    if isinstance(method, Spec) and method.name == stored["name"]:
        return replace(config, method=replace(method, settings={"seed": seed, **method.settings}))
    return config


def _first(*values: Any) -> Any:
    return next(value for value in values if value is not None)


def describe(config: RunConfig) -> dict[str, Any]:
    """The resolved configuration as JSON: what `resolve` takes as `stored`."""
    described = {item.name: getattr(config, item.name) for item in fields(config)}
    described |= {kind: with_whole_paths(describe_component(kind, described[kind])) for kind in COMPONENTS}
    described["model"] = resolve_model(config).name
    described["pairs"] = to_json(config.pairs)
    arms = {name: describe_component("estimator", arm) for name, arm in config.arms.items()}
    return described | {"arms": {name: with_whole_paths(arm) for name, arm in arms.items()}}


def with_whole_paths(component: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a component, directories of models by their whole paths."""
    return {
        key: located(value) if key in ("model", "tokenizer") and isinstance(value, str) else value
        for key, value in component.items()
    }


def differences(old: Mapping[str, Any], new: Mapping[str, Any], path: str = "") -> list[str]:
    """The dotted names of the settings that differ, each with its old and its new value."""
    found: list[str] = []
    for key in [*old, *(key for key in new if key not in old)]:
        before, after, where = old.get(key), new.get(key), f"{path}{key}"
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            found += differences(before, after, f"{where}.")
        elif before != after:
            found.append(f"{where} was {shortened(before)}, now {shortened(after)}")
    return found
