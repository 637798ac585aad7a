from dataclasses import replace
from pathlib import Path

import pytest
from matplotlib.image import imread

from gpo.experiment.run import Run
from gpo.report.plots import (
    MAX_STEPS,
    STEP_WIDTH,
    budget_figure,
    choose_curves,
    round_curves,
    rounds_figure,
    save,
    shorten,
    step_texts,
    tokens_figure,
    training_curves,
    values_figure,
    write_plots,
)
from gpo.report.results import summarize
from gpo.storage.files import write_rows
from gpo.types import Completion, Score, Start, StepScores, Trajectory
from toy import toy_config


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = Run(tmp_path_factory.mktemp("plots"), toy_config())
    run.all()
    return run


def test_every_plot_is_a_picture_that_is_not_blank(run: Run) -> None:
    written = write_plots(run.files, summarize(run.files))
    assert {path.name for path in written} == {f"{name}.png" for name in ("accuracy", "budget", "tokens", "values")}
    for path in written:
        image = imread(path)
        height, width, _ = image.shape
        assert 200 <= height <= 4000
        assert 800 <= width <= 2000
        assert image[..., :3].min() < 0.1


def test_the_curves_are_of_different_problems_and_the_largest_advantage_is_first(run: Run) -> None:
    curves = choose_curves(run.files)
    assert len({trajectory.start.problem_id for trajectory, _ in curves}) == len(curves) > 1
    gains = [abs(scores.advantages[scores.critical_step or 0]) for _, scores in curves]
    assert gains == sorted(gains, reverse=True)
    assert all(scores.trajectory_id == trajectory.id for trajectory, scores in curves)


def test_a_run_that_is_not_evaluated_has_no_accuracy_plot(tmp_path: Path) -> None:
    run = Run(tmp_path, toy_config(arms={"plain": "none"}))
    run.reset("plain")
    assert [path.name for path in write_plots(run.files, summarize(run.files))] == ["tokens.png"]


def long_trajectory(steps: int, text: str) -> tuple[Trajectory, StepScores]:
    nan = float("nan")
    trajectory = Trajectory(
        "t", Start("p", (1,)), Completion((7,) * steps, text, "stop"), Score(0.0, "wrong"), tuple(range(1, steps + 1))
    )
    values = (0.5, nan, *(0.25,) * (steps - 1))
    lower, upper = tuple(v - 0.1 for v in values), tuple(v + 0.1 for v in values)
    return trajectory, StepScores("t", values, (4,) * (steps + 1), lower, upper, (nan,) * steps, steps - 2, 0, 9)


def test_long_trajectories_are_cut_around_the_critical_step() -> None:
    steps = 3 * MAX_STEPS
    figure = values_figure([long_trajectory(steps, "")])
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert len(labels) == MAX_STEPS
    bold = [label.get_text() for label in figure.axes[0].get_yticklabels() if label.get_fontweight() == "bold"]
    assert bold == [f"step {steps - 1}"]


def test_steps_are_shown_as_lines_where_they_are_lines() -> None:
    trajectory, _ = long_trajectory(2, "one\n\n  two\n")
    assert step_texts(trajectory) == ["one", "  two"]
    assert step_texts(replace(trajectory, step_ends=(1, 2, 3))) == ["step 1", "step 2", "step 3"]


def test_any_text_can_be_drawn(tmp_path: Path) -> None:
    hostile = "$\\frac{1$ \t\x00 日本 " + "x" * 200
    assert len(shorten("x" * 200)) == STEP_WIDTH
    assert "\x00" not in shorten(hostile)
    figure = values_figure([long_trajectory(3, "\n".join([hostile, "$$", "_^{"]))])
    save(figure, tmp_path / "x.png")
    assert imread(tmp_path / "x.png")[..., :3].min() < 0.1


def test_training_is_drawn_by_the_first_reward_that_is_reported_and_a_cut_line_is_left_out(run: Run) -> None:
    file = run.files.arm("plain") / "training.jsonl"
    kept = file.read_bytes() if file.exists() else None
    file.write_text('{"loss": 0.5, "reward": 0.25}\n{"loss": 0.4, "reward": 0.75, "note": "x"}\n{"loss": 0.')
    try:
        found = training_curves(run.files)
    finally:
        file.write_bytes(kept) if kept is not None else file.unlink()
    assert found is not None
    assert found[0] == "reward"
    assert found[1]["plain"] == [0.25, 0.75]


def test_the_reward_of_each_round_stands_over_the_tokens_sampled_before_it(tmp_path: Path) -> None:
    run = Run(tmp_path, toy_config(arms={"plain": "none", "gpo": "monte_carlo"}))
    run.problems("train")
    rewards = (0.25, None, 0.5)
    rows = [{"accuracy": r, "tokens": {"rollout": 10, "locate": 5, "reset": k}} for k, r in enumerate(rewards)]
    write_rows(run.files.arm("gpo") / "rounds.jsonl", rows)
    write_rows(run.files.arm("plain") / "rounds.jsonl", rows[:1])
    assert round_curves(run.files) == {"gpo": [(0, 0.25), (31, 0.5)]}
    [line] = rounds_figure(round_curves(run.files)).axes[0].lines
    assert list(line.get_xdata()) == [0, 31]


def test_bars_longer_than_the_budget_stay_inside(run: Run) -> None:
    results = summarize(run.files)
    results = replace(results, arms=[replace(arm, budget=1) for arm in results.arms])
    spent = max(sum(arm.tokens[stage] for stage in ("rollout", "locate", "reset")) for arm in results.arms)
    assert tokens_figure(results).axes[0].get_xlim()[1] > spent > 1


def test_accuracy_stands_over_the_tokens_of_its_arm_and_the_base_model_over_none(run: Run) -> None:
    results = summarize(run.files)
    axes = budget_figure(results).axes[0]
    places = {c.get_label(): c.lines[0].get_xdata()[0] for c in axes.containers}
    spent = {arm.name: sum(arm.tokens.values()) for arm in results.arms}
    assert places["base"] == 0
    assert all(abs(places[name] - tokens) < 0.03 * max(spent.values()) for name, tokens in spent.items())
