"""Which model a server serves, whether it is the one that is meant, its weights, and the key."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from copy import copy
from pathlib import Path
from typing import Any

import pytest

from fake_server import NAMES, FakeServer, save_model, serving, status, words
from gpo.config.components import made
from gpo.engines.endpoints import is_here
from gpo.engines.openai import OpenAIEngine
from gpo.engines.served import _probe
from gpo.errors import ConfigError, EngineError, MissingDependency
from gpo.types import ModelRef, Request

REQUEST = Request((5, 9, 14), 4, 8, 1)
SECRET = "sk-a-very-secret-key"
QUICK: dict[str, Any] = {"timeout": 2.0, "patience": 1.0}


@pytest.fixture
def engine(fake: FakeServer, served_model: Path) -> Iterator[OpenAIEngine]:
    with OpenAIEngine(str(served_model), fake.url, **QUICK) as opened:
        yield opened


def adapters(path: Path, base: Path, seed: str) -> ModelRef:
    path.mkdir(parents=True)
    (path / "adapter_config.json").write_text(f'{{"base_model_name_or_path": "{base}"}}')
    (path / "seed").write_text(seed)
    return ModelRef(str(path), path.name)


def checkpoint(path: Path, seed: str) -> ModelRef:
    save_model(path)
    (path / "seed").write_text(seed)
    return ModelRef(str(path), path.name)


def sampled_with(seed: str, served_model: Path, request: Request = REQUEST) -> Any:
    with (
        serving(FakeServer(str(served_model), seed=seed)) as other,
        OpenAIEngine(str(served_model), other.url) as engine,
    ):
        return engine.generate([request])


def test_the_name_of_the_model_is_the_server_s(fake: FakeServer, served_model: Path, tmp_path: Path) -> None:
    with OpenAIEngine(str(served_model), fake.url + "/v1") as engine:
        assert engine.model_ref == ModelRef(str(served_model), str(served_model))
        assert engine.context_length == 64
        engine.generate([REQUEST])
    assert {body["model"] for body in fake.bodies()} == {"fake"}
    with pytest.raises(EngineError, match=r"has no model 'other'. It has: fake. Give one of these"):
        OpenAIEngine(str(served_model), fake.url, served_model="other")
    elsewhere = save_model(tmp_path / "elsewhere")
    with pytest.raises(EngineError, match=r"serves fake, expected .*elsewhere. Start it with that model; or"):
        OpenAIEngine(str(elsewhere), fake.url)
    with OpenAIEngine(str(elsewhere), fake.url, served_model="fake") as engine:
        assert engine.generate([REQUEST])


def test_a_model_that_is_called_otherwise_is_told(
    fake: FakeServer, served_model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fake.root = "somebody/else"
    with caplog.at_level(logging.WARNING, "gpo"), OpenAIEngine(str(served_model), fake.url):
        pass
    assert f"calls its model somebody/else; it is taken for {served_model}" in caplog.text
    fake.context = 20
    fake.root = "somebody/fake"
    caplog.clear()
    with OpenAIEngine(str(served_model), fake.url) as engine:
        assert engine.context_length == 20
    assert not caplog.records


def test_another_tokenizer_is_refused(fake: FakeServer, served_model: Path) -> None:
    fake.tokenizer = words(NAMES[::-1])
    with pytest.raises(
        EngineError, match=r"The tokenizer of http.* is another one: it makes \d+ tokens .* Give --model"
    ):
        OpenAIEngine(str(served_model), fake.url)
    with pytest.raises(EngineError, match="is another one"):
        OpenAIEngine(str(served_model), fake.url, tokenizer=words(NAMES[1:]))


def test_a_server_without_token_ids_is_refused(fake: FakeServer, served_model: Path) -> None:
    fake.gives_ids = False
    with pytest.raises(EngineError, match=r"answers without token ids.* Take a server .* return_token_ids"):
        OpenAIEngine(str(served_model), fake.url)


def test_log_probabilities_of_another_temperature_are_refused(fake: FakeServer, served_model: Path) -> None:
    fake.tempered = False
    with OpenAIEngine(str(served_model), fake.url) as engine:
        assert engine.generate([REQUEST], temperature=0.7)
        assert engine.generate([REQUEST], logprobs=True)
        assert engine.logprobs([(5, 9)], [(3, 4)], temperature=0.0)
        for ask in (
            lambda: engine.generate([REQUEST], temperature=0.7, logprobs=True),
            lambda: engine.logprobs([(5, 9)], [(3, 4)], temperature=0.7),
        ):
            with pytest.raises(EngineError, match="Start vLLM with --logprobs-mode processed_logprobs"):
                ask()


def test_a_server_that_cannot_score_says_so(fake: FakeServer, engine: OpenAIEngine) -> None:
    def forget(handler: Any, body: Any, answer: Any) -> bool:
        answer["choices"][0]["logprobs"]["top_logprobs"] = [{}]
        return False

    fake.always = forget
    with pytest.raises(EngineError, match=r"no log-probability of the token .* \(logprob_token_ids\)"):
        engine.logprobs([(5, 9)], [(3, 4)], temperature=0.7)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("127.0.0.1:8000", "is no base URL"),
        ("ftp://host", "is no base URL"),
        ("", "Where is the server"),
        (" , ", "Where is the server"),
        ("http://user:pass@host:8000", "holds a user, a password"),
        ("http://host:8000?key=pass", "holds a user, a password"),
    ],
)
def test_bad_addresses_are_refused(served_model: Path, url: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        OpenAIEngine(str(served_model), url)
    assert "pass" not in str(caught.value).replace("password", "")


@pytest.mark.parametrize("field", ["in_flight", "samples_per_request", "timeout", "patience"])
def test_bad_settings_are_refused(served_model: Path, field: str) -> None:
    with pytest.raises(ConfigError, match=f"{field} is 0, expected a number above 0"):
        OpenAIEngine(str(served_model), **{field: 0})


def test_a_model_is_needed_and_is_no_object(served_model: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Which model do the servers serve"):
        OpenAIEngine()
    with pytest.raises(EngineError, match="cannot serve it, a model in memory"):
        OpenAIEngine(ModelRef(object(), "it"))
    with pytest.raises(EngineError, match="There is no configuration of a model"):
        OpenAIEngine(str(tmp_path), tokenizer=words())


@pytest.mark.parametrize("told", [-1, 0, True, "64", None])
def test_a_context_that_is_none_is_unknown(fake: FakeServer, served_model: Path, told: Any) -> None:
    fake.context = told
    [base] = fake.models()["data"]
    fake.context, fake.models = 64, lambda: {"data": [base]}  # type: ignore[method-assign]
    with OpenAIEngine(str(served_model), fake.url, **QUICK) as engine:
        assert engine.context_length == 64


def test_a_model_that_is_listed_twice_is_one(fake: FakeServer, served_model: Path) -> None:
    fake.root = served_model.name
    [base] = fake.models()["data"]
    fake.models = lambda: {"data": [base, base]}  # type: ignore[method-assign]
    with OpenAIEngine(str(served_model), fake.url, **QUICK) as engine:
        assert engine.generate([REQUEST])


def test_a_text_for_the_smallest_context_ends() -> None:
    text, _ = _probe(words(), 1)
    assert len(text) < 2


def test_no_proxy_leads_to_this_machine(fake: FakeServer, served_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("all_proxy", "no_proxy", "HTTP_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", f"http://user:{SECRET}@127.0.0.1:9/")
    with OpenAIEngine(str(served_model), fake.url, **QUICK) as engine:
        assert engine.generate([REQUEST])
    with pytest.raises(EngineError, match=r"gpo.invalid:80 through the proxy 127.0.0.1:9 \(no connection\)") as caught:
        OpenAIEngine(str(served_model), "http://gpo.invalid:80", timeout=2.0, patience=0.1)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "here"),
    [
        ("127.0.0.1:8", True),
        ("127.3.0.1", True),
        ("localhost:8", True),
        ("0.0.0.0:8", True),
        ("[::1]:8", True),
        ("10.0.0.1", False),
        ("localhost.org", False),
    ],
)
def test_addresses_of_this_machine_are_known(url: str, here: bool) -> None:
    assert is_here(f"http://{url}/v1") is here


def test_another_service_is_told_from_a_server(served_model: Path, fake: FakeServer) -> None:
    fake.models = lambda: {"hello": 1}  # type: ignore[method-assign]
    with pytest.raises(EngineError, match=r"is no server of /v1/completions \(/v1/models lists no models\)"):
        OpenAIEngine(str(served_model), fake.url)
    with pytest.raises(EngineError, match=r"elsewhere is no server of /v1/completions \(HTTP 404: .*Not Found.*Give"):
        OpenAIEngine(str(served_model), fake.url + "/elsewhere")


def test_the_key_is_sent_and_never_shown(
    fake: FakeServer, served_model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fake.key = SECRET
    with pytest.raises(EngineError, match=r"refuses with HTTP 401. Put the key into .* \(OPENAI_API_KEY\)"):
        OpenAIEngine(str(served_model), fake.url)
    monkeypatch.setenv("OPENAI_API_KEY", "wrong-" + SECRET)
    with pytest.raises(EngineError, match="HTTP 401: it does not take this key") as caught:
        OpenAIEngine(str(served_model), fake.url)
    assert SECRET not in str(caught.value)
    monkeypatch.setenv("OPENAI_API_KEY", SECRET + "\n")
    with caplog.at_level(logging.DEBUG), OpenAIEngine(str(served_model), fake.url) as engine:
        assert engine.generate([REQUEST])
        assert SECRET not in repr(engine)
        fake.always = status(400)

        def say_it(handler: Any, body: Any, answer: Any) -> bool:
            handler.send(400, {"error": f"\x1b[31m{handler.headers['Authorization']}\n"})
            return True

        fake.always = say_it
        with pytest.raises(EngineError, match=r"Bearer \*\*\*") as caught:
            engine.generate([REQUEST])
    assert str(caught.value).isprintable()
    assert SECRET not in caplog.text + str(caught.value)


def test_the_key_may_be_in_another_variable(
    fake: FakeServer, served_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.key = SECRET
    with pytest.raises(ConfigError, match=r"MY_KEY, which .* names, holds no"):
        OpenAIEngine(str(served_model), fake.url, key_variable="MY_KEY")
    monkeypatch.setenv("MY_KEY", SECRET)
    with OpenAIEngine(str(served_model), fake.url, key_variable="MY_KEY") as engine:
        assert engine.generate([REQUEST])
    monkeypatch.setenv("MY_KEY", "söcret")
    with pytest.raises(ConfigError, match="other signs than ASCII") as caught:
        OpenAIEngine(str(served_model), fake.url, key_variable="MY_KEY")
    assert "söcret" not in str(caught.value)


def test_a_missing_package_says_how_to_install_it(served_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "httpx2", None)
    with pytest.raises(MissingDependency, match=r"pip install 'gpo\[server\]'"):
        OpenAIEngine(str(served_model))


def test_adapters_are_loaded_under_a_name_of_each_version(
    fake: FakeServer, engine: OpenAIEngine, served_model: Path, tmp_path: Path
) -> None:
    first, second = (adapters(tmp_path / name, served_model, name) for name in ("one", "two"))
    base = engine.generate([REQUEST])
    for ref in (first, second):
        engine.load(ref)
        assert engine.model_ref is ref
        assert engine.generate([REQUEST]) == sampled_with(ref.name, served_model) != base
        [name] = fake.adapters
    names = {body["model"] for body in fake.bodies()} - {"fake"}
    assert len(names) == 2
    assert fake.paths().count("/reset_prefix_cache") == 2
    engine.load(ModelRef(str(served_model), "before"))
    assert not fake.adapters
    assert engine.generate([REQUEST]) == base
    engine.load(second)
    assert fake.adapters == {name: "two"}
    assert not engine.trouble
    engine.close()
    assert not fake.adapters


def test_adapters_alone_name_their_model(fake: FakeServer, served_model: Path, tmp_path: Path) -> None:
    ref = adapters(tmp_path / "one", served_model, "one")
    words().save_pretrained(tmp_path / "one")
    with OpenAIEngine(ref.source, fake.url) as engine:
        assert engine.generate([REQUEST]) == sampled_with("one", served_model)
    (tmp_path / "one" / "adapter_config.json").write_text("{}")
    with pytest.raises(EngineError, match="does not say which model its adapters are for"):
        OpenAIEngine(ref.source, fake.url)


def test_whole_checkpoints_are_read_anew(
    fake: FakeServer, engine: OpenAIEngine, served_model: Path, tmp_path: Path
) -> None:
    base = engine.generate([REQUEST])
    ref = checkpoint(tmp_path / "trained", "trained")
    engine.load(ref)
    assert engine.generate([REQUEST]) == sampled_with("trained", served_model) != base
    assert fake.paths().count("/reset_prefix_cache") == 1
    engine.load(ModelRef(str(served_model), "before"))
    assert engine.generate([REQUEST]) == base
    engine.load(adapters(tmp_path / "one", served_model, "one"))
    assert fake.seed == "first"


def test_weights_that_another_process_has_left_are_replaced(
    fake: FakeServer, engine: OpenAIEngine, served_model: Path, tmp_path: Path
) -> None:
    base = engine.generate([REQUEST])
    with OpenAIEngine(str(served_model), fake.url) as other:
        other.load(checkpoint(tmp_path / "trained", "trained"))
    assert fake.seed == "trained"
    with OpenAIEngine(str(served_model), fake.url) as other:
        assert other.generate([REQUEST]) == base


@pytest.mark.parametrize("kind", ["adapters", "checkpoint"])
def test_a_server_that_was_started_again_gets_the_weights_again(
    served_model: Path, tmp_path: Path, fake: FakeServer, kind: str
) -> None:
    ref = checkpoint(tmp_path / "x", "x") if kind == "checkpoint" else adapters(tmp_path / "x", served_model, "x")
    with serving(FakeServer(str(served_model))) as before:
        port = before.server.server_port
        engine = OpenAIEngine(str(served_model), before.url, timeout=2.0, patience=10.0)
        engine.load(ref)
        expected = engine.generate([REQUEST])
    with serving(FakeServer(str(served_model)), port), engine:
        assert engine.generate([REQUEST]) == expected == sampled_with("x", served_model)


def test_a_server_that_takes_no_weights_says_what_to_do(
    fake: FakeServer, engine: OpenAIEngine, served_model: Path, tmp_path: Path
) -> None:
    fake.development = fake.adapters_allowed = False
    for ref, message in (
        (adapters(tmp_path / "one", served_model, "one"), r"404. Start vLLM with VLLM_ALLOW_RUNTIME_LORA_UPDATING=1"),
        (checkpoint(tmp_path / "two", "two"), r"404. Start vLLM with VLLM_SERVER_DEV_MODE=1.*--method.lora"),
        (ModelRef(object(), "it"), "cannot sample from it, a model in memory"),
        (ModelRef("/no/where", "nowhere"), "There is no model in /no/where"),
    ):
        with copy(engine) as other, pytest.raises(EngineError, match=message):
            other.load(ref)


def test_adapters_that_the_server_cannot_read_are_refused(
    fake: FakeServer, engine: OpenAIEngine, served_model: Path, tmp_path: Path
) -> None:
    ref = adapters(tmp_path / "one", served_model, "one")
    (tmp_path / "one" / "seed").unlink()
    with pytest.raises(EngineError, match=r"HTTP 400: .*No adapter found.* where it can read this directory"):
        engine.load(ref)


def test_closing_a_copy_leaves_the_engine_open(fake: FakeServer, engine: OpenAIEngine) -> None:
    expected = engine.generate([REQUEST])
    other = made("engine", engine)
    assert other.generate([REQUEST]) == expected
    other.close()
    other.close()
    copy(other).close()
    assert engine.generate([REQUEST]) == expected
    with pytest.raises(EngineError, match="closed"):
        other.generate([])
