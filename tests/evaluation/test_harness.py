"""lm-evaluation-harness runs its own tasks on our models: offline, with its task files on local rows."""

import json
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import gpo
from gpo.cli import main
from gpo.config.components import Spec
from gpo.errors import ConfigError, DataError, EngineError, MissingDependency
from gpo.evaluation.evaluation import Evaluation, EvaluationConfig
from gpo.evaluation.harness import TASKS, HarnessConfig, _load, evaluate_with, run_harness, task_manager

needs_harness = pytest.mark.skipif(find_spec("lm_eval") is None, reason="needs lm-evaluation-harness: gpo[lm-eval]")
ignored = pytest.mark.filterwarnings("ignore")  # of the harness and of what it imports
QUESTIONS = 6

# The harness's own task, but for where its rows are.
GSM8K = """
include: {harness}/tasks/gsm8k/gsm8k.yaml
task: gsm8k_local
dataset_path: json
dataset_name: null
dataset_kwargs: {{data_files: {{train: {folder}/gsm8k.jsonl, test: {folder}/gsm8k.jsonl}}}}
num_fewshot: 1
generation_kwargs: {{until: ["Question:"], do_sample: false, max_gen_toks: 32}}
"""
BBH = """
include: {harness}/tasks/bbh/cot_zeroshot/navigate.yaml
task: bbh_local
dataset_path: json
dataset_name: null
dataset_kwargs: {{data_files: {{test: {folder}/navigate.jsonl}}}}
description: ""
doc_to_text: "{{{{input}}}}"
filter_list:
  - name: get-answer
    filter:  # that of the harness drops the last character, a full stop, which the reasoner does not write
      - {{function: regex, regex_pattern: "(?<=the answer is )(.*)"}}
      - {{function: take_first}}
generation_kwargs: {{until: ["\\n\\n"], do_sample: false, max_gen_toks: 256}}
"""
LOST = """
task: lost
dataset_kwargs: {data_files: {train: nowhere.jsonl, test: nowhere.jsonl}}
"""


@pytest.fixture(scope="module")
def tasks(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of task files, and the real rows that they ask for."""
    import lm_eval

    folder = tmp_path_factory.mktemp("tasks")
    lines = (data / "gsm8k/test.jsonl").read_text().splitlines()[:QUESTIONS]
    (folder / "gsm8k.jsonl").write_text("\n".join(lines))
    rows = json.loads((data / "bbh/navigate.json").read_text())["examples"][:QUESTIONS]
    (folder / "navigate.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    for name, text in (("gsm8k", GSM8K), ("bbh", BBH)):
        (folder / f"{name}.yaml").write_text(text.format(harness=Path(lm_eval.__file__).parent, folder=folder))
    (folder / "lost.yaml").write_text(f"include: {folder}/gsm8k.yaml\n{LOST}")
    return folder


@needs_harness
@ignored
def test_the_harness_and_our_own_grading_agree_on_real_questions(
    tasks: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    command = ["evaluate", str(out), "--harness", "lm-eval", "--models", "mine=reasoner", "--include", str(tasks)]
    command += ["--tasks", "gsm8k_local,bbh_local"]
    assert main(command) == 0
    assert "bbh local (6): exact match, get-answer" in " ".join(capsys.readouterr().out.split())
    results = json.loads((out / "results.json").read_text())["mine"]
    assert set(results["gsm8k_local"]["metrics"]) == {
        *("exact_match,strict-match", "exact_match_stderr,strict-match"),
        *("exact_match,flexible-extract", "exact_match_stderr,flexible-extract"),
    }
    assert results["gsm8k_local"]["documents"] == QUESTIONS

    task = Spec("task", "bbh", {"subtasks": "navigate", "path": str(data), "instruction": ""})
    ours = EvaluationConfig(task=task, samples=1, temperature=0.0, limit=QUESTIONS, max_tokens=256)
    accuracy = Evaluation(tmp_path / "ours", ours).all().models[0].passes[1].estimate
    assert accuracy > 0
    assert results["bbh_local"]["metrics"]["exact_match,get-answer"] == pytest.approx(accuracy)

    written = {path: path.stat().st_mtime_ns for path in out.rglob("harness/**/*.json")}
    assert len(written) == 2
    assert main(command) == 0  # what is there is not run again
    assert {path: path.stat().st_mtime_ns for path in written} == written
    assert main([*command, "--limit", "2"]) == 2
    assert "limit was null, now 2" in capsys.readouterr().err


@needs_harness
@ignored
def test_adapters_are_measured_as_what_a_run_trains(tasks: Path, tmp_path: Path) -> None:
    from gpo.config.presets import model_path
    from gpo.methods.policy import load_policy, save_policy
    from gpo.types import ModelRef

    policy = load_policy(ModelRef(model_path("reasoner"), "reasoner"), lora=2)
    for name, weight in policy.model.named_parameters():
        if "lora_B" in name:
            weight.data.fill_(1.0)
    save_policy(policy, tmp_path / "adapters")
    models = {"base": "reasoner", "mine": str(tmp_path / "adapters")}
    run_harness(tmp_path / "out", HarnessConfig(models=models, tasks=("bbh_local",), include=tasks))
    results = json.loads((tmp_path / "out/results.json").read_text())
    base, mine = (results[name]["bbh_local"]["metrics"]["exact_match,get-answer"] for name in models)
    assert base > mine == 0  # such adapters break it


@needs_harness
@ignored
def test_the_harness_renders_with_the_arguments_and_drops_what_is_thought(tmp_path: Path) -> None:
    model = gpo.make("engine", "hf", model="reasoner")
    shutil.copytree(model.model_ref.source, tmp_path / "thinks")
    template = "{{ messages[0].content }}{% if not quick %}<think>{% endif %}{# </think> #}"
    model.tokenizer.chat_template = template
    model.tokenizer.save_pretrained(tmp_path / "thinks")
    parts, asked = {"pretrained": str(tmp_path / "thinks")}, [{"role": "user", "content": "1?"}]
    open_thought, quick = (_load(parts, HarnessConfig(chat_template_kwargs=each)) for each in (None, {"quick": True}))
    assert open_thought.apply_chat_template(asked) == "1?<think>"
    assert quick.apply_chat_template(asked) == "1?"
    assert quick.think_end_token == "</think>"
    assert _load({"pretrained": str(model.model_ref.source)}, HarnessConfig()).think_end_token is None
    with pytest.raises(ConfigError, match="chat_template_kwargs has 'quickly'"):
        _load(parts, HarnessConfig(chat_template_kwargs={"quickly": True}))


@needs_harness
@ignored
def test_no_model_is_measured_before_all_are_found(
    tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gpo.evaluation.harness._load", lambda *_: pytest.fail("a model was loaded"))
    models = {"mine": "reasoner", "lost": str(tmp_path / "nowhere")}
    with pytest.raises(EngineError, match=r"No model in '.*nowhere'.*Expected a directory of a model or of LoRA"):
        run_harness(tmp_path / "out", HarnessConfig(models=models, tasks=("bbh_local",), include=tasks))


@needs_harness
@ignored
def test_tasks_that_are_unknown_or_without_data_are_named(tasks: Path, tmp_path: Path) -> None:
    assert set(TASKS) <= set(task_manager(tasks).all_tasks)
    with pytest.raises(DataError, match="lm-evaluation-harness cannot run 'lost'"):
        run_harness(tmp_path / "out", HarnessConfig(tasks=("lost",), include=tasks))
    with pytest.raises(ConfigError, match=r"no task 'gsm9k'.*bbh, gsm8k"):
        run_harness(tmp_path / "out", HarnessConfig(tasks=("gsm9k",), include=tasks))


def test_without_the_extra_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    task_manager.cache_clear()
    with pytest.raises(MissingDependency, match=r"pip install 'gpo\[lm-eval\]'"):
        run_harness(tmp_path, HarnessConfig())


def test_other_harnesses_and_options_are_unknown(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"Unknown harness 'helm'.*lm-eval"):
        evaluate_with("helm", tmp_path, {})
    with pytest.raises(ConfigError, match=r"'--task'.*--tasks"):
        evaluate_with("lm-eval", tmp_path, {"task": "gsm8k"})
