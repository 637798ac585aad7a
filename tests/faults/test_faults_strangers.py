"""What strangers send: settings, rows, answers, templates, directories, and requests to the annotation page."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from programs import small_run, work

from gpo.annotate.items import load_items
from gpo.annotate.reading import read_marks
from gpo.cli import main
from gpo.config.components import make
from gpo.config.options import resolve, split
from gpo.config.run import describe
from gpo.errors import DataError, EngineError, GPOError
from gpo.experiment.run import Run
from gpo.preferences.pairs import read_pairs
from gpo.report.command import write_report
from gpo.report.results import summarize
from gpo.rollout import prompting
from gpo.rollout.scoring import within
from gpo.storage.chunks import Chunks
from gpo.storage.codec import from_json
from gpo.storage.directory import RunDirectory
from gpo.storage.weights import load_checked
from gpo.tasks.data import read_rows
from gpo.types import Group, Pair, Problem, Score, StepScores
from toy import ToyTask

Some = Callable[..., list[Any]]
Survived = Callable[[str, int], None]
HERE = Path(__file__).parent
ASKED = os.environ.get("GPO_FAULTS") or "25"
CORPUS = json.loads((HERE / "corpus/hostile.json").read_text())
VALUES: list[Any] = [None, True, -1, 0, 1e308, 10**30, "", "../../x", "\u202e\x1b[2J", [], [[]], {}, {"name": 3}]


def hostile_texts(count: int, seed: int, longest: int = 60_000) -> Iterator[str]:
    """Answers of pieces of the corpus, each repeated up to 20,000 times."""
    random = Random(seed)
    for _ in range(count):
        pieces = random.choices(CORPUS["pieces"], k=random.randint(1, 5))
        yield random.choice(["", " ", "\n"]).join(p * random.choice(CORPUS["repeats"]) for p in pieces)[:longest]


GRADERS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "aime24": ({}, ("25", "0")),
    "bbh": ({}, ("(A)", "yes", "7", "] )", "apple banana", "True")),
    "gsm8k": ({}, ("1,000", "-3.5")),
    "mmlu": ({}, ("(B)",)),
    "mmlu_pro": ({}, ("(J)",)),
    "question": ({}, ("1/2", "Paris", "x^2+1")),
    "file": ({"path": "none.jsonl"}, ("7", "word", "(C)")),
    "reasoner": ({}, ("valid", "] ) }", "-12")),
}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
EXAMPLES = settings(
    max_examples=2000 if ASKED == "whole" else min(2000, max(25, int(ASKED))),
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


def grade(name: str, texts: Iterable[str]) -> int:
    """Every text is graded within a limit; how many there were."""
    options, references = GRADERS[name]
    task, number = make("task", name, **options), 0
    for number, text in enumerate(texts, 1):
        problem = Problem("p", "Options: (A) one (B) two", references[number % len(references)])
        score = within(20.0, partial(task.score, problem, text))
        assert isinstance(score, Score)
        assert score.value is None or 0 <= score.value <= 1
    return number


@pytest.mark.parametrize("name", GRADERS)
def test_a_hostile_answer_gets_a_score_or_is_a_failure_and_never_hangs(
    name: str, at_most: Callable[[int, int], int], survived: Survived
) -> None:
    wanted = at_most(25, 10_000)
    survived("hostile answer to a grader", grade(name, hostile_texts(wanted, seed=len(name))))


@pytest.mark.parametrize("name", GRADERS)
def test_any_text_is_graded(name: str, survived: Survived) -> None:
    tried = 0

    @EXAMPLES
    @given(st.lists(st.sampled_from(CORPUS["pieces"]) | st.text(max_size=30) | st.floats().map(str), max_size=8))
    def check(pieces: list[str]) -> None:
        nonlocal tried
        tried += grade(name, ["".join(pieces)])

    check()
    survived("text of any kind to a grader", tried)


def leaves(data: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if path:
        yield path
    if isinstance(data, dict | list):
        for key in data if isinstance(data, dict) else range(min(2, len(data))):
            yield from leaves(data[key], (*path, key))


def changed(data: Any, path: tuple[Any, ...], value: Any) -> Any:
    """A copy with another value at a place."""
    copy = json.loads(json.dumps(data))
    inner = copy
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return copy


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("finished") / "run"
    with pytest.MonkeyPatch.context() as patched:
        make_quick(patched)
        work(run, "offline")
    return run


def make_quick(patched: pytest.MonkeyPatch) -> None:
    patched.setattr("gpo.report.plots.write_plots", lambda *_: None)
    patched.setattr("gpo.report.command.write_plots", lambda *_: None)
    patched.setattr("gpo.report.command.inline_figures", lambda *_: {})
    patched.setattr("os.fsync", lambda _: None)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    make_quick(monkeypatch)


def or_error_of_ours(call: Callable[[], object]) -> bool:
    """Whether it worked; any error that is none of ours is the test's."""
    with suppress(GPOError):
        call()
        return True
    return False


def test_any_setting_of_a_stored_run_may_be_anything(
    finished: Path, tmp_path: Path, some: Some, survived: Survived
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    config = json.loads((run / "config.json").read_text())
    config["engine"].pop("processes")
    faults = some([(path, value) for path in leaves(config) for value in VALUES], 30)
    for path, value in faults:
        (run / "config.json").write_text(json.dumps(changed(config, path, value)))
        for call in (
            lambda: summarize(RunDirectory(run)),
            lambda: write_report(run),
            lambda: load_items(RunDirectory(run), 3),
            lambda: resolve({}, RunDirectory(run).config()),
        ):
            or_error_of_ours(call)
    survived("hostile setting of a stored run", len(faults))


ROWS: dict[str, type[Any]] = {"rollouts.jsonl": Group, "arms/gpo/scores.jsonl": StepScores}


@pytest.mark.parametrize("name", ROWS)
def test_any_field_of_a_stored_row_may_be_anything(
    name: str, finished: Path, tmp_path: Path, some: Some, survived: Survived
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    first, *rest = (run / name).read_bytes().splitlines(keepends=True)
    row = json.loads(first)
    faults = some([(path, value) for path in leaves(row) for value in VALUES], 30)
    for path, value in faults:
        (run / name).write_bytes(json.dumps(changed(row, path, value)).encode() + b"\n" + b"".join(rest))
        if or_error_of_ours(lambda: Chunks(run / name, ROWS[name]).read()):
            for call in (
                lambda: summarize(RunDirectory(run)),
                lambda: write_report(run),
                lambda: load_items(RunDirectory(run), 3),
            ):
                or_error_of_ours(call)
    survived("hostile field of a stored row", len(faults))


@EXAMPLES
@given(JSON)
def test_any_json_is_a_row_or_refused(data: Any) -> None:
    for kind in (Group, StepScores, Problem, Pair):
        or_error_of_ours(partial(from_json, kind, data))


@EXAMPLES
@given(st.binary(max_size=400))
def test_any_bytes_are_a_file_or_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    folder = tmp_path_factory.mktemp("bytes")
    for name in ("x.jsonl", "x.json", "x.csv", "x.parquet"):
        (folder / name).write_bytes(content)
        or_error_of_ours(partial(read_rows, folder / name))
    for read in (read_pairs, read_marks, lambda path: Chunks(path, Group).read()):
        or_error_of_ours(partial(read, folder / "x.jsonl"))


OPTIONS = [
    "task",
    "engine",
    "method",
    "estimator",
    "arms",
    "rollouts",
    "budget",
    "model",
    "pairs.most",
    "engine.padding",
]
PLAIN = ["chain", "none", "true", "1", "nan", "inf", "a,b", "os:system", "gpo.toy:nothing", *map(json.dumps, VALUES)]
WORDS = st.sampled_from(PLAIN) | st.text(max_size=20)


STORED = describe(small_run())


@EXAMPLES
@given(st.lists(st.sampled_from([f"--{name}" for name in OPTIONS]) | WORDS, max_size=6))
def test_any_command_line_is_understood_or_refused(words: list[str]) -> None:
    or_error_of_ours(lambda: resolve(split(words)[1], STORED))


class Templated:
    """A tokenizer with a chat template, as transformers renders it."""

    def __init__(self, template: str) -> None:
        self.chat_template = template

    def apply_chat_template(self, messages: Any, **_: Any) -> list[int]:
        from transformers.utils.chat_template_utils import render_jinja_template

        texts, _ = render_jinja_template([messages], chat_template=self.chat_template, add_generation_prompt=True)
        return list(texts[0].encode())


TEMPLATES = [
    "{{ messages[0]['content'] }",
    "{{ raise_exception('no') }}",
    "{{ undefined.attribute }}",
    "{{ 1 / 0 }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ cycler.__init__.__globals__.os.system('touch owned') }}",
    "{% include '/etc/passwd' %}",
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{{ 'x' * 10**20 }}",
]


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_hostile_chat_template_is_refused(
    template: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, survived: Survived
) -> None:
    import transformers.utils.chat_template_utils  # noqa: F401  (not within the limit)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(prompting, "LIMIT", 0.3)
    with pytest.raises(DataError, match="The chat template of the model cannot be used"):
        prompting.render(ToyTask().prompt(Problem("p", "1", "Y")), Templated(template))
    assert not list(tmp_path.iterdir())
    survived("hostile chat template", 1)


class Owned:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("owned"),))


def test_weights_that_are_a_pickle_are_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, survived: Survived
) -> None:
    monkeypatch.chdir(tmp_path)
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text('{"model_type": "llama"}')
    for name in ("pytorch_model.bin", "adapter_model.bin"):
        (model / name).write_bytes(pickle.dumps(Owned()))
        with pytest.raises(EngineError, match=r"_model\.bin is a pickle, which can hold code, and is not read"):
            load_checked(str(model))
    assert not (tmp_path / "owned").exists()
    survived("pickle in a directory of a stranger", 2)


def test_nothing_in_the_source_unpickles_or_calls_a_shell() -> None:
    import gpo

    for path in Path(gpo.__file__).parent.rglob("*.py"):
        text = path.read_text()
        for word in (
            "import pickle",
            "weights_only=False",
            "shell=True",
            "os.system",
            "trust_remote_code=True",
            'eval("',
        ):
            assert word not in text, (path, word)
        assert text.count("torch.load(") == text.count("weights_only=True"), path


@pytest.mark.parametrize("arm", ["../../elsewhere", "/etc", "a/b", "..", ""])
def test_an_arm_of_a_stranger_is_no_path(arm: str, finished: Path, tmp_path: Path, survived: Survived) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    config = json.loads((run / "config.json").read_text())
    config["arms"][arm] = config["arms"]["plain"]
    (run / "config.json").write_text(json.dumps(config))
    for call in (partial(write_report, run), partial(Run, run), lambda: load_items(RunDirectory(run), 3)):
        with pytest.raises(GPOError):
            call()
    survived("path in a directory of a stranger", 1)


def test_what_steers_a_terminal_is_spelled_out_in_errors_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], survived: Survived
) -> None:
    name = "\x1b]0;owned\x07\u202e"
    assert main(["report", str(tmp_path / name)]) == 2
    err = capsys.readouterr().err
    assert "⟨U+001B⟩]0;owned⟨U+0007⟩⟨U+202E⟩" in err
    assert not set(name) & set("\x1b\x07\u202e") & set(err)
    survived("control characters in an error", 1)
