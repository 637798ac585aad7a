"""What a suite takes, said before it runs."""

import json
from math import inf
from pathlib import Path

import pytest

from gpo.advice.cost import GPUS, ModelShape, gpu_hours
from gpo.advice.work import Training, work_of
from gpo.cli import main
from gpo.config.options import resolve
from gpo.errors import ConfigError
from gpo.suites import plan as of_suites
from gpo.suites.plan import REASONER, foretell_rows, plan
from gpo.suites.suite import read_suite

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
SUITE = """
title = "Stated"
seeds = [0, 1]

[run]
model = "nobody/nothing"
task = "gsm8k"
problems = 10
rollouts = 4
budget = 2
test_problems = 5
test_samples = 2

[methods.grpo]
arms = "plain"
"method.lora" = "none"
"method.gradient_checkpointing" = false
"method.minibatches" = 1
"method.beta" = 0

[plan]
prompt = 20
response = 50
steps = 5
right = 0.5
gpu = "h100"
shape = { parameters = 1000, layers = 2, hidden = 8, intermediate = 16, kv_heads = 2, head_dim = 4 }
"""


@pytest.fixture(autouse=True)
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpo.storage.hub.answers", lambda url: False)


def written(tmp_path: Path, text: str) -> str:
    (tmp_path / "two.toml").write_text(text)
    return str(tmp_path / "two.toml")


def test_a_row_takes_what_a_hand_counts(tmp_path: Path) -> None:
    (row,) = foretell_rows(read_suite(written(tmp_path, SUITE)))
    # Of each of two seeds: 80 rollouts of 50 tokens, all from questions, and 10 answers of two models.
    assert row.work.sampled == {"evaluate": 2 * 20 * 50, "rollout": 2 * 80 * 50, "locate": 0, "more": 0}
    assert row.work.trained == 2 * 80 * 70
    assert row.work.prompts == 2 * (10 + 2 * 5) * 20
    assert row.work.scored == 0
    assert row.done is not None
    assert row.done.total == 2 * 1000 * (2000 + 8000 + 800) + 6 * 1000 * 11200
    # Float32 weights, gradients and two moments; activations of 8192 tokens; logits.
    assert row.memory == 16 * 1000 + 8192 * 2 * 4 * (12 * 8 + 4 * 16) + 3 * 4 * 2**24
    shape = ModelShape(1000, layers=2, hidden=8, intermediate=16, kv_heads=2, head_dim=4)
    assert row.hours == gpu_hours(shape, row.work, row.done, GPUS["h100"], hf=True).total


def test_rows_take_over_what_those_above_sample_alike(tmp_path: Path) -> None:
    text = SUITE.replace("[methods.grpo]", '[methods.first]\nmethod = "dpo"\n[methods.same]\nmethod = "kto"\n'
                         '[methods.dearer]\nmethod = "dpo"\nbudget = 3\n[methods.rounds]\nmethod = "dpo"\nrounds = 2\n'
                         "[methods.grpo]")  # fmt: skip
    first, same, dearer, rounds, _ = foretell_rows(read_suite(written(tmp_path, text)))
    once = 2 * 10 * 4 * 50  # the first rollouts of all arms, of two seeds
    assert first.work.sampled["rollout"] == once + once  # and those of plain beyond
    search = 2 * 0.08 * 2 * 10 * 4 * 50
    assert first.work.sampled["locate"] == search  # that of gpo, which random copies
    assert first.work.sampled["evaluate"] == 2 * 4 * 10 * 50
    assert same.work.tokens == same.work.sampled["evaluate"] == 2 * 3 * 10 * 50
    assert dearer.work.sampled["rollout"] == 2 * once  # the first ones are there
    assert rounds.work.sampled["rollout"] == once + 3 * once + 2 * once  # each arm its own in the second round
    assert rounds.work.sampled["locate"] == 3 * search


def test_tuning_is_part_of_a_row(tmp_path: Path) -> None:
    tuned = SUITE.replace("seeds = [0, 1]", "seeds = [0, 1]\ntuning_seeds = [5]").replace(
        "[plan]", '[tuning]\n"method.learning_rate" = [1e-5, 1e-6]\n\n[plan]'
    )
    (plain,) = foretell_rows(read_suite(written(tmp_path, SUITE)))
    (row,) = foretell_rows(read_suite(written(tmp_path, tuned)))
    assert row.work.trained == 2 * plain.work.trained
    assert row.work.sampled["rollout"] == 1.5 * plain.work.sampled["rollout"]  # rates share them


@pytest.mark.parametrize("name", ["table_quick", "table", "paper"])
def test_the_embedded_reasoner_is_foretold_within_a_factor(name: str) -> None:
    """Of what finished cells of pairs counted: sampled tokens by a sixth, trained ones by two fifths."""
    rows = [json.loads(line) for line in (RESULTS / f"{name}.jsonl").read_text().splitlines()]
    rows = [row for row in rows if row["cell"]["phase"] == "test" and row["cell"]["method"].startswith(("dpo", "orpo"))]
    for row in rows[:3]:
        config = resolve(row["options"])
        seen, training = REASONER.pilot(config.rollouts), Training.of(config)
        for arm in row["trained"]:
            work = work_of(config, arm["name"], config.problems, seen, training)
            assert work.tokens == pytest.approx(arm["sampled_tokens"], rel=0.17)
            assert work.trained == pytest.approx(arm["trained_tokens"], rel=0.4)


def test_the_plan_of_a_model_that_is_not_here_fits_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "paper_7b", "--quick", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert all(len(line) <= 80 for line in said.splitlines())
    for part in ("rollouts  search  resets", "  dpo_first", "in all", "Assumed for gsm8k: 90% right", "one h100"):
        assert part in said
    assert "7,615,616,512 parameters of Qwen/Qwen2.5-7B-Instruct" in " ".join(said.split())


def test_where_nothing_is_known_nothing_is_said(tmp_path: Path) -> None:
    unknown = SUITE.partition("[plan]")[0]
    assert "Assumed" not in plan(read_suite(written(tmp_path, unknown)))
    embedded = "[run]\ntest_problems = 'none'\n[methods.dpo]"
    said = " ".join(plan(read_suite(written(tmp_path, embedded))).split())
    assert "(the embedded reasoner, as measured)" in said
    assert "their answers are not counted" in said
    assert "Hours" not in said


def test_without_a_shape_tokens_alone_are_told(tmp_path: Path) -> None:
    said = plan(read_suite(written(tmp_path, SUITE.partition("shape =")[0])))
    assert "trained" in said
    assert "FLOPs" not in said


def test_a_shape_at_hand_comes_before_a_stated_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shape = ModelShape(10**12, layers=2, hidden=8, intermediate=16, kv_heads=2, head_dim=4)
    monkeypatch.setattr(of_suites, "shape_of", lambda model: shape)
    (row,) = foretell_rows(read_suite(written(tmp_path, SUITE)))
    assert row.shape == shape
    assert row.hours == inf
    assert "no room" in plan(read_suite(written(tmp_path, SUITE)))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("plan = 3\n[methods.dpo]", "plan must be a table, got 3"),
        ("[methods.dpo]\n[plan]\nprompt = 3", "lacks response, right, steps"),
        ("[methods.dpo]\n[plan]\nprompt = 3\nresponse = 50\nsteps = 5\nright = 2", "right is 2"),
        ("[methods.dpo]\n[plan]\nprompt = 3\nresponse = 50\nsteps = 5\nright = 0.5\n[plan.bhb]", "no field bhb"),
    ],
)
def test_a_plan_that_is_not_understood_is_refused(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        read_suite(written(tmp_path, text))
