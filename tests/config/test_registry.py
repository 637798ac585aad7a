from dataclasses import is_dataclass

import pytest

from gpo.config.components import Spec, setting_types
from gpo.config.presets import REASONER
from gpo.config.registry import REGISTRIES, lookup
from gpo.config.run import ARMS, RunConfig, default_arms
from gpo.contracts import Engine, Estimator, Task
from gpo.errors import ConfigError

PROTOCOLS: dict[str, type] = {"task": Task, "engine": Engine, "estimator": Estimator}
NAMES = [(kind, name) for kind, names in REGISTRIES.items() for name in names]


@pytest.mark.parametrize(("kind", "name"), NAMES)
def test_every_name_leads_to_a_component(kind: str, name: str) -> None:
    component = lookup(kind, name)
    assert is_dataclass(component)
    setting_types(component)
    if kind == "method":
        assert component.trains_on in ("pairs", "groups")
        assert all(callable(getattr(component, member)) for member in ("update", "save"))
    if kind in PROTOCOLS:
        for member in [name for name in vars(PROTOCOLS[kind]) if name == "__call__" or not name.startswith("_")]:
            assert hasattr(component, member) or member in setting_types(component), member


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"Unknown method 'dpoo'\. Did you mean 'dpo'\? Known: .*dpo"):
        lookup("method", "dpoo")


def test_the_defaults_of_a_run_are_registered() -> None:
    config = RunConfig()
    for kind in ("task", "engine", "method", "segmenter"):
        assert getattr(config, kind).name in REGISTRIES[kind]
    for arm, spec in default_arms().items():
        assert isinstance(spec, Spec)
        assert spec.describe() | ARMS[arm] == spec.describe()


def test_settings_of_the_preset_are_settings_of_their_methods() -> None:
    for name, settings in REASONER.items():
        assert settings.keys() <= setting_types(lookup("method", name)).keys(), name
