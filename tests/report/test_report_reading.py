import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from gpo.config.components import Spec
from gpo.errors import ConfigError, DataError
from gpo.experiment.run import Run
from gpo.report.clean import clip, counted, html_size, one_line, visible
from gpo.report.command import write_report
from gpo.report.kinds import Kinds
from gpo.report.reading import read_run
from gpo.report.show import anchor_of
from gpo.report.texts import StepTexts
from gpo.storage.directory import RunDirectory
from gpo.storage.files import write_json
from toy import toy_config
from written_run import NAN, Written, write_run


def test_a_searched_trajectory_has_its_texts_and_what_was_sampled_from_it(tmp_path: Path) -> None:
    row = Written(
        "q",
        ["one", "two", "three"],
        [0.5, NAN, 0.75, 0.0],
        critical=0,
        others=["right", "failed"],
        search={0: [("a", "right")]},
        fresh={2: [("b", "right"), ("c", "wrong"), ("d", "failed")]},
    )
    reading = read_run(RunDirectory(write_run(tmp_path, [row])))
    [item] = reading.searched
    assert reading.arm == "gpo"
    assert item.steps == ("one", "two", "three")
    assert item.blocks == [(0, 2), (2, 3)]
    assert item.gain is None  # the value after the critical step is not known
    assert [t.completion.text for t in item.search[0]] == ["a"]
    assert (item.fresh_value(2).estimate, item.fresh_value(2).n) == (0.5, 2)
    assert item.fresh_value(1).n == 0
    assert reading.success("p0") == [0.0, 1.0]


def test_without_a_search_the_first_trajectory_of_each_question_is_read(tmp_path: Path) -> None:
    reading = read_run(RunDirectory(write_run(tmp_path, [Written("q", ["a"]), Written("r", ["b"])])))
    assert reading.arm is None
    assert [(item.problem.id, item.steps, item.scores) for item in reading.searched] == [
        ("p0", ("a",), None),
        ("p1", ("b",), None),
    ]


def test_steps_that_are_no_lines_are_cut_by_the_runs_tokenizer(tmp_path: Path) -> None:
    engine, segmenter = Spec("engine", "chain", {"padding": 2}), Spec("segmenter", "fixed_tokens", {"size": 3})
    run = Run(tmp_path, toy_config(arms={"gpo": "monte_carlo"}, engine=engine, segmenter=segmenter))
    run.locate("gpo")
    item = read_run(run.files).searched[0]
    assert len(item.steps) == len(item.trajectory.step_ends)
    assert "".join(item.steps).startswith(item.trajectory.completion.text)


def explode(**_: object) -> None:
    pytest.fail("code that a run names was run")


def test_code_that_a_run_names_is_not_run(tmp_path: Path) -> None:
    run = RunDirectory(write_run(tmp_path, [Written("q", ["one. two"], [0.5, 0.0])], segmenter="sentence"))
    name = "test_report_reading:explode"
    write_json(tmp_path / "config.json", run.config() | {"engine": {"name": name}, "task": {"name": name}})
    assert read_run(run).searched[0].steps == ("one. two\n(all 1 steps)",)


def test_a_trajectory_is_whole_where_its_model_is_gone(tmp_path: Path) -> None:
    run = write_run(tmp_path, [Written("q", ["one. two"], [0.5, 0.0])], segmenter="sentence")
    [item] = read_run(RunDirectory(run)).searched
    assert item.steps == ("one. two\n(all 1 steps)",)


def test_the_hub_is_not_asked_for_a_tokenizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    asked: list[object] = []

    def connect(host: object, *_: object, **__: object) -> None:
        asked.append(host)
        raise OSError("no network in this test")

    monkeypatch.setattr(socket, "getaddrinfo", connect)
    run = RunDirectory(write_run(tmp_path, [Written("q", ["one. two"], [0.5, 0.0])], segmenter="sentence"))
    write_json(tmp_path / "config.json", run.config() | {"model": "some-body/some-model"})
    [item] = read_run(run).searched
    assert item.steps == ("one. two\n(all 1 steps)",)
    with pytest.raises(
        DataError, match="'some-body/some-model', which cuts responses into steps, is not on this machine"
    ):
        StepTexts(run).tokenizer  # noqa: B018
    assert asked == []


def test_every_separator_of_lines_and_half_a_surrogate_pair_get_through_to_the_page(tmp_path: Path) -> None:
    odd = "a\u2028b\u2029c\x85d\x0ce\ud83d"
    row = Written(odd, [odd, "x"], [0.5, 0.25, 0.0], 0, task=odd, search={0: [(odd, "right")]})
    run = write_run(tmp_path, [row], True)
    first = RunDirectory(run).rollouts.read()
    assert first[0].trajectories[0].completion.text == f"{odd}\nx"
    item = read_run(RunDirectory(run)).searched[0]
    assert item.problem.question == odd
    assert item.steps == (odd, "x")
    page = write_report(run).read_text(encoding="utf-8")
    assert "a⟨U+2028⟩b⟨U+2029⟩c⟨U+0085⟩d⟨U+000C⟩e⟨U+D83D⟩" in page
    assert not set("\u2028\u2029\x85\x0c") & set(page)
    odd_id = replace(item, trajectory=replace(item.trajectory, id=odd))
    assert anchor_of(odd_id) != anchor_of(item)


def test_a_search_of_another_trajectory_is_refused(tmp_path: Path) -> None:
    files = RunDirectory(write_run(tmp_path, [Written("q", ["a"], [0.5, 0.0], 0)]))
    files.scores("gpo").append([replace(files.scores("gpo").read()[0], trajectory_id="gone")])
    with pytest.raises(DataError, match=r"scores\.jsonl:2: trajectory 'gone' is not in .*rollouts\.jsonl"):
        read_run(files)


def test_what_cannot_be_read_is_said_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is no run directory"):
        read_run(RunDirectory(tmp_path))
    run = RunDirectory(write_run(tmp_path, [Written("q", ["a"], [0.5, 0.0])]))
    with pytest.raises(ConfigError, match=r"no arm 'other'. Its arms: plain, gpo"):
        read_run(run, "other")
    run.write_problems({"train": []})
    with pytest.raises(DataError, match=r"problem 'p0' of rollouts\.jsonl is not in problems\.jsonl"):
        read_run(run)
    (tmp_path / "rollouts.jsonl").unlink()
    with pytest.raises(DataError, match="has no trajectories yet"):
        read_run(run)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain 1 < 2", "plain 1 < 2"),
        ("a\tb\r\nc", "a    b\nc"),
        ("x\u202eevil\u2066", "x⟨U+202E⟩evil⟨U+2066⟩"),
        ("\x1b[31mred\x00", "⟨U+001B⟩[31mred⟨U+0000⟩"),
        ("é 日本 ✓", "é 日本 ✓"),
        ("\ud800", "⟨U+D800⟩"),
    ],
)
def test_nothing_that_a_model_writes_is_invisible(text: str, shown: str) -> None:
    assert visible(text) == shown


def test_a_sign_that_an_encoding_lacks_has_another_one_of_its_width() -> None:
    signs = "▲▼·−◆●├┤─✓✗"
    assert len(signs.encode("ascii", "gpo")) == len(signs.encode("cp1252", "gpo")) == len(signs)
    assert "▲\u00a0+0.25 … é ⟨".encode("ascii", "gpo") == rb"^ +0.25 ... \xe9 <"
    assert "· é".encode("latin-1", "gpo") == "· é".encode("latin-1")


def test_what_is_counted_is_one_or_many() -> None:
    assert [counted(n, "sample") for n in (0, 1, 1204)] == ["0 samples", "1 sample", "1,204 samples"]
    assert [counted(n, "trajectory/trajectories") for n in (1, 2)] == ["1 trajectory", "2 trajectories"]


def test_a_text_is_cut_by_the_bytes_of_its_html() -> None:
    assert clip("short", 10) == "short"
    assert clip("x" * 1_000_000, 100) == "x" * 100 + " … (1,000,000 characters, cut)"
    cut = clip("<" * 100, 40)
    assert cut.startswith("<" * 10 + " …")
    assert html_size(cut.partition(" …")[0]) == 40
    assert clip("\u202e" * 10, 50).count("⟨") <= 5
    assert one_line("a\n  b " * 50, 20) == "a b a b a b a b a b…"
    assert len(one_line("y" * 1_000_000, 20)) == 20


def test_kinds_mask_what_varies_between_questions() -> None:
    kinds = Kinds(["Then Bob and Eve swap: Bob: 3.", "So it is 5 * (2 + 1) = 15."])
    assert kinds("Bob and Eve swap: Bob: 12.") == kinds("Eve and Bob swap: x") == "Aa and Aa swap …"
    assert kinds("So 5 * (2 + 1) = 15") == kinds("So 7 = 3")
    assert kinds('He said "no" twice') == "He said … twice"
    assert kinds(" \n") == "(blank)"
    assert kinds("[ ( {") == "[]"


def test_reading_a_run_loads_no_torch(tmp_path: Path) -> None:
    run = write_run(tmp_path, [Written("q", ["a"], [0.5, 0.0])])
    code = f"""
import sys
from pathlib import Path
import gpo.report.command
from gpo.report.show import anchor_of
from gpo.report.texts import StepTexts
from gpo.storage.directory import RunDirectory
from gpo.storage.files import write_json
from gpo.report.reading import read_run
assert read_run(RunDirectory(Path({str(run)!r}))).searched
assert not {{"torch", "transformers"}} & sys.modules.keys()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
