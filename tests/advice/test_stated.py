"""What is stated of a run in place of a pilot."""

import pytest

from gpo.advice.stated import Plan
from gpo.advice.work import Training, work_of
from gpo.config.options import resolve
from gpo.errors import ConfigError


def test_stated_numbers_are_those_of_a_pilot() -> None:
    pilot = Plan(prompt=20, response=50, steps=4, right=0.7).pilot(8)
    assert (pilot.prompt, pilot.response, pilot.steps) == (20, 50, 4)
    assert pilot.success == pytest.approx(0.7, abs=0.02)
    assert pilot.weight == 50 + 37.5 + 25 + 12.5  # a rollout from every boundary of four equal steps
    assert 0 < pilot.mixed < 1
    assert sum(count > 0 for count in pilot.strata.values()) >= 4


def test_all_arms_of_a_stated_run_sample_its_budget() -> None:
    config, pilot = resolve({"problems": "10", "budget": "3"}), Plan(20, 50, 4, 0.7).pilot(8)
    for arm in config.arms:
        assert work_of(config, arm, 10, pilot, Training.of(config)).tokens == pytest.approx(3 * 10 * 8 * 50)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"right": 1.0}, "right is 1.0, expected a share between 0 and 1"),
        ({"steps": 60.0}, "50 tokens in 60 steps"),
        ({"gpu": "z80"}, "Unknown GPU 'z80'"),
    ],
)
def test_numbers_that_cannot_be_are_refused(change: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Plan(**{"prompt": 20.0, "response": 50.0, "steps": 4.0, "right": 0.7} | change)  # type: ignore[arg-type]
