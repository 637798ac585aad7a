"""The engine `ray` on a cluster of two nodes; actors and a node are killed while it samples."""

from __future__ import annotations

import copy
import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gpo.config.components import Spec, describe_component, make
from gpo.engines.contract import CHECKS
from gpo.engines.ray import RayEngine
from gpo.errors import ConfigError, EngineError, MissingDependency
from gpo.toy import ChainEngine, random_process
from gpo.types import ModelRef, Request

whole = pytest.mark.skipif(os.environ.get("GPO_FAULTS") != "whole", reason="needs GPO_FAULTS=whole: starts many actors")
CHAIN = {"context_length": 40, "padding": 2}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two nodes with room for one actor each."""
    pytest.importorskip("ray", reason="needs Ray: pip install 'gpo[ray]'")
    from ray.cluster_utils import Cluster

    # On a machine that others use, workers neither wait for them nor end when memory is short.
    os.environ |= {"RAY_worker_niceness": "0", "RAY_memory_monitor_refresh_ms": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    folder, known = str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (folder, known)))
    two = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    two.add_node(num_cpus=1)
    from gpo.engines.cluster import join, leave

    join(two.address)  # so that engines come and go, and this process stays
    yield two
    leave()
    two.shutdown()
    os.environ["PYTHONPATH"] = known or ""


@pytest.fixture(scope="module")
def chain(cluster: Any) -> Iterator[RayEngine]:
    with RayEngine(inner=Spec("engine", "chain", CHAIN), piece=8, cpus=0.0) as engine:  # beside those of other tests
        yield engine


def contexts(engine: Any) -> list[tuple[int, ...]]:
    starts = [tuple(engine.tokenizer.encode(text)) for text in ("0\n", "1\n")]
    [[long]] = engine.generate([Request(starts[0], 1, 24, 0)])
    return [*starts, starts[0] + long.token_ids]


def requests(count: int) -> list[Request]:
    starts = [tuple(ChainEngine().tokenizer.encode(f"{problem}\n")) for problem in range(8)]
    numbers = random.Random(0)
    return [Request(numbers.choice(starts), numbers.randint(1, 5), 20, seed) for seed in range(count)]


def calls(folder: Path) -> dict[int, int]:
    """How often each process was asked."""
    return {int(path.name): len(path.read_text().split()) for path in folder.iterdir()}


def runs(process: int) -> bool:
    """Whether it is there, and not only until somebody takes note of its end."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize(
    "check", [check for check in CHECKS if "close" not in check.__name__], ids=lambda c: c.__name__
)
def test_contract(check: Any, chain: RayEngine) -> None:
    check(chain, contexts(chain))
    assert not chain.trouble


@whole
def test_close_ends_the_actors(cluster: Any, tmp_path: Path) -> None:
    engine = RayEngine(inner=Spec("engine", "ray_engines:Marking", {"folder": str(tmp_path)}), actors=1)
    engine.generate(requests(2))
    CHECKS[-1](engine, contexts(engine))
    [process] = calls(tmp_path)
    until = time.monotonic() + 100
    while runs(process) and time.monotonic() < until:
        time.sleep(0.05)
    assert not runs(process)


@whole
def test_both_actors_work_and_what_comes_is_that_of_the_engine_alone(cluster: Any, tmp_path: Path) -> None:
    asked = requests(40)
    spec = Spec("engine", "ray_engines:Marking", {"folder": str(tmp_path), "seconds": 0.1})
    with RayEngine(inner=spec, piece=4) as engine:
        for _ in range(2):  # the second actor may not be there yet at the first time
            came = list(engine.stream(asked, logprobs=True))
        assert sorted(position for position, _ in came) == list(range(40))
        assert [answer for _, answer in sorted(came)] == ChainEngine().generate(asked, logprobs=True)
        assert len(calls(tmp_path)) == 2
        told = [(r.token_ids, c.token_ids) for r, (_, answer) in zip(asked, sorted(came), strict=True) for c in answer]
        nats = engine.logprobs([context for context, _ in told], [ids for _, ids in told], temperature=0.5)
        assert nats == ChainEngine().logprobs(*zip(*told, strict=True), temperature=0.5)


@whole
def test_no_more_is_asked_for_than_two_pieces_of_each_actor(cluster: Any, tmp_path: Path) -> None:
    with RayEngine(inner=Spec("engine", "ray_engines:Marking", {"folder": str(tmp_path)}), actors=1, piece=1) as engine:
        coming = engine.stream([Request((5, 1), 1, 5, seed) for seed in range(30)])
        next(coming)
        time.sleep(0.5)  # nobody takes what there is
        assert sum(calls(tmp_path).values()) <= 3
        coming.close()
        time.sleep(0.2)
        assert sum(calls(tmp_path).values()) <= 3


def test_a_killed_actor_costs_its_work_and_the_next_one_has_the_present_weights(cluster: Any, tmp_path: Path) -> None:
    weights, marks = tmp_path / "weights", tmp_path / "marks"
    marks.mkdir()
    later = ChainEngine(processes=tuple(random_process(seed) for seed in range(20, 28)))
    later.save(weights)
    asked, spec = requests(40), Spec("engine", "ray_engines:Marking", {"folder": str(marks), "seconds": 0.1})
    assert later.generate(asked) != ChainEngine().generate(asked)
    with RayEngine(inner=spec, actors=1, piece=4) as engine:
        engine.load(ModelRef(str(weights), "later"))
        coming = engine.stream(asked)
        came = [next(coming)]
        [killed] = calls(marks)
        os.kill(killed, signal.SIGKILL)
        came += coming
        assert [answer for _, answer in sorted(came)] == later.generate(asked)
        assert sum(engine.trouble.values()) in (1, 2)
        assert engine.generate(asked) == later.generate(asked)
        assert engine.model_ref == ModelRef(str(weights), "later")
        assert len(calls(marks)) == 2


@whole
def test_a_copy_takes_the_actors_over(cluster: Any, tmp_path: Path) -> None:
    asked, alone = requests(8), ChainEngine()
    with RayEngine(inner=Spec("engine", "ray_engines:Marking", {"folder": str(tmp_path)}), actors=1) as engine:
        assert engine.generate(asked) == alone.generate(asked)
        [process] = calls(tmp_path)
        twin = copy.copy(engine)
        assert twin.generate(asked) == alone.generate(asked)
        assert set(calls(tmp_path)) == {process}
        assert twin.model_ref == engine.model_ref
        twin.close()
        assert engine.generate(asked) == alone.generate(asked)
        assert len(calls(tmp_path)) == 2


def test_a_killed_node_costs_its_work_and_another_takes_its_place(cluster: Any, tmp_path: Path) -> None:
    weights, marks = tmp_path / "weights", tmp_path / "marks"
    marks.mkdir()
    later = ChainEngine(processes=tuple(random_process(seed) for seed in range(20, 28)))
    later.save(weights)
    asked, spec = requests(40), Spec("engine", "ray_engines:Marking", {"folder": str(marks), "seconds": 0.1})
    with RayEngine(inner=spec, piece=4) as engine:
        while len(calls(marks)) < 2:
            engine.generate(asked[:8])
            time.sleep(0.5)
        coming = engine.stream(asked)
        came = [next(coming)]
        cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
        came += coming
        assert [answer for _, answer in sorted(came)] == ChainEngine().generate(asked)
        assert engine.trouble
        engine.load(ModelRef(str(weights), "later"))  # while one actor waits for room
        assert engine.generate(asked) == later.generate(asked)
        known = set(calls(marks))
        cluster.add_node(num_cpus=1)
        until = time.monotonic() + 300
        while not set(calls(marks)) - known and time.monotonic() < until:
            assert engine.generate(asked[:8]) == later.generate(asked[:8])
            time.sleep(0.5)
        assert set(calls(marks)) - known


@whole
def test_what_kills_every_actor_is_given_up(cluster: Any) -> None:
    with RayEngine(inner=Spec("engine", "ray_engines:Dying", {"at": 7}), actors=1, piece=4) as engine:
        with pytest.raises(EngineError, match=r"lost 4 times.*4 actor died.*--engine.piece"):
            engine.generate([Request((5, 1), 1, 5, seed) for seed in (1, 7)])
        good = [Request((5, 1), 1, 5, 1)]
        assert engine.generate(good) == ChainEngine().generate(good)
    with pytest.raises(EngineError, match=r"An actor was lost 4 times while it started, last: .*No other is left"):
        RayEngine(inner="ray_engines:Dying", actors=1)


def test_errors_of_the_engine_come_through(cluster: Any) -> None:
    with RayEngine(inner="ray_engines:Broken", actors=1) as engine:
        with pytest.raises(EngineError, match=r"^this and that$"):
            engine.generate([Request((5, 1), 1, 5, 1)])
        with pytest.raises(EngineError, match=r"The engine Broken failed: ZeroDivisionError: by nothing"):
            engine.generate([Request((5, 1), 1, 5, 2)])
        assert not engine.trouble


@whole
def test_without_room_patience_ends(cluster: Any, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(EngineError, match=r"No actor could start for 0.5 s. Each takes 3 CPU.*has 2 CPU in all"):
        RayEngine(inner="chain", actors=1, cpus=3.0, patience=0.5)
    assert "room for 0 of 1 actors (each takes 3 CPU)" in caplog.text


@whole
def test_a_run_samples_with_a_real_model(cluster: Any, tmp_path: Path) -> None:
    """The model is loaded in the actors; what is sampled is what `hf` samples here."""
    from gpo.engines.hf import HFEngine

    model = str(Path(__file__).parents[2] / "src/gpo/reasoner/weights")
    with RayEngine(model, actors=1, inner=Spec("engine", "hf", {"device": "cpu"})) as engine:
        start = tuple(engine.tokenizer.encode("1 + 1", add_special_tokens=False))
        asked = [Request(start, 4, 12, seed) for seed in range(3)]
        assert engine.generate(asked) == HFEngine(model, device="cpu").generate(asked)
        assert engine.repeatable
        assert engine.model_ref.source == model
    with pytest.raises(EngineError, match="There is no model at '/nowhere'"):
        RayEngine("/nowhere", actors=1)


def test_a_component_in_a_component() -> None:
    from gpo.config.options import spec_from_options

    left = {"engine": "ray", "engine.actors": "3", "engine.inner": "chain", "engine.inner.padding": "2"}
    spec = spec_from_options("engine", "engine", {"name": "hf"}, left)
    assert not left
    assert spec.settings == {"actors": 3, "inner": Spec("engine", "chain", {"padding": 2})}
    stored = spec.describe()
    assert stored["inner"]["name"] == "chain"
    assert stored["inner"]["padding"] == 2
    again = spec_from_options("engine", "engine", stored, {"engine.inner.padding": "3"})
    assert again.describe() == {**stored, "inner": {**stored["inner"], "padding": 3}}
    assert describe_component("engine", Spec("engine", "ray"))["inner"]["name"] == "hf"
    for wrong, message in (({"nothing": 1}, "setting of engine 'chain'"), ({"model": "x"}, "Give --engine.model")):
        name = "hf" if "model" in wrong else "chain"
        with pytest.raises(ConfigError, match=message):
            make("engine", "ray", inner=Spec("engine", name, wrong), model="reasoner")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"actors": 0}, "actors is 0"),
        ({"piece": 0}, "piece is 0"),
        ({"cpus": -1.0}, "cpus is -1"),
        ({"inner": "hf"}, "has no model"),
        ({"inner": "nothing"}, "Unknown engine 'nothing'"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RayEngine(**settings)


def test_without_ray_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingDependency, match=r"pip install 'gpo\[ray\]'"):
        RayEngine(inner="chain")


@pytest.mark.parametrize(
    ("address", "kind", "message"),
    [
        ("127.0.0.1:1", EngineError, "No Ray cluster answers at 127.0.0.1:1"),
        ("ray://127.0.0.1:10001", ConfigError, "is no address of a Ray cluster"),
        ("nonsense", ConfigError, "is no address of a Ray cluster"),
    ],
)
def test_an_address_without_a_cluster_is_refused_at_once(address: str, kind: Any, message: str) -> None:
    pytest.importorskip("ray", reason="needs Ray: pip install 'gpo[ray]'")
    from gpo.engines.cluster import _check_address

    with pytest.raises(kind, match=message):
        _check_address(address)


@whole
def test_a_run_on_actors_is_the_run_of_the_engine_alone(cluster: Any, tmp_path: Path) -> None:
    from dataclasses import replace

    from gpo.experiment.run import Run
    from toy import toy_config

    chain = Spec("engine", "chain", {"padding": 2})
    runs = []
    for name, engine in (
        ("alone", chain),
        ("actors", Spec("engine", "ray", {"inner": chain, "actors": 1, "piece": 32})),
    ):
        run = Run(tmp_path / name, replace(toy_config(), engine=engine, arms={"plain": "none"}, piece_seconds=1.0))
        run.rollout()
        run.train("plain")
        run.evaluate("plain")
        run.engine.release()
        runs.append(run)
    alone, actors = runs
    for file in ("rollouts.jsonl", "arms/plain/model/chain.json", "evaluation/plain.jsonl"):
        assert (alone.files.path / file).read_bytes() == (actors.files.path / file).read_bytes()
