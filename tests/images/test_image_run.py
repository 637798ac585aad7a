"""A run on questions about pictures: from messages to trained models and the report, through kills."""

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
from tiny_eye import Lenient

import gpo
from gpo.config.components import Spec
from gpo.config.run import RunConfig
from gpo.engines.hf import HFEngine
from gpo.errors import ConfigError, DataError
from gpo.experiment.plan import look_ahead
from gpo.experiment.reuse import copy_samples
from gpo.experiment.run import Run
from gpo.experiment.trial import try_training
from gpo.images.album import Album
from gpo.images.tokens import image_tokens, images_in
from gpo.methods.policy import load_policy
from gpo.methods.scoring import scoring
from gpo.methods.tree import pack
from gpo.report.command import write_report
from gpo.report.pictures import pictures_of, room_for
from gpo.rollout.prompting import question_start
from gpo.rollout.sampler import Sampler
from gpo.storage.directory import RunDirectory
from gpo.storage.rounds import RoundState
from gpo.tasks.data import conversation
from gpo.tasks.squares import Squares, draw
from gpo.types import Message, ModelRef, Problem, RoundContext

VARYING = ("events.jsonl", "pieces.json", ".lock")


class Killed(BaseException):
    pass


def config(eye: Path, **other: Any) -> RunConfig:
    settings: dict[str, Any] = {
        "model": str(eye),
        "task": Lenient(instruction=""),
        "problems": 4,
        "test_problems": 2,
        "test_samples": 2,
        "rollouts": 4,
        "locate_share": 0.4,
        "reset_turns": 0,
        "max_tokens": 16,
        "chunk": 16,
        "segmenter": Spec("segmenter", "fixed_tokens", {"size": 4}),
        "arms": {"gpo": Spec("estimator", "monte_carlo", {"rollouts": 2})},
        "method": Spec("method", "dpo", {"learning_rate": 1e-3, "batch_size": 8}),
    }
    return RunConfig(**{**settings, **other})


def contents(run: Path) -> dict[str, Any]:
    """All final files; without times."""
    found: dict[str, Any] = {}
    for path in sorted(run.rglob("*")):
        if path.is_file() and path.name not in VARYING and path.parent.name != "plots":
            found[str(path.relative_to(run))] = path.read_bytes()
            if path.name == "training.jsonl":
                rows = [json.loads(line) for line in path.read_text().splitlines()]
                found[str(path.relative_to(run))] = [
                    {key: value for key, value in row.items() if key != "tokens_per_second"} for row in rows
                ]
    return found


@pytest.fixture(scope="module")
def finished(eye: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("finished") / "run"
    Run(directory, config(eye)).all()
    return directory


def test_everything_that_is_sampled_names_the_picture_of_its_question(finished: Path) -> None:
    files = RunDirectory(finished)
    problems = {p.id: p for split in ("train", "test") for p in files.problems(split) or ()}  # type: ignore[arg-type]
    groups = [*RoundState.of(files, "gpo").groups(), *files.evaluation("gpo").read()]
    assert sum(bool(group.start.prefix_ids) for group in groups) > 5
    for group in groups:
        [name] = images_in(group.start.prompt_ids)
        cells = problems[group.start.problem_id].metadata["cells"]
        assert Album(files.images).open(name).tobytes() == draw(cells, 8).tobytes()
    assert len(list(files.images.glob("*.png"))) == 6
    assert {path.name for path in finished.iterdir()} >= {"images", "results.json", "arms"}


def test_training_reads_the_pictures_and_saves_a_whole_model(finished: Path, eye: Path) -> None:
    trained, problem = finished / "arms" / "gpo" / "model", Squares().problems("test")[0]
    told = json.loads((finished / "arms" / "gpo" / "training.json").read_text())
    assert told["steps"] > 0
    assert told["reset_share"] > 0
    before, after = HFEngine(str(eye)), HFEngine(str(trained))
    prompts = [question_start(problem, Lenient(instruction=""), each.tokenizer).prompt_ids for each in (before, after)]
    assert prompts[0] == prompts[1]
    nats = [each.logprobs([prompts[0]], [(7, 3, 12)])[0] for each in (before, after)]
    assert max(abs(a - b) for a, b in zip(*nats, strict=True)) > 1e-3


def test_a_run_that_is_killed_again_and_again_ends_the_same(finished: Path, eye: Path, tmp_path: Path) -> None:
    seen: list[object] = []

    def kill(progress: object) -> None:
        seen.append(progress)
        if len(seen) % 9 == 0:
            raise Killed

    for _ in range(40):
        try:
            Run(tmp_path / "run", config(eye), on_progress=kill).all()
            break
        except Killed:
            continue
    assert len(seen) > 18
    assert contents(tmp_path / "run") == contents(finished)


@pytest.mark.parametrize("method", ["dpo", "grpo"])
def test_a_dry_run_trains_on_what_prompts_show(eye: Path, tmp_path: Path, method: str) -> None:
    run = Run(tmp_path / "run", config(eye, method=Spec("method", method, {"learning_rate": 1e-3})))
    look = look_ahead(run, images=tmp_path / "images")
    trial = try_training(run, look.groups, run.engine().tokenizer, tmp_path / "images")
    assert trial.steps == 2
    assert not (tmp_path / "run").exists()


def test_an_online_update_learns_with_the_eyes_too(finished: Path, eye: Path) -> None:
    from gpo.methods.grpo import GRPO

    files = RunDirectory(finished)
    method = GRPO(learning_rate=1e-3, lora=None)
    context = RoundContext(model=ModelRef(str(eye), "eye"), images=files.images)
    method._begin(context)
    weights = dict(method.policy.model.named_parameters())
    looking = [name for name in weights if "vision_model.encoder" in name or "connector" in name]
    before = {name: weights[name].detach().clone() for name in looking}
    metrics = method.update(RoundState.of(files, "gpo").groups(), context)
    assert metrics["steps"] > 0
    assert metrics["ratio_error"] < 1e-3  # what was sampled has the log-probabilities that training computes
    assert sum(not before[name].equal(weights[name]) for name in looking) > len(looking) / 2


def test_shared_prefixes_are_trained_once_and_pictures_apart(finished: Path, eye: Path) -> None:
    files = RunDirectory(finished)
    policy = load_policy(ModelRef(str(eye), "eye"), images=files.images)
    trajectories = [t for group in files.rollouts.read() for t in group.trajectories]
    sequences = [(t.start.prompt_ids, t.completion.token_ids) for t in trajectories]
    with scoring(policy.model) as scorer:
        assert scorer.shares
        [batch] = pack(sequences, 1 << 13)
        logps = dict(zip(batch.sequences, batch.split(scorer(batch).logps), strict=True))
    alone = len({prompt for prompt, _ in sequences}) * len(sequences[0][0])
    assert alone <= batch.token_ids.numel() < sum(len(prompt) + len(tokens) for prompt, tokens in sequences) - alone
    for i, trajectory in enumerate(trajectories):
        assert logps[i].tolist() == pytest.approx(trajectory.completion.logprobs, abs=1e-4)


def test_a_run_by_adapters_goes_on_with_its_eyes(eye: Path, tmp_path: Path) -> None:
    method = Spec("method", "dpo", {"learning_rate": 1e-3, "lora": 2})
    run = Run(tmp_path / "run", config(eye, method=method, rounds=2, arms={"plain": "none"}, problems=2))
    run.train("plain")
    assert (tmp_path / "run" / "arms" / "plain" / "model" / "adapter_config.json").exists()
    assert run.evaluate("plain")


def test_the_samples_of_a_run_serve_another_method_with_their_pictures(
    finished: Path, eye: Path, tmp_path: Path
) -> None:
    copy_samples(finished, tmp_path / "run", config(eye, method="grpo"))
    files = RunDirectory(tmp_path / "run")
    kept = {path.name: path.read_bytes() for path in files.images.iterdir()}
    assert kept == {path.name: path.read_bytes() for path in RunDirectory(finished).images.iterdir()}
    assert {
        f"{name}.png" for group in RoundState.of(files, "gpo").groups() for name in images_in(group.start.prompt_ids)
    } <= kept.keys()


@dataclass(frozen=True)
class Mixed(Squares):
    """The first questions are without their pictures."""

    def prompt(self, problem: Problem) -> list[Message]:
        return super().prompt(problem) if problem.id.endswith("1") else conversation(problem.question)


@pytest.mark.parametrize("task", [Squares(), Mixed()])
def test_an_engine_that_takes_no_images_leaves_no_run_behind(task: Squares, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="The task asks about images, and the engine or its model takes none"):
        Run(tmp_path / "run", RunConfig(model="reasoner", task=task, problems=2)).rollout()
    assert not (tmp_path / "run" / "problems.jsonl").exists()
    assert not (tmp_path / "run" / "images").exists()


def test_training_without_the_pictures_says_what_is_missing(finished: Path, eye: Path, tmp_path: Path) -> None:
    from gpo.methods.grpo import GRPO

    groups = RoundState.of(RunDirectory(finished), "gpo").groups()
    with pytest.raises(DataError, match=r"The prompts have images, and the model in training takes none"):
        GRPO().update(groups, RoundContext(model=ModelRef(str(eye), "eye")))
    (tmp_path / "images").mkdir()
    with pytest.raises(DataError, match=r"There is no image .* Copy the run directory whole"):
        GRPO().update(groups, RoundContext(model=ModelRef(str(eye), "eye"), images=tmp_path / "images"))


def test_the_report_has_each_picture_in_its_one_file(finished: Path, page: Any, tmp_path: Path) -> None:
    path = write_report(finished, tmp_path / "report.html")
    text = path.read_text()
    assert "img-src data:;" in text
    page.goto(path.as_uri())
    anchors = page.evaluate("[...document.querySelectorAll('details.trajectory')].map(one => one.id)")
    page.goto(f"{path.as_uri()}#{anchors[0]}")
    picture = page.locator(f"#{anchors[0]} img")
    assert picture.is_visible()
    assert picture.evaluate("one => one.complete && one.naturalWidth") == 96
    assert picture.get_attribute("alt") == "Picture 1 of the question"


def test_a_report_without_the_folder_of_images_says_which_are_missing(finished: Path, tmp_path: Path) -> None:
    prompt = RunDirectory(finished).rollouts.read()[0].start.prompt_ids
    [lost] = pictures_of(prompt, tmp_path / "elsewhere")
    [shown] = pictures_of(prompt, finished / "images")
    assert (lost.name, lost.source) == (shown.name, "")
    assert shown.source.startswith("data:image/png;base64,")


def test_many_large_pictures_leave_a_page_small(tmp_path: Path) -> None:
    kept = Album(tmp_path)
    noise = PIL.Image.frombytes("RGB", (640, 480), random.Random(0).randbytes(3 * 640 * 480))
    prompt = image_tokens(kept.add(noise), 9) * 4
    prompts = [prompt] * 200
    room = room_for(prompts)
    size = sum(len(each.source) for prompt in prompts for each in pictures_of(prompt, tmp_path, room))
    assert 800 * 1000 < size < 3_500_000
    [one] = pictures_of(prompt[:9], tmp_path)
    assert (one.width, one.height) == (320, 240)
    assert one.source.startswith("data:image/jpeg;base64,")


def test_a_report_of_text_lets_no_image_in(tmp_path: Path) -> None:
    from toy import toy_config

    Run(tmp_path / "run", toy_config()).rollout()
    assert "img-src" not in write_report(tmp_path / "run").read_text()
    assert not (tmp_path / "run" / "images").exists()


def test_a_data_file_names_images(eye: Path, tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    rows = []
    for number, cells in enumerate(("rrr/www/www", "rwr/wbw/www")):
        draw(cells, 8).save(tmp_path / "pictures" / f"{number}.png")
        rows.append({"question": "How many red?", "answer": str(cells.count("r")), "images": f"pictures/{number}.png"})
    rows.append({"question": "How many green?", "answer": "0", "images": [f"pictures/{i}.png" for i in range(2)]})
    rows.append({"question": "How many?", "answer": "0", "images": None})
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = gpo.make("task", "file", path=str(data))
    problems, engine = task.problems("train"), HFEngine(str(eye))
    starts = [question_start(problem, task, engine.tokenizer) for problem in problems]
    assert [len(images_in(start.prompt_ids)) for start in starts] == [1, 1, 2, 0]
    assert images_in(starts[2].prompt_ids) == images_in(starts[0].prompt_ids) + images_in(starts[1].prompt_ids)
    groups = Sampler(engine, task, {p.id: p for p in problems}, max_tokens=8)(starts, 2)
    assert all(len(group.trajectories) == 2 for group in groups)
    data.write_text(json.dumps({**rows[0], "images": "nowhere.png"}) + "\n")
    with pytest.raises(DataError, match=r"line 1: there is no image at .*nowhere\.png"):
        task.problems("train")
    data.write_text(json.dumps({**rows[0], "images": [{"bytes": "x" * 5000, "path": None}]}) + "\n")
    with pytest.raises(DataError, match=r"line 1: column 'images' must be a path or a list of paths, got .{82}\. Save"):
        task.problems("train")
