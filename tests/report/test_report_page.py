"""The file that `gpo report` writes."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpo.cli import main
from gpo.config.components import Spec
from gpo.errors import ConfigError, DataError
from gpo.experiment.run import Run
from gpo.report import command
from gpo.report.command import write_report
from gpo.report.page import percent, points
from gpo.report.reading import Searched, read_run
from gpo.report.show import STEPS, level_lengths, show, signed, tone
from gpo.statistics import Interval
from gpo.storage.directory import RunDirectory
from gpo.types import Verdict
from toy import toy_config
from written_run import NAN, Written, write_run

STYLE = Path(command.__file__).parent / "pages" / "report.css"


def one(path: Path, row: Written) -> Searched:
    [item] = read_run(RunDirectory(write_run(path, [row]))).searched
    return item


def test_a_step_has_a_sign_a_tone_and_its_part_of_the_curve(tmp_path: Path) -> None:
    row = Written("q", ["a\n", "b", "c", "d"], [0.5, 0.8, NAN, 0.2, 0.0], critical=0)
    a, b, c, d = show(one(tmp_path, row)).steps
    assert (a.advantage, a.tone, a.critical, a.told) == ("▲\u00a0+0.30", "p2", True, True)
    assert (a.line, a.band) == ("M50 0L80 100", "M40 0L60 0L90 100L70 100Z")
    assert a.value == "after it 0.80 [0.70, 0.90]"
    assert (b.advantage, c.advantage) == ("▼\u00a0−0.60 over steps 2 to 3",) * 2
    assert (b.line, c.line, b.told) == ("M80 0L50 100", "M50 0L20 100", False)
    assert (b.value, d.value) == ("not estimated", "after it 0.00, the reward")
    assert (d.advantage, d.tone) == ("▼\u00a0−0.20", "m1")


@pytest.mark.parametrize(
    ("advantage", "sign", "color"),
    [(0.04, "·", ""), (0.05, "▲", "p1"), (-0.25, "▼", "m2"), (-1.0, "▼", "m3"), (NAN, "?", "")],
)
def test_direction_and_size_of_an_advantage(advantage: float, sign: str, color: str) -> None:
    assert signed(advantage).startswith(sign)
    assert tone(advantage) == color


def test_continuations_are_different_ones_both_right_and_wrong(tmp_path: Path) -> None:
    search = {1: [("w1", "wrong"), ("w1", "wrong"), ("w2", "ungradable"), ("w3", "wrong"), ("r1", "right")]}
    row = Written("q", ["a", "b"], [0.5, 0.5, 0.0], critical=1, search=search, fresh={1: [("r2", "right")]})
    [before] = show(one(tmp_path, row)).prefixes
    assert [c.text for c in before.continuations] == ["r2", "r1", "w1", "w2"]
    assert [c.sign for c in before.continuations] == ["✓", "✓", "✗", "?"]
    assert (before.search.estimate, before.fresh.n) == (0.2, 1)


def test_a_long_trajectory_is_shown_around_its_critical_step(tmp_path: Path) -> None:
    count = 3 * STEPS
    row = Written("q", [f"s{k}" for k in range(count)], [0.5] * count + [0.0], critical=2 * STEPS)
    shown = show(one(tmp_path, row))
    assert [step.number for step in shown.steps if step.critical] == [2 * STEPS + 1]
    assert (shown.before, len(shown.steps), shown.after) == (STEPS + STEPS // 2, STEPS, STEPS // 2)


@given(st.lists(st.integers(0, 500), min_size=1, max_size=20), st.integers(1, 3000))
def test_texts_are_levelled_to_their_total(lengths: list[int], total: int) -> None:
    limit = level_lengths(lengths, total)
    assert sum(min(length, limit) for length in lengths) <= max(total, 0) or sum(lengths) <= total
    if sum(lengths) > total:
        assert sum(min(length, limit + 1) for length in lengths) > total


def test_numbers_are_short() -> None:
    interval = Interval(-0.125, -0.25, 0.5, 4)
    assert points(interval) == "−12.5 [−25.0, +50.0]"
    assert points(Interval(-0.0001, -0.02, -0.0004, 4)) == "+0.0 [−2.0, +0.0]"
    assert signed(-0.004) == "·\u00a0+0.00"
    assert percent(Interval(0.5, 0.25, 1.0, 4)) == "50\u00a0% [25, 100]"
    assert (percent(0.41), percent(NAN), percent(Interval(NAN, NAN, NAN, 0)), points(Interval(NAN, NAN, NAN, 0))) == (
        *("41\u00a0%", "–"),
        *("–", "–"),
    )


def test_the_page_has_what_ran_and_the_plots_are_beside_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [Written("q", ["a", "b"], [0.5, 0.75, 0.0], critical=0, others=["right"], task=task) for task in "xyxy"]
    run = write_run(tmp_path / "my run", rows, evaluated=True)
    before = write_run(tmp_path / "before", rows)
    out = tmp_path / "out" / "page.html"
    assert main(["report", str(run), "--compare", str(before), "--out", str(out)]) == 0
    assert f"{out} (" in capsys.readouterr().out
    page = out.read_text()
    assert "<title>my run – GPO report</title>" in page
    assert "4 test questions" in page
    assert page.count('<details class="trajectory"') == 4
    assert "Two runs side by side" in page
    assert page.count("<svg aria-hidden") == 3  # accuracy, budget, tokens
    assert not re.search(r'(src|href)="(?!#)', page)
    assert {path.name for path in (out.parent / "plots").iterdir()} == {
        *("accuracy.png", "budget.png"),
        *("tokens.png", "values.png"),
    }


def test_a_run_is_shown_however_far_it_is(tmp_path: Path) -> None:
    page = write_report(write_run(tmp_path, [Written("q", ["a", "b"])])).read_text()
    assert "No model has been evaluated yet" in page
    assert "No arm has searched yet" in page
    assert "There is nothing to diagnose before a search" in page


def test_where_nothing_is_critical_there_is_no_table_of_where(tmp_path: Path) -> None:
    page = write_report(write_run(tmp_path, [Written("q", ["a", "b"], [0.5, NAN, 0.5], None, "failed")])).read_text()
    assert "<p>1 trajectory was searched; 0 of them have more than one step and a critical one.</p>" in page
    assert "Where critical steps fall" not in page


def test_every_round_is_shown_and_later_ones_beside_the_first(tmp_path: Path) -> None:
    task = Spec("task", "toy:ToyTask", {"size": 4})
    run = Run(tmp_path / "run", toy_config(task=task, rounds=2, arms={"plain": "none", "gpo": "monte_carlo"}))
    run.train("gpo")
    files = run.files
    reading = read_run(files)
    first = read_run(files, number=1)
    assert (reading.number, first.number) == (2, 1)
    searched = {score.trajectory_id for score in files.scores("gpo", 2).read()}
    assert {item.trajectory.id for item in reading.searched} == searched
    assert searched.isdisjoint(item.trajectory.id for item in first.searched)
    with pytest.raises(ConfigError, match="has no search in round 3"):
        read_run(files, number=3)
    page = write_report(str(files.path), str(tmp_path / "page.html")).read_text()
    assert searches_of(page) == ["gpo-2", "gpo-1"]
    assert page.count("Two rounds side by side") == 1
    assert 'Before: <code dir="auto">run (gpo, round 1)</code>; after: <code dir="auto">run (gpo, round 2)' in page
    assert "Plot: Mean reward of the first rollouts of each round" in page
    assert searches_of(only := write_report(files.path, number=1).read_text()) == ["gpo-1"]
    assert "Two rounds side by side" not in only
    assert searches_of(only := write_report(files.path, number=2).read_text()) == ["gpo-2"]
    assert "Two rounds side by side" in only


def searches_of(page: str) -> list[str]:
    return re.findall(r'<article id="trajectories-(.*?)"', page)


def test_every_arm_that_searched_is_shown_once_in_links_that_differ(tmp_path: Path) -> None:
    rows = [Written(f"q{k}", ["a", "b"], [0.5, 0.25, 0.0], critical=0) for k in range(3)]
    run = write_run(tmp_path / "r", rows, searches=[("thorough", 1), ("gpo", 1), ("gpo", 2), ("gpo", 10)])
    page = write_report(run).read_text()
    order = ["gpo-10", "gpo-2", "gpo-1", "thorough-1"]
    assert searches_of(page) == order
    assert re.findall(r'<option value="(.*?-\d+)">(.*?)<', page) == list(
        zip(order, ["gpo, round 10", "gpo, round 2", "gpo, round 1", "thorough"], strict=True)
    )
    anchors = re.findall(r'<details class="trajectory" id="(.*?)"', page)
    assert len(set(anchors)) == len(anchors) == 12
    assert anchors == re.findall(r'id="(t-.*?)"', write_report(run).read_text())
    assert searches_of(write_report(run, arm="thorough").read_text()) == ["thorough-1"]
    with pytest.raises(ConfigError, match="no arm 'x'"):
        write_report(run, arm="x")


def test_searches_share_the_trajectories_of_a_page(tmp_path: Path) -> None:
    rows = [Written(f"q{k}", ["a", "b"], [0.5, 0.25, 0.0], critical=0) for k in range(10)]
    run = write_run(tmp_path / "r", rows, searches=[("a", 1), ("b", 1), ("gpo", 1)])
    assert write_report(run, most=19).read_text().count('<details class="trajectory"') == 15  # 19 - 2 * 2
    assert write_report(run, most=1).read_text().count('<details class="trajectory"') == 3


def test_only_the_largest_advantages_are_shown_where_there_are_too_many(tmp_path: Path) -> None:
    rows = [Written(f"q{k}", ["a", "b"], [0.0, k / 10, 0.0], critical=0) for k in range(10)]
    page = write_report(write_run(tmp_path, rows), most=3).read_text()
    assert re.findall(r'data-gain="(.*?)"', page) == ["0.9", "0.8", "0.7"]
    assert "<p>3 of 10 trajectories" in page


def test_bad_arguments_are_said_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path)]) == 2
    assert "is no run directory" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="--trajectories is 0"):
        command.main([str(tmp_path), "--trajectories", "0"])


def hostile() -> Written:
    """The largest that a model can write, in every place that is shown."""
    line = "<&\"'\u202e" * 4000
    texts: list[tuple[str, Verdict]] = [(f"{n}{line}", "right" if n % 2 else "wrong") for n in range(8)]
    return Written(
        "<" * 1_000_000,
        [line[k:] for k in range(3 * STEPS)],
        [0.123 * (k % 8) for k in range(3 * STEPS + 1)],
        critical=60,
        search={60: texts, 61: texts},
        fresh={60: texts},
        others=["right"],
    )


def test_200_trajectories_take_less_than_5_megabytes_whatever_the_model_wrote(tmp_path: Path) -> None:
    page = write_report(write_run(tmp_path, [hostile()] * 2, evaluated=True)).read_text()
    trajectories = page[page.index('<details class="trajectory"') :].partition("</section>")[0]
    assert trajectories.count('<div class="continuation"') == 16
    rest = len(page.encode()) - len(trajectories.encode())
    assert 100 * len(trajectories.encode()) + rest + 200_000 < 5_000_000  # plots and tables grow a little


def test_a_search_takes_no_more_of_the_page_than_two_trajectories_less(tmp_path: Path) -> None:
    """With tables of hostile kinds, and rounds that are compared."""
    rows = [
        Written(
            "<\u202e'\"" * 400 + str(k),
            [f"{line}{'<>' * 40}\n" for line in ("\"'<" * (10 + i) for i in range(30))],
            [1 - i / 30 for i in range(31)],
            critical=(k // 2 + n) % 30,
            others=["right"],
        )
        for n in range(2)
        for k in range(20)
    ]
    sizes = []
    for rounds in (2, 5):
        run = write_run(tmp_path / str(rounds), rows, searches=[("gpo", n + 1) for n in range(rounds)])
        page = write_report(run, most=1).read_text()
        assert page.count("Two rounds side by side") == rounds - 1
        one = page[page.index('<details class="trajectory"') :].partition("</article>")[0]
        sizes.append(len(page.encode()) - rounds * len(one.encode()))
    assert sizes[1] - sizes[0] < 3 * 2 * 22_000, sizes
    assert sizes[1] < 600_000


def luminance(color: str) -> float:
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_texts_stand_out_on_every_background(scheme: int) -> None:
    """WCAG 2.2, 1.4.3: a contrast of at least 4.5."""
    block = re.findall(r":root \{(.*?)\}", STYLE.read_text(), re.DOTALL)[scheme]
    colors = dict(re.findall(r"--(\w+): (#\w{6});", block))
    pairs = [("text", back) for back in ("page", "panel", "p1", "p2", "p3", "m1", "m2", "m3")]
    pairs += [(front, back) for front in ("quiet", "accent", "right", "wrong") for back in ("page", "panel")]
    for front, back in pairs:
        dark, light = sorted(luminance(colors[name]) for name in (front, back))
        assert (light + 0.05) / (dark + 0.05) >= 4.5, (front, back)


def test_nothing_is_written_through_a_link_in_a_run(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    run = write_run(tmp_path / "run", [Written("q", ["a"], [0.5, 0.0])])
    (run / "plots").symlink_to(elsewhere)
    with pytest.raises(DataError, match="plots is a symbolic link"):
        write_report(run)
    (run / "plots").unlink()
    (run / "report.html").symlink_to(elsewhere / "report.html")
    with pytest.raises(DataError, match=r"report\.html is a symbolic link"):
        write_report(run)
    assert not list(elsewhere.iterdir())
