"""Guided Pivotal Optimization: find the critical step of a reasoning trajectory, reset there, train on it.

Names are imported when they are first used: `import gpo` loads neither torch nor transformers.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpo.config import RunConfig as RunConfig
    from gpo.config import Spec as Spec
    from gpo.config import make as make
    from gpo.dataset import load_pairs as load_pairs
    from gpo.diagnosis import Diagnosis as Diagnosis
    from gpo.diagnosis import diagnose as diagnose
    from gpo.errors import ConfigError as ConfigError
    from gpo.errors import DataError as DataError
    from gpo.errors import EngineError as EngineError
    from gpo.errors import GPOError as GPOError
    from gpo.errors import MissingDependency as MissingDependency
    from gpo.pairs import Pair as Pair
    from gpo.pairs import build_pairs as build_pairs
    from gpo.results import Results as Results
    from gpo.run import Run as Run
    from gpo.sampling import Sampler as Sampler
    from gpo.sampling import question_start as question_start
    from gpo.types import Completion as Completion
    from gpo.types import Group as Group
    from gpo.types import Problem as Problem
    from gpo.types import Score as Score
    from gpo.types import Start as Start
    from gpo.types import StepScores as StepScores
    from gpo.types import Trajectory as Trajectory

__version__ = "0.1.0"

_HOMES = {
    "gpo.config": ("RunConfig", "Spec", "make"),
    "gpo.dataset": ("load_pairs",),
    "gpo.diagnosis": ("Diagnosis", "diagnose"),
    "gpo.errors": ("ConfigError", "DataError", "EngineError", "GPOError", "MissingDependency"),
    "gpo.pairs": ("Pair", "build_pairs"),
    "gpo.results": ("Results",),
    "gpo.run": ("Run",),
    "gpo.sampling": ("Sampler", "question_start"),
    "gpo.types": ("Completion", "Group", "Problem", "Score", "Start", "StepScores", "Trajectory"),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'gpo' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*_HOME, "__version__"])
