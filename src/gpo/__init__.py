"""Guided Pivotal Optimization: find the critical step of a reasoning trajectory, reset there, train on it.

Names are imported when they are first used: `import gpo` loads neither torch nor transformers.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpo.config.components import Spec as Spec
    from gpo.config.components import make as make
    from gpo.config.run import RunConfig as RunConfig
    from gpo.diagnosis import Diagnosis as Diagnosis
    from gpo.diagnosis import diagnose as diagnose
    from gpo.errors import ConfigError as ConfigError
    from gpo.errors import DataError as DataError
    from gpo.errors import EngineError as EngineError
    from gpo.errors import GPOError as GPOError
    from gpo.errors import MissingDependency as MissingDependency
    from gpo.experiment.run import Run as Run
    from gpo.preferences.dataset import load_pairs as load_pairs
    from gpo.preferences.pairs import build_pairs as build_pairs
    from gpo.report.results import Results as Results
    from gpo.rollout.sampler import Sampler as Sampler
    from gpo.rollout.sampler import question_start as question_start
    from gpo.types import Completion as Completion
    from gpo.types import Group as Group
    from gpo.types import Pair as Pair
    from gpo.types import PairSettings as PairSettings
    from gpo.types import Problem as Problem
    from gpo.types import Score as Score
    from gpo.types import Start as Start
    from gpo.types import StepScores as StepScores
    from gpo.types import Trajectory as Trajectory

__version__ = "0.1.0"

_HOMES = {
    "gpo.config.components": "Spec make",
    "gpo.config.run": "RunConfig",
    "gpo.preferences.dataset": "load_pairs",
    "gpo.diagnosis": "Diagnosis diagnose",
    "gpo.errors": "ConfigError DataError EngineError GPOError MissingDependency",
    "gpo.preferences.pairs": "build_pairs",
    "gpo.report.results": "Results",
    "gpo.experiment.run": "Run",
    "gpo.rollout.sampler": "Sampler question_start",
    "gpo.types": "Completion Group Pair PairSettings Problem Score Start StepScores Trajectory",
}
_HOME = {name: module for module, names in _HOMES.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'gpo' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*_HOME, "__version__"])
