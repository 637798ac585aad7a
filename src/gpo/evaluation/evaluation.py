"""Measuring models on a task: k samples of each question, resumable, the same questions and seeds for every model.

An evaluation directory holds

    config.json             the settings, models by name
    problems.jsonl          the questions that were chosen
    evaluation/NAME.jsonl   Group per question, in chunks
    results.json, table.md  what came of it
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Container, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, get_type_hints

from gpo import __version__
from gpo.config.components import Spec, describe_component, made, setting_types
from gpo.config.options import spec_from_options, with_system
from gpo.config.parse import parse
from gpo.config.presets import EMBEDDED, model_path
from gpo.config.run import differences
from gpo.config.trust import refuse_strangers, remember
from gpo.contracts import Engine, Task
from gpo.errors import ConfigError, DataError, unknown
from gpo.evaluation.scoreboard import Scoreboard, markdown, score_models
from gpo.images.tokenizer import keep_images
from gpo.rollout.asking import ask, unasked
from gpo.rollout.sampler import Sampler
from gpo.rollout.turns import evenly
from gpo.storage.codec import from_json, to_json
from gpo.storage.directory import RunDirectory, answers_of
from gpo.storage.events import Progress
from gpo.storage.files import write_json, write_text
from gpo.storage.lock import locked
from gpo.types import Group, ModelRef, Problem, Split

COMPONENTS = ("task", "engine")
OF_RUNS = {  # what a run calls an option
    **dict.fromkeys(("problems", "test_problems"), "limit"),
    **dict.fromkeys(("rollouts", "test_samples"), "samples"),
    **{"model": "models", "test_split": "split"},
}


@dataclass(frozen=True)
class EvaluationConfig:
    """What is asked of whom."""

    # By name: a directory or hub id, or an engine that has its model. The first is what the others are compared with.
    models: Mapping[str, str | Engine] = field(default_factory=lambda: {EMBEDDED: EMBEDDED})
    task: Task | Spec | str = "reasoner"
    engine: Engine | Spec | str = "hf"  # an engine without a field `model` loads each model as a checkpoint
    split: Split = "test"
    samples: int = 4  # of each question
    limit: int | None = None  # questions, taken evenly from the sub-tasks; None: all
    max_tokens: int = 512  # of a response
    temperature: float = 1.0  # 0: greedy
    chunk: int = 512  # samples between two writes, about
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("samples", "max_tokens", "chunk", "limit"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} is {value}, expected at least 1.")
        if not self.temperature >= 0:
            raise ConfigError(f"temperature is {self.temperature}, expected 0 (greedy) or more.")
        if self.temperature == 0 and self.samples > 1:
            raise ConfigError(f"Greedy samples are all alike: temperature 0 goes with samples 1, got {self.samples}.")
        if not 0 <= self.seed < 2**32:
            raise ConfigError(f"seed is {self.seed}, expected a whole number from 0 to {2**32 - 1}.")
        if not self.models:
            raise ConfigError("Which models? Give --models A,B with directories or hub ids.")
        for name in self.models:
            model, own = self.models[name], own_model(self.engine)
            if isinstance(model, str) and own not in (None, model):
                raise ConfigError(
                    f"The engine has the model {own}. Name it with --models {own}, without --engine.model."
                )
            if not name or not name.replace("_", "").replace("-", "").replace(".", "").isalnum():
                raise ConfigError(f"A model cannot be called {name!r}: letters, digits, '.', '-' and '_' only.")


def own_model(engine: Engine | Spec | str) -> Any:
    """The model that an engine was given; None where it has none or takes any."""
    return engine.settings.get("model") if isinstance(engine, Spec) else getattr(engine, "model", None)


def model_names(text: str, known: Mapping[str, str] = {}) -> dict[str, str]:
    """Models of a text such as `A,B` or `before=A,after=B`; without a name a model is called as its path is.

    Of an absolute path as many of the last parts as tell it from the others.

    Args:
        known: models that have names already, which they keep.

    Raises:
        ConfigError: two models have one name, or one has no path.
    """
    models: dict[str, str] = {}
    items = [item for item in map(str.strip, text.split(",")) if item]
    names = {path: name for name, path in known.items()}
    new = [item for item in items if item.startswith("/") and item not in names]
    taken = {*known, *(item.partition("=")[0] if "=" in item else _as_name(item) for item in items)}
    for item in items:
        name, equals, path = item.partition("=")
        if not equals:
            path, name = item, names.get(item) or _as_name(_end(item, new, taken) if item in new else item)
        if not path:
            raise ConfigError(f"--models has {item!r}, expected NAME=PATH.")
        if name in models:
            raise ConfigError(f"Two models are called {name!r}. Name them: --models first=PATH,second=PATH.")
        models[name] = path
    return models


def _end(path: str, paths: Sequence[str], taken: Container[str]) -> str:
    """The shortest end of an absolute path that is no other one's, and makes a name that nothing has."""
    for count in range(1, len(Path(path).parts) - 1):
        end = Path(path).parts[-count:]
        if [Path(each).parts[-count:] for each in paths].count(end) == 1 and _as_name("/".join(end)) not in taken:
            return "/".join(end)
    return path


def _as_name(path: str) -> str:
    return "".join(c if c.isalnum() or c in "._-" else "_" for c in path.strip("./"))


def describe_evaluation(config: EvaluationConfig) -> dict[str, Any]:
    """The configuration as JSON."""
    described = {item.name: getattr(config, item.name) for item in fields(config)}
    described |= {kind: describe_component(kind, described[kind]) for kind in COMPONENTS}
    described["models"] = {
        name: model if isinstance(model, str) else f"<{type(model).__qualname__}>"
        for name, model in config.models.items()
    }
    plain: dict[str, Any] = json.loads(json.dumps(to_json(described)))
    return plain


def resolve_evaluation(options: Mapping[str, str], stored: Mapping[str, Any] | None = None) -> EvaluationConfig:
    """The configuration of a stored evaluation (or the default), changed by option texts with dotted names.

    Raises:
        ConfigError: an unknown name, or a text that is not of the setting's type.
    """
    left = dict(options)
    default = EvaluationConfig()
    base = stored or {item.name: getattr(default, item.name) for item in fields(default)}
    values: dict[str, Any] = {}
    for kind in COMPONENTS:
        known = base[kind] if isinstance(base[kind], Mapping) else {"name": base[kind]}
        values[kind] = spec_from_options(kind, kind, known, left)
    models = left.pop("models", None)
    values["models"] = dict(base["models"]) if models is None else model_names(models, (stored or {}).get("models", {}))
    hints = {name: kind for name, kind in get_type_hints(EvaluationConfig).items() if name not in values}
    for name, kind in hints.items():
        values[name] = parse(kind, left.pop(name), f"--{name}") if name in left else from_json(kind, base[name])
    for name in left:
        if name in OF_RUNS:
            raise ConfigError(f"Unknown option '--{name}'. It is called --{OF_RUNS[name]} where models are named.")
        raise unknown("option", f"--{name}", [f"--{known}" for known in (*hints, *COMPONENTS, "models", "data")])
    return EvaluationConfig(**values)


class Evaluation:
    """An evaluation directory and what is left to do in it.

    Models may be added to one that has samples; all else must stay as it was, so that all models answer the same. Until
    then nothing is settled, and nothing is written before the task has given its questions and a model is loaded.

    Args:
        directory: made if it is not there.
        config: None takes that of the directory.
        on_progress: called after every chunk.

    Raises:
        ConfigError: the directory was made with other settings, holds something else, or has none and none is given.
    """

    def __init__(
        self,
        directory: Path | str,
        config: EvaluationConfig | None = None,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> None:
        self.files = RunDirectory(Path(directory))
        self.on_progress = on_progress
        self._check: Callable[[], None] = lambda: None  # complains once the directory that is held is gone
        self.config = self._settle(config)
        self.task: Task = made("task", self.config.task)

    def _settle(self, config: EvaluationConfig | None) -> EvaluationConfig:
        """What was given with the models that have samples, if it fits what is there."""
        directory, stored = self.files.path, self.files.config_or_none()
        if stored is not None and not is_evaluation(directory):
            raise ConfigError(f"{directory} is a run, no evaluation. Choose another directory.")
        if config is None and stored is None:
            raise ConfigError(f"{directory} is no evaluation. Start one with: gpo evaluate {directory} --models A,B")
        if config is None:
            refuse_strangers(directory, stored)
            config = resolve_evaluation({}, stored)
        sampled = self._sampled(stored)
        if stored is None or not sampled:
            return config
        described = describe_evaluation(config)
        known = {name: described["models"].get(name, model) for name, model in sampled.items()}
        before = {**stored, "models": sampled, "task": with_system(stored["task"])}
        if changed := differences(before, described | {"models": known}):
            raise ConfigError(
                f"{directory} was made with other settings: {'; '.join(changed[:3])}. "
                "Leave these as they were, or choose another directory."
            )
        return replace(config, models={**sampled, **config.models})

    def _sampled(self, stored: Mapping[str, Any] | None) -> dict[str, str]:
        """The models of the directory that have samples there."""
        models = {} if stored is None else stored["models"]
        return {name: model for name, model in models.items() if self.files.evaluation(name).path.exists()}

    def all(self) -> Scoreboard:
        """Ask every model what it was not asked yet, then write tables.

        Raises:
            ConfigError: another process works there, or has settled it otherwise.
            DataError: the task has no questions in this split, or a file cannot be used.
        """
        with locked(self.files.path) as check:
            self._check = check
            self.config = self._settle(self.config)
            problems = self._problems()
            answers = {name: self._answers(name, problems) for name in self.config.models}
            self._keep(problems)
            board = score_models(answers, problems, self.task)
            write_json(self.files.results, board)
            write_text(self.files.path / "table.md", markdown(board))
            check()
        return board

    def _problems(self) -> list[Problem]:
        """The questions: those of the directory once a model has samples."""
        split, stored = self.config.split, self.files.config_or_none()
        if self._sampled(stored) and (known := self.files.problems(split)) is not None:
            return known
        chosen = evenly(self.task.problems(split), self.config.limit)
        if not chosen:
            raise DataError(f"The task has no {split} questions. Choose another task, split or path.")
        return [from_json(Problem, to_json(problem)) for problem in chosen]  # as they are read from the directory

    def _keep(self, problems: Sequence[Problem]) -> None:
        """Write the settings and the questions, if they are not there as they are."""
        described = describe_evaluation(self.config)
        if self.files.problems(self.config.split) != problems:
            self.files.write_problems({self.config.split: problems})
        if self.files.config_or_none() != described:
            write_json(self.files.path / "config.json", {"gpo": __version__, **described})
            remember(self.files.path)

    def _answers(self, name: str, problems: Sequence[Problem]) -> list[Group]:
        """Samples of every question, chunk by chunk; a chunk's seeds do not depend on the model."""
        file, samples = self.files.evaluation(name), self.config.samples
        groups = answers_of(file, problems, samples)
        if len(groups) == len(problems):
            return groups
        model = self.config.models[name]
        # What was passed by the caller stays open.
        with closing(self._engine(model)) if isinstance(model, str) else nullcontext(model) as engine:
            self._keep(problems)
            keep_images(engine.tokenizer, self.files.images)
            for done, batch in unasked(file, problems, samples, self.config.chunk):
                began = time.monotonic()
                sampler = Sampler(
                    engine,
                    self.task,
                    {problem.id: problem for problem in batch},
                    temperature=self.config.temperature,
                    max_tokens=self.config.max_tokens,
                    seed=self.config.seed,
                    stream=f"evaluate/{done}",
                )
                ask(file, batch, samples, sampler)
                self._check()
                self._tell(name, done + len(batch), len(problems), sampler.tokens, time.monotonic() - began)
        return file.read()

    def _engine(self, model: str) -> Engine:
        chosen = Spec("engine", self.config.engine) if isinstance(self.config.engine, str) else self.config.engine
        settings = setting_types(chosen.component_class() if isinstance(chosen, Spec) else type(chosen))
        if "model" in settings:
            engine: Engine = made("engine", chosen, model=model_path(model))
        else:
            engine = made("engine", chosen)
            engine.load(ModelRef(model_path(model), model))
        return engine

    def _tell(self, name: str, done: int, total: int, tokens: int, seconds: float) -> None:
        progress = Progress("evaluate", name, done, total, "questions", tokens, round(seconds, 3))
        self.files.events.log(progress)
        if self.on_progress is not None:
            self.on_progress(progress)


def is_evaluation(directory: Path) -> bool:
    """Whether a directory holds an evaluation (a run has arms, and one model)."""
    return "models" in (RunDirectory(directory).config_or_none() or {})
