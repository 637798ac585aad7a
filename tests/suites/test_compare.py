"""Suites of toy runs: every cell once, tuned on development questions, resumed, and compared."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gpo.cli import main
from gpo.engines.endpoints import Refused
from gpo.errors import ConfigError, EngineError, GPOError
from gpo.experiment.run import Run
from gpo.report.strata import shares
from gpo.statistics import Interval, crossed_mean
from gpo.storage.directory import RunDirectory
from gpo.storage.lock import locked
from gpo.storage.rounds import RoundState
from gpo.suites.cells import SuiteRuns
from gpo.suites.outcome import ArmOutcome, Outcome, RoundOutcome, flops
from gpo.suites.page import (
    difference_rows,
    learning_rows,
    markdown,
    standing_rows,
    strata_rows,
    verdict,
    write_page,
)
from gpo.suites.settings import budgets, cells_of, chosen, present
from gpo.suites.settings import settings as settings_of_arms
from gpo.suites.suite import Cell, Matched, Suite, read_suite
from gpo.suites.table import (
    QUESTION_SPREAD,
    SEED_SPREAD,
    WITHIN,
    Standing,
    contrasts,
    detectable,
    reached_by_all,
    standings,
    tokens_to_reach,
)

pytestmark = pytest.mark.usefixtures("unplotted")

TOY = """
seeds = [0, 1]

[run]
task = "toy:ToyTask"
"task.size" = 2
engine = "chain"
rollouts = 4
locate_per_problem = 2
reset_rollouts = 2
test_samples = 4
test_problems = 2
"arms.gpo" = "monte_carlo"
"arms.gpo.rollouts" = 2
budget = 6
locate_share = 0.4
reset_turns = 0
max_tokens = 100

[methods.toy]
method = "toy:ToyMethod"
[methods.weak]
method = "toy:ToyMethod"
"method.strength" = 1.0
"""


def toy_suite(tmp_path: Path, more: str = "") -> Suite:
    path = tmp_path / "toy.toml"
    path.write_text(TOY + more)
    return read_suite(str(path))


def test_a_suite_is_run_once_and_its_table_comes_from_what_is_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    toy_suite(tmp_path)
    command = ["compare", str(tmp_path / "toy.toml"), str(tmp_path / "out"), "--page", str(tmp_path / "page.md")]
    assert main(command) == 0
    kept = (tmp_path / "out/results.jsonl").read_bytes()
    assert len(kept.splitlines()) == 4
    said = capsys.readouterr().out
    assert "gpo is ahead of plain in" in said
    page = (tmp_path / "page.md").read_text()
    assert page == (tmp_path / "out/table.md").read_text()
    assert "| run | toy | gpo - plain |" in page
    for name in ("differences.png", "costs.png"):
        assert (tmp_path / "out" / name).stat().st_size > 5000
    assert main(command) == 0
    assert (tmp_path / "out/results.jsonl").read_bytes() == kept

    # Of what is finished, while other cells are missing.
    rows = (tmp_path / "out/results.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "some.jsonl").write_text(rows[0])
    other = json.loads(rows[0])
    other["cell"]["seed"], other["options"]["seed"] = 1, "1"
    (tmp_path / "more.jsonl").write_text(json.dumps(other) + "\n")
    files = f"{tmp_path / 'some.jsonl'},{tmp_path / 'more.jsonl'}"
    assert main([*command[:2], str(tmp_path / "none"), "--finished"]) == 2
    assert "No cell of" in capsys.readouterr().err
    some = [*command[:2], str(tmp_path / "some"), "--finished", "--results", files]
    assert main(some) == 0
    assert "from 2 finished cells; seeds 0, 1." in (tmp_path / "some/table.md").read_text()
    assert not (tmp_path / "some/test").exists()

    # Elsewhere, from the kept outcomes alone.
    elsewhere = [*command[:2], str(tmp_path / "other"), "--results", str(tmp_path / "out/results.jsonl")]
    assert main(elsewhere) == 0
    assert (tmp_path / "other/table.md").read_text() == page
    assert not (tmp_path / "other/test").exists()


def test_methods_of_one_seed_share_what_is_sampled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    suite = toy_suite(tmp_path)
    runs = SuiteRuns(suite, tmp_path / "out")
    runs.run([Cell("run", "toy", 0)])
    monkeypatch.setattr(Run, "rollout", lambda *_: pytest.fail("sampled again"))
    runs.run([Cell("run", "weak", 0)])
    first, second = (tmp_path / f"out/test/run/{method}/0/rollouts.jsonl" for method in ("toy", "weak"))
    assert first.read_bytes() == second.read_bytes()
    events = (tmp_path / "out/test/run/weak/0/events.jsonl").read_text().splitlines()
    assert not any(json.loads(event)["tokens"] for event in events if json.loads(event)["stage"] == "rollout")


def test_other_searches_take_the_first_rollouts_and_what_was_answered_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = """
        [methods.bisect]
        from = "toy"
        arms = "plain,gpo"
        "arms.gpo" = "bisect"
        [methods.apart]
        from = "toy"
        rollouts = 5
    """
    suite = toy_suite(tmp_path, more)
    runs = SuiteRuns(suite, tmp_path / "out")
    runs.run([Cell("run", "toy", 0)])
    with monkeypatch.context() as patched:
        patched.setattr(Run, "rollout", lambda *_: pytest.fail("sampled again"))
        runs.run([Cell("run", "bisect", 0)])
    runs.run([Cell("run", "apart", 0)])
    files = {name: RunDirectory(tmp_path / f"out/test/run/{name}/0") for name in ("toy", "bisect", "apart")}
    assert files["bisect"].resets("plain").read() == files["toy"].resets("plain").read()
    assert files["bisect"].scores("gpo").read() != files["toy"].scores("gpo").read()
    events = [json.loads(line) for line in (files["bisect"].path / "events.jsonl").read_text().splitlines()]
    asked = {(event["stage"], event["arm"]) for event in events if event["tokens"]}
    assert asked == {("locate", "gpo"), ("reset", "gpo"), ("evaluate", "plain"), ("evaluate", "gpo")}
    assert len(files["apart"].rollouts.read()[0].trajectories) == 5


UNPLOTTED = """
import sys
from gpo.cli import main
from gpo.report import plots
plots.write_plots = lambda *_: None
sys.exit(main(sys.argv[1:]))
"""


def test_two_processes_share_a_suite_by_its_directory(tmp_path: Path) -> None:
    """The other one leaves a cell that is held here, and one that samples the same, until all else is done."""
    toy_suite(tmp_path)
    alone, out = tmp_path / "alone", tmp_path / "out"
    assert main(["compare", str(tmp_path / "toy.toml"), str(alone)]) == 0
    path = ":".join([str(Path(__file__).parents[1]), *filter(None, sys.path)])
    words = ["compare", str(tmp_path / "toy.toml"), str(out)]
    with locked(out / "test/run/weak/0"):
        environment = {**os.environ, "PYTHONPATH": path, "GPO_TRUST": "1", "COLUMNS": "200"}
        command = [sys.executable, "-c", UNPLOTTED, *words]
        other = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        assert other.stdout is not None
        said = []
        for line in other.stdout:
            said.append(line.strip())
            if line.startswith("waiting"):
                break
        assert [line.partition(" (")[0] for line in said if line.startswith("test/")] == [
            "test/run/toy/1",
            "test/run/weak/1",
        ]
        assert said[-1] == "waiting for other processes: test/run/toy/0, test/run/weak/0"
    assert main(words) == 0
    other.communicate(timeout=120)
    assert other.returncode == 0
    rows = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    found = [(row["cell"]["method"], row["cell"]["seed"]) for row in rows]
    assert sorted(found) == [("toy", 0), ("toy", 1), ("weak", 0), ("weak", 1)]
    assert accuracies(out) == accuracies(alone)


def test_cells_that_sample_alike_run_side_by_side_once_one_is_finished(tmp_path: Path) -> None:
    suite = toy_suite(tmp_path, '[methods.strong]\nmethod = "toy:ToyMethod"\n"method.strength" = 2.0\n')
    waits: list[list[str]] = []

    def stop(cells: Sequence[Cell]) -> None:
        waits.append([cell.method for cell in cells])
        raise KeyboardInterrupt

    runs = SuiteRuns(suite, tmp_path / "out", on_wait=stop)
    cells = [Cell("run", method, 0) for method in ("toy", "weak", "strong")]
    with locked(tmp_path / "out" / cells[0].name), pytest.raises(KeyboardInterrupt):
        runs.run(cells)  # the others would sample what is being sampled
    assert waits == [["toy", "weak", "strong"]]
    runs.run(cells[:1])
    with locked(tmp_path / "out" / cells[1].name), pytest.raises(KeyboardInterrupt):
        runs.run(cells)
    assert waits[1:] == [["weak"]]
    first, second = (tmp_path / f"out/test/run/{method}/0/rollouts.jsonl" for method in ("toy", "strong"))
    assert first.read_bytes() == second.read_bytes()


def test_samples_are_taken_from_the_run_that_has_most_of_them(tmp_path: Path) -> None:
    suite = toy_suite(tmp_path, '[methods.strong]\nmethod = "toy:ToyMethod"\n"method.strength" = 2.0\n')
    runs = SuiteRuns(suite, tmp_path / "out", on_wait=lambda cells: pytest.fail("waits for nobody"))
    part = Cell("run", "toy", 0, arms=("plain",))
    runs.run([part])
    with locked(tmp_path / "out" / Cell("run", "weak", 0).name):
        assert not runs._is_free(Cell("run", "strong", 0), [Cell("run", "weak", 0)])  # which searches what it needs
    runs.run([Cell("run", "weak", 0), Cell("run", "strong", 0)])
    events = (tmp_path / "out/test/run/strong/0/events.jsonl").read_text().splitlines()
    assert not any(json.loads(event)["tokens"] for event in events if json.loads(event)["stage"] in ("locate", "reset"))


def accuracies(folder: Path) -> str:
    """What the page says but for seconds."""
    return (folder / "table.md").read_text().partition("\n## ")[0]


def test_an_arm_takes_the_setting_that_did_best_on_development_questions(tmp_path: Path) -> None:
    suite = toy_suite(tmp_path, '[tuning]\n"method.strength" = [0.5, 3.0]\n')
    runs = SuiteRuns(suite, tmp_path / "out")
    assert not chosen(suite, runs.outcomes())
    runs.run(list(suite.tuning_cells()))
    best = chosen(suite, runs.outcomes())
    for arm in ("plain", "random", "gpo"):
        tried = {
            row.cell.tuned: np.mean([x for x in row.arms[arm].right if x is not None])
            for row in runs.outcomes()
            if row.cell.method == "toy"
        }
        assert tried[best["run", "toy", arm]] == max(tried.values())
    assert all(row.options["test_split"] == "dev" for row in runs.outcomes())
    cells = [cell for cell in cells_of(suite, runs.outcomes(), 0) if cell.method == "toy"]
    assert sorted(arm for cell in cells for arm in cell.arms) == ["gpo", "plain", "random"]
    assert len({cell.tuned for cell in cells}) == len(cells)


def test_arms_with_equal_flops_have_budgets_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "toy.toml"
    path.write_text('matched = "flops"\n' + TOY + '[tuning]\n"method.strength" = [0.5, 3.0]\n')
    suite = read_suite(str(path))
    arms = {"arms": "plain,random", "arms.random": "random_unsearched", "arms.random.seed": "0", "method.tells": "true"}
    run = {name: value for name, value in suite.run.items() if not name.startswith("arms")}
    suite = replace(suite, run=run, methods={"toy": {**suite.methods["toy"], **arms}})
    runs = SuiteRuns(suite, tmp_path / "out")
    runs.run(list(suite.tuning_cells()))
    best = chosen(suite, runs.outcomes())
    matching = cells_of(suite, runs.outcomes(), 0, "matching")
    assert {("run", "toy", arm): cell.tuned for cell in matching for arm in cell.arms} == best
    runs.run(matching)
    tried = [row for row in runs.outcomes() if row.cell.phase == "matching"]
    at_first = {arm.name: flops(row, arm) for row in tried for arm in row.trained}
    found = budgets(suite, runs.outcomes())
    dearest = max(at_first, key=lambda name: at_first[name] or 0)
    assert float(found["run", "toy", dearest]) == 6
    for name, cost in at_first.items():
        assert float(found["run", "toy", name]) * cost == pytest.approx(6 * at_first[dearest], rel=0.01)
    cells = cells_of(suite, runs.outcomes(), 1)
    assert {("run", "toy", arm): dict(cell.tuned)["budget"] for cell in cells for arm in cell.arms} == found
    runs.run(cells)
    rows = [row for row in runs.outcomes() if row.cell.phase == "test"]
    costs = [flops(row, arm) for row in rows for arm in row.trained]
    assert len(costs) == 2
    assert max(costs) < 1.25 * min(costs)  # another seed
    assert max(at_first.values()) > 1.5 * min(at_first.values())
    assert {each.seeds for each in contrasts(suite, rows)} == {1}
    assert "budgets that take equally many FLOPs" in markdown(suite, rows)
    assert all(row.questions for row in rows)


def test_what_is_not_known_cannot_be_matched(tmp_path: Path) -> None:
    suite = toy_suite(tmp_path)
    suite = replace(suite, matched="flops", methods={"toy": suite.methods["toy"]})
    runs = SuiteRuns(suite, tmp_path / "out")
    runs.run(cells_of(suite, runs.outcomes(), 0, "matching"))
    with pytest.raises(ConfigError, match=r"is to match flops, and what plain takes in .* is not known"):
        cells_of(suite, runs.outcomes(), 0)


def test_a_failed_cell_is_named_and_the_others_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    suite = toy_suite(tmp_path)
    runs = SuiteRuns(suite, tmp_path / "out")
    runs.run([Cell("run", "toy", 0)])

    for error, kind in ((ConfigError("No."), ConfigError), (Refused("No.", 401, ""), EngineError)):

        def broken(*_: object, error: GPOError = error) -> None:
            raise error

        monkeypatch.setattr(Run, "train", broken)
        with pytest.raises(kind, match=r"In test/run/weak/0 of the suite toy: No\."):
            runs.run([Cell("run", "weak", 0)])
    assert [row.cell.method for row in SuiteRuns(suite, tmp_path / "out").outcomes()] == ["toy"]


def outcome(seed: int, gpo: list[float | None], plain: list[float | None], steps: tuple[float, ...] = ()) -> Outcome:
    rights = {"plain": plain, "gpo": gpo}
    arms = tuple(ArmOutcome(name, tuple(right), 100, 50, {"train": 1.0}) for name, right in rights.items())
    base = tuple(0.5 for _ in gpo)
    options = {"arms": "plain,gpo"}
    return Outcome("s", Cell("r", "m", seed), options, tuple(map(str, range(len(gpo)))), 4, base, arms, 10, "0", steps)


def test_arms_that_are_named_one_by_one_have_the_order_of_the_run() -> None:
    suite = Suite("s", "S", (0,), {"m": {}}, {"r": {}}, {"arms.late": "none", "arms.early": "monte_carlo"})
    plain, gpo = outcome(0, [1, 1], [0, 1]).trained
    arms = (replace(gpo, name="early"), replace(plain, name="late"))
    row = replace(outcome(0, [1, 1], [0, 1]), options=suite.options(Cell("r", "m", 0)), trained=arms)
    found = [(each.arm, each.other) for each in contrasts(suite, [row])]
    assert found == [("early", "late"), ("early", "base"), ("late", "base")]


SUITE = Suite("s", "S", (0, 1), {"m": {}}, {"r": {}}, {"arms": "plain,gpo"})


def test_a_contrast_pairs_questions_and_averages_seeds() -> None:
    rows = [outcome(0, [1, 1, 0, None], [0, 1, 0, 1]), outcome(1, [1, 0, 0, 1], [0, 0, 0, 1])]
    found, over_base, _ = contrasts(SUITE, rows)
    assert (found.arm, found.other, found.seeds) == ("gpo", "plain", 2)
    assert (over_base.arm, over_base.other) == ("gpo", "base")
    assert over_base.difference.estimate == pytest.approx(4 / 7 - 0.5)
    assert found.difference.estimate == pytest.approx(2 / 7)
    assert found.strata["sometimes"].n == 4
    assert found.strata["never"].n == 0
    page = markdown(SUITE, rows)
    assert "gpo is ahead of plain in 1 of 1 rows" in page
    assert "steps the model took" not in page
    rows = [outcome(0, [1, 1, 0, None], [0, 1, 0, 1], (4, 4, 20, 40)), outcome(1, [1, 0, 0, 1], [0, 0, 0, 1])]
    found = contrasts(SUITE, rows)[0]
    assert found.horizons["up to 8 steps"].estimate == 0.5
    assert [interval.n for interval in found.horizons.values()] == [2, 0, 1, 1]
    assert "steps the model took" in markdown(SUITE, rows)
    assert flops(rows[0], rows[0].arms["gpo"]) == 10 * (2 * 100 + 6 * 50)


def test_a_row_is_compared_with_the_one_that_it_is_from() -> None:
    suite = replace(SUITE, methods={"m": {}, "less": {"arms": "gpo"}}, origins={"less": "m"})
    rows = [outcome(0, [1, 1, 0, 0], [0, 1, 0, 1]), outcome(1, [1, 0, 0, 1], [0, 0, 0, 1])]
    other = outcome(1, [1, 1, 1, 1], [0, 0, 0, 0])
    other = replace(other, cell=Cell("r", "less", 1), options={"arms": "gpo"}, trained=other.trained[1:])
    found = {each.name: each for each in contrasts(suite, [*rows, other]) if each.method == "less"}
    assert list(found) == ["gpo - base", "gpo - plain of m", "gpo - gpo of m"]
    assert found["gpo - gpo of m"].difference.estimate == 0.5
    assert found["gpo - plain of m"].difference.estimate == 0.75
    assert {each.seeds for each in found.values()} == {1}
    assert "gpo is ahead of gpo of m in 1 of 1 rows" in markdown(suite, [*rows, other])
    assert [each.name for each in contrasts(suite, [other])] == ["gpo - base"]


def test_how_soon_arms_learn_is_of_the_rounds_after_the_first() -> None:
    def learned(row: Outcome, **curves: list[list[float | None]]) -> Outcome:
        rounds = {
            name: tuple(RoundOutcome(100 * number, tuple(right)) for number, right in enumerate(curve))
            for name, curve in curves.items()
        }
        return replace(row, trained=tuple(replace(arm, rounds=rounds[arm.name]) for arm in row.trained))

    rows = [
        learned(outcome(0, [1, 1], [1, 1]), plain=[[0, 0], [0, 0.5], [0.5, None]], gpo=[[0, 0], [0.5, 0.5], [1, 1]]),
        learned(outcome(1, [1, 1], [1, 1]), plain=[[0, 0], [0, 0.5], [0.5, 0.5]], gpo=[[0, 0], [0, 0.5], [1, 1]]),
    ]
    found = contrasts(SUITE, rows)[0]
    assert found.learning.estimate == pytest.approx((0.5 + 0 + 0.5 + 0 + 0 + 0.5 + 0.5) / 7)
    again = [replace(row, options={**row.options, "problems": "2"}) for row in rows]  # the same two in every round
    learning = contrasts(SUITE, again)[0].learning
    assert (learning.n, learning.estimate) == (2, pytest.approx((0.5 + 0.25 + 0.25 + 0.25) / 4))
    of_arms = {each.arm: each for each in standings(SUITE, rows)}
    assert of_arms["plain"].curve == ((0.0, 0.0), (100.0, 0.25), (200.0, 0.5))
    assert of_arms["gpo"].curve == ((0.0, 0.0), (100.0, 0.375), (200.0, 1.0))
    assert reached_by_all(list(of_arms.values())) == 0.5
    many = tuple(RoundOutcome(100 * i, (float(i % 2),)) for i in range(50))
    long = replace(rows[0], trained=tuple(replace(arm, rounds=many) for arm in rows[0].trained))
    curve = standings(SUITE, [long])[1].curve  # of many rounds the means of three
    assert len(curve) == 17
    assert curve[:2] == ((100.0, pytest.approx(1 / 3)), (400.0, pytest.approx(2 / 3)))
    assert tokens_to_reach(of_arms["plain"].curve, 0.5) == 200
    assert tokens_to_reach(of_arms["gpo"].curve, 0.5) == pytest.approx(120)
    assert np.isnan(tokens_to_reach(of_arms["plain"].curve, 0.6))
    assert tokens_to_reach(of_arms["plain"].curve, 0.0) == 0
    other = replace(rows[0], cell=Cell("r", "less", 0), trained=learned(rows[0], plain=[[1]], gpo=[[1], [1]]).trained)
    suite = replace(SUITE, methods={"m": {}, "less": {}}, origins={"less": "m"})
    assert [each.learning.n for each in contrasts(suite, [rows[0], other]) if each.method == "less"] == [0, 0, 0, 0, 0]
    page = markdown(SUITE, rows)
    assert "| r, m | gpo - plain | +28.6" in page
    assert "| 50.0 | 120 | 200 |" in page
    assert "How soon" not in markdown(SUITE, [outcome(0, [1, 1], [1, 1])])


def test_rounds_are_kept_with_an_outcome_and_drawn(tmp_path: Path) -> None:
    suite = toy_suite(tmp_path, "rounds = 3\n")
    runs = SuiteRuns(suite, tmp_path / "out")
    runs.run([Cell("run", "weak", 0)])
    [row] = runs.outcomes()
    files = RunDirectory(tmp_path / "out/test/run/weak/0")
    for name, arm in row.arms.items():
        assert arm.rounds[0].tokens == 0
        assert arm.rounds[2].tokens == sum(
            sum(RoundState.of(files, name, number).tokens().values()) for number in (1, 2)
        )
        assert arm.rounds[1].right == shares(files.fresh(name, 2).read())
    assert row.arms["plain"].rounds[0] == row.arms["gpo"].rounds[0]
    write_page(suite, runs.outcomes(), tmp_path)
    assert (tmp_path / "curves.png").stat().st_size > 5000


def test_strata_are_told_by_the_answers_of_other_seeds() -> None:
    """Planted: an arm that is base itself would look worse where base was lucky."""
    lucky = [replace(outcome(0, [0, 1], [1, 0]), base=(1.0, 0.0)), replace(outcome(1, [1, 0], [0, 1]), base=(0.0, 1.0))]
    found = contrasts(SUITE, lucky)[0].strata
    assert found["always"].estimate == 1.0  # where the other seed was always right
    assert found["never"].estimate == -1.0
    [alone, *_] = contrasts(SUITE, lucky[:1])
    assert alone.strata["always"].estimate == -1.0


def test_seeds_that_ask_other_questions_are_not_pooled() -> None:
    rows = [outcome(0, [1, 1], [0, 1]), replace(outcome(1, [0, 0], [1, 1]), questions=("x", "y"))]
    found = contrasts(SUITE, [*rows, outcome(2, [1, 1, 1], [0, 0, 0])])[0]
    assert (found.seeds, found.difference.estimate) == (1, 0.5)


def test_what_the_suite_would_no_longer_run_does_not_count() -> None:
    """An arm's earlier choice of settings, and seeds that were taken out of the file."""
    suite = replace(SUITE, tuning={"budget": ("1", "2")}, tuning_seeds=(0,))

    def of(phase, budget: str, gpo: list[float | None], seed: int = 0) -> Outcome:
        row = outcome(seed, gpo, [0, 0])
        return replace(
            row, cell=Cell("r", "m", seed, phase, (("budget", budget),), () if phase == "tuning" else ("gpo",))
        )

    tried = [of("tuning", "1", [1, 0]), of("tuning", "2", [1, 1])]
    rows = [*tried, of("test", "1", [0, 0]), of("test", "2", [1, 1])]
    kept = present(suite, [replace(row, trained=row.trained[1:]) for row in rows])
    assert [row.cell.tuned for row in kept] == [(("budget", "2"),)]
    assert len(present(SUITE, [outcome(seed, [1], [0]) for seed in (0, 1, 5)])) == 2


def test_more_seeds_and_questions_tell_smaller_differences() -> None:
    assert detectable(360, 4, 5) < detectable(360, 4, 3) < detectable(90, 4, 3)
    assert detectable(90, 4, 3) < detectable(90, 4, 3, groups=True)


@pytest.mark.parametrize("seeds", [1, 3, 5])
def test_what_can_be_told_is_told_four_times_of_five(seeds: int) -> None:
    """Against the interval itself, on tables with the assumed spreads."""
    rng = np.random.default_rng(seeds)
    planted, told, trials = detectable(90, 4, seeds), 0, 250
    for _ in range(trials):
        own = rng.normal(0, SEED_SPREAD["pairs"], (seeds, 1)) + rng.normal(0, QUESTION_SPREAD, (1, 90))
        table = planted + own + rng.normal(0, np.sqrt(2 * WITHIN / 4), (seeds, 90))
        told += crossed_mean(table).lower > 0
    assert 0.7 <= told / trials <= 0.9


def test_rows_that_ask_other_questions_are_not_compared() -> None:
    suite = replace(SUITE, methods={"m": {}, "less": {}}, origins={"less": "m"})
    row = outcome(0, [1, 1], [0, 1])
    for questions, more in ((row.questions, 2), (("x", "y"), 0)):
        other = replace(row, cell=Cell("r", "less", 0), questions=questions)
        names = [each.name for each in contrasts(suite, [row, other]) if each.method == "less"]
        assert sum(name.endswith(" of m") for name in names) == more


def test_a_standing_is_the_mean_over_seeds_and_of_seconds_the_median() -> None:
    suite, rows = replace(SUITE, seeds=(0, 1, 2)), []
    for seed, (seconds, right) in enumerate([(1.0, [1, 1]), (2.0, [1, 0]), (900.0, [0, 0])]):
        row = outcome(seed, right, [0, 1])
        plain, gpo = (replace(arm, sampled_tokens=50 + 50 * seed) for arm in row.trained)
        gpo = replace(gpo, seconds={"train": seconds, "evaluate": 50.0})
        plain = replace(plain, trained_tokens=None if seed else 50)
        rows.append(replace(row, base=(seed / 2, seed / 2), trained=(plain, gpo)))
    base, plain, gpo = standings(suite, rows)
    assert (base.accuracy, gpo.accuracy, gpo.sampled_tokens, gpo.seconds) == (0.5, 0.5, 100, 2.0)
    assert (gpo.trained_tokens, gpo.flops) == (50, 10 * (2 * 100 + 6 * 50))
    assert (plain.trained_tokens, plain.flops) == (None, None)  # one seed does not tell


def test_learning_is_compared_on_the_same_training_questions() -> None:
    suite = replace(SUITE, methods={"m": {}, "less": {}}, origins={"less": "m"})
    row = outcome(0, [1, 1], [0, 1])
    rounds = tuple(RoundOutcome(100 * number, (0.0, 1.0)) for number in range(3))
    row = replace(row, trained=tuple(replace(arm, rounds=rounds) for arm in row.trained))
    for problems, n in (("100", 4), ("50", 0)):
        other = replace(row, cell=Cell("r", "less", 0), options={**row.options, "problems": problems})
        mine = replace(row, options={**row.options, "problems": "100"})
        found = {each.name: each.learning.n for each in contrasts(suite, [mine, other]) if each.method == "less"}
        assert (found["gpo - gpo of m"], found["gpo - plain"]) == (n, 4)


def test_an_accuracy_is_reached_where_a_curve_is_first_there() -> None:
    curve = ((10.0, 0.4), (20.0, 0.6), (30.0, 0.5))
    assert [tokens_to_reach(curve, accuracy) for accuracy in (0.3, 0.5, 0.6)] == [10, 15, 20]
    base, plain, _ = standings(SUITE, [outcome(0, [1, 1], [0, 1])])
    assert reached_by_all([base, replace(plain, curve=curve)]) == 0.6


def test_rows_are_won_and_lost_where_the_whole_interval_is_on_one_side() -> None:
    contrast = contrasts(SUITE, [outcome(0, [1, 1], [0, 1])])[0]
    intervals = [(0.1, 0.05, 0.15), (0.1, -0.1, 0.3), (0.0, 0.0, 0.0), (-0.1, -0.3, 0.1), (-0.1, -0.2, -0.05)]
    rows = [replace(contrast, difference=Interval(*each, 9)) for each in intervals]
    assert verdict([*rows, replace(rows[0], other="base")]) == [
        "gpo is ahead of plain in 2 of 5 rows, in 1 with an interval clear of 0; behind with one clear of 0 in 1.",
        "gpo is ahead of base in 1 of 1 rows, in 1 with an interval clear of 0; behind with one clear of 0 in 0.",
    ]


def test_the_tables_say_what_was_found() -> None:
    contrast, over_base, *_ = contrasts(SUITE, [outcome(0, [1, 1, 0], [0, 1, 0])])
    contrast = replace(contrast, difference=Interval(0.1, 0.05, 0.15, 9), learning=Interval(0.2, 0.1, 0.3, 4))
    _, [row] = difference_rows([contrast])
    assert (row[:3], row[3].split()[0], row[4:]) == (["r", "m", "gpo - plain"], "+10.0", ["1", "9"])
    assert [row[1] for row in strata_rows([contrast, over_base])[1]] == ["gpo - plain"]
    fast = Standing("r", "less", "gpo", 2 / 3, 100.0, None, None, 1.0, (), ((0.0, 0.0), (100.0, 1.0)))
    slow = replace(fast, method="m", curve=((0.0, 0.0), (100.0, 0.5)))
    assert standing_rows([fast])[1][0][3:7] == ["66.7", "100", "-", "-"]
    # Of a row that is from another one the second arm, and what all reach, are of that one.
    [row] = learning_rows([replace(contrast, method="less", other="gpo", origin="m")], [fast, slow])[1]
    assert (row[2].split()[0], row[3:]) == ("+20.0", ["50.0", "50", "100"])


def test_an_arm_has_the_first_of_its_best_settings_once_all_were_tried() -> None:
    suite = replace(SUITE, tuning={"budget": ("1", "2", "3")}, tuning_seeds=(0, 1))

    def tried(budget: str, seed: int, gpo: list[float | None], plain: list[float | None]) -> Outcome:
        return replace(outcome(seed, gpo, plain), cell=Cell("r", "m", seed, "tuning", (("budget", budget),)))

    rows = [
        *(tried("1", seed, [None, None], [1, seed]) for seed in (0, 1)),
        *(tried("2", seed, [1 - seed, 0], [1, 0]) for seed in (0, 1)),  # the means over both seeds are compared
        *(tried("3", seed, [0, seed], [0, 1]) for seed in (0, 1)),
    ]
    assert chosen(suite, rows) == {("r", "m", "plain"): (("budget", "1"),), ("r", "m", "gpo"): (("budget", "2"),)}
    assert chosen(suite, rows[:-1]) == {}


@pytest.mark.parametrize(("matched", "budget"), [("flops", "10.00"), ("seconds", "8.00")])
def test_the_cheaper_arm_gets_the_larger_budget(matched: Matched, budget: str) -> None:
    options = {"arms": "plain,gpo", "budget": "4"}
    row = replace(outcome(0, [1], [0]), cell=Cell("r", "m", 0, "matching"), options=options)
    plain, gpo = row.trained  # of 10 parameters: 5,000 FLOPs each
    plain = replace(plain, trained_tokens=0, seconds={"train": 5.0, "evaluate": 99.0})  # 2,000
    row = replace(row, trained=(plain, replace(gpo, seconds={"rollout": 2.0, "train": 8.0})))
    other = replace(row, cell=Cell("r", "m", 0), trained=(gpo, replace(gpo, name="plain")))  # a test tells nothing
    suite = replace(SUITE, matched=matched, tuning={"rollouts": ("4",)}, tuning_seeds=(0,))
    found = {("r", "m", "plain"): budget, ("r", "m", "gpo"): "4.00"}
    assert budgets(suite, [row, other]) == found
    assert settings_of_arms(suite, [row]) == {}  # not tuned yet
    tuned = replace(row, cell=Cell("r", "m", 0, "tuning", (("rollouts", "4"),)))
    assert settings_of_arms(suite, [row, tuned]) == {
        arm: (("rollouts", "4"), ("budget", each)) for arm, each in found.items()
    }
