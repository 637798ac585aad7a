"""Suite files: what they say, and what is refused before anything runs."""

from pathlib import Path

import pytest

from gpo.cli import main
from gpo.config.options import resolve
from gpo.errors import ConfigError
from gpo.suites.suite import SHIPPED, Cell, read_suite

SUITE = """
title = "Two of them"
seeds = [3, 4]

[run]
problems = 4

[methods.dpo]
"method.beta" = 0.5
[methods.mine]
method = "kto"
pairs.most = 7

[regimes.small]
task = "reasoner"
reuse = false

[tuning]
"method.learning_rate" = [1e-4, 3e-4]
"pairs.per_start" = [2, 4]

[quick]
problems = 2
"""


def written(tmp_path: Path, text: str) -> str:
    path = tmp_path / "two.toml"
    path.write_text(text)
    return str(path)


def test_cells_are_options_of_runs(tmp_path: Path) -> None:
    suite = read_suite(written(tmp_path, SUITE))
    assert suite.options(Cell("small", "mine", 4)) == {
        "problems": "4",
        "task": "reasoner",
        "reuse": "false",
        "method": "kto",
        "pairs.most": "7",
        "seed": "4",
        "test_split": "test",
    }
    config = resolve(suite.options(Cell("small", "dpo", 3, "tuning", (("method.learning_rate", "0.0001"),))))
    assert (config.problems, config.seed, config.test_split, config.reuse) == (4, 3, "dev", False)


def test_a_row_may_be_another_one_but_for_some_options(tmp_path: Path) -> None:
    text = """
        [run]
        "arms.random.seed" = 1
        [methods.dpo]
        budget = 3
        [methods.half]
        from = "dpo"
        arms = "gpo"
        [methods.simpo]
        from = "half"
        budget = 4
    """
    suite = read_suite(written(tmp_path, text))
    assert dict(suite.origins) == {"half": "dpo", "simpo": "half"}
    assert resolve(suite.options(Cell("run", "half", 0))).arms.keys() == {"gpo"}
    assert suite.methods == {
        "dpo": {"method": "dpo", "budget": "3"},
        "half": {"method": "dpo", "budget": "3", "arms": "gpo"},
        "simpo": {"method": "simpo", "budget": "4", "arms": "gpo"},
    }
    with pytest.raises(ConfigError, match=r"methods\.half is from 'dpa', expected a method above it: dpo"):
        read_suite(written(tmp_path, text.replace('from = "dpo"', 'from = "dpa"')))


def test_arms_may_be_a_list(tmp_path: Path) -> None:
    suite = read_suite(written(tmp_path, '[methods.dpo]\narms = ["plain", "gpo"]'))
    assert suite.methods["dpo"]["arms"] == "plain,gpo"


def test_only_test_questions_are_left_out(tmp_path: Path) -> None:
    suite = read_suite(written(tmp_path, SUITE.replace("[run]", "[run]\ntest_skip = 8")))
    assert suite.options(Cell("small", "mine", 4))["test_skip"] == "8"
    assert "test_skip" not in suite.options(Cell("small", "mine", 4, phase="tuning"))


def test_a_suite_may_ask_development_questions(tmp_path: Path) -> None:
    suite = read_suite(written(tmp_path, f'split = "dev"\n{SUITE.partition("[tuning]")[0]}'))
    assert suite.options(Cell("small", "mine", 4))["test_split"] == "dev"
    with pytest.raises(ConfigError, match=r"'train'.*dev, test"):
        read_suite(written(tmp_path, f'split = "train"\n{SUITE}'))


def test_what_chose_the_settings_does_not_report_on_them(tmp_path: Path) -> None:
    text = 'split = "dev"\n[methods.dpo]\n[tuning]\n"method.beta" = [0.1, 1.0]\n'
    with pytest.raises(ConfigError, match="tuning chooses on development questions"):
        read_suite(written(tmp_path, text))


def test_every_combination_is_tuned_on_the_first_seed(tmp_path: Path) -> None:
    suite = read_suite(written(tmp_path, SUITE))
    cells = list(suite.tuning_cells())
    assert len(cells) == len(set(cells)) == 2 * 4
    assert {cell.seed for cell in cells} == {3}
    assert len({cell.name for cell in cells}) == 8
    assert dict(cells[0].tuned) == {"method.learning_rate": "0.0001", "pairs.per_start": "2"}


def test_the_quick_form_has_one_seed_and_no_tuning(tmp_path: Path) -> None:
    quick = read_suite(written(tmp_path, SUITE)).shortened()
    assert quick.seeds == (3,)
    assert not list(quick.tuning_cells())
    assert quick.options(Cell("small", "dpo", 3))["problems"] == "2"


@pytest.mark.parametrize("name", sorted(file.stem for file in SHIPPED.glob("*.toml")))
def test_every_suite_that_ships_can_be_started(name: str) -> None:
    for suite in (read_suite(name), read_suite(name).shortened()):
        for method in suite.methods:
            for regime in suite.regimes:
                assert resolve(suite.options(Cell(regime, method, suite.seeds[0]))).seed == suite.seeds[0]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("seeds = [0", "Cannot read the suite"),
        ("seed = 1", "Unknown part of the suite"),
        ("seeds = []\n[methods.dpo]", "different whole numbers from 0, got \\[\\]"),
        ("seeds = [1, 1]\n[methods.dpo]", "different whole numbers"),
        ("[run]\nproblems = 3", "has no methods"),
        ("[methods]\ndpo = 3", "methods must be tables of options"),
        ("[methods.dpo]\nseed = 3", "sets seed, which the suite itself does"),
        ("[methods.dpo]\n[tuning]\nbudget = 2", "must be a list of values to try"),
        ('[methods."a b"]\n[methods.a_b]', "would share a directory"),
        ('[methods.""]\nmethod = "dpo"', "would share a directory"),
        ("[methods.dpo]\n[tuning]\nseed = [1, 2]", "tuning sets seed, which the suite itself does"),
        ("tuning = 3\n[methods.dpo]", "tuning must be a table of options"),
        ("[methods.dpo]\nbudget = 2024-01-01", "methods.dpo.budget must be text, a number"),
        ('[methods.dpo]\nfrom = "dpo"', "methods.dpo is from 'dpo', expected a method above it: none"),
        ('[methods.dpo]\n[regimes.a]\nfrom = "dpo"', "regimes.a has from, which only methods have"),
    ],
)
def test_a_suite_that_is_not_understood_is_refused(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        read_suite(written(tmp_path, text))


def test_an_unknown_suite_is_told_with_those_that_there_are() -> None:
    with pytest.raises(ConfigError, match=r"tabel.*table"):
        read_suite("tabel")


def test_an_option_that_no_run_has_is_told_before_anything_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path, "[methods.dpo]\nbugdet = 3")
    assert main(["compare", path, str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert "In test/run/dpo/0 of the suite two" in said
    assert "--bugdet" in said
    assert not (tmp_path / "out").exists()


def test_a_plan_says_what_would_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", written(tmp_path, SUITE), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "2 methods, 1 regimes" in said
    assert "8 runs on development questions" in said
    assert all(len(line) <= 100 for line in said.splitlines())


def test_a_suite_that_asks_no_test_questions_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path, "[methods.dpo]\ntest_problems = 0")
    assert main(["compare", path, str(tmp_path / "out")]) == 2
    assert "compares answers to test questions" in capsys.readouterr().err
