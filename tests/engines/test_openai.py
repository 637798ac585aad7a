"""The engine for servers, against a real HTTP server on loopback: the contract, and everything that may go wrong."""

from __future__ import annotations

import gzip
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fake_server import EOS, VOCABULARY, FakeServer, Fault, altered, cut, half, serving, silent, status, text
from gpo.engines.calls import longest
from gpo.engines.completions import Ask
from gpo.engines.contract import CHECKS, Check, check_engine, check_probabilities
from gpo.engines.openai import OpenAIEngine
from gpo.errors import EngineError
from gpo.types import Completion, Request

CONTEXTS = [(5, 9, 14, 3), (5, 9), (5, 9, 14) * 20]
REQUESTS = [Request((5, 9, 14), 3, 6, 1), Request((7, 8), 2, 9, 2), Request((5, 9), 4, 4, 3)]
NOWHERE = "http://127.0.0.1:9"
QUICK = {"timeout": 2.0, "patience": 5.0}


@pytest.fixture
def engine(fake: FakeServer, served_model: Path) -> Iterator[OpenAIEngine]:
    with OpenAIEngine(str(served_model), fake.url, **QUICK) as opened:
        yield opened


def right(fake: FakeServer, requests: list[Request] = REQUESTS) -> list[list[Completion]]:
    """What a server without faults is asked for the same seeds."""
    faults, fake.faults, always, fake.always = fake.faults, [], fake.always, None
    with OpenAIEngine(fake.root, fake.url, **QUICK) as other:
        answers = other.generate(requests, logprobs=True)
    fake.faults, fake.always = faults, always
    return answers


def test_contract(fake: FakeServer, served_model: Path) -> None:
    fake.adapters_allowed = False
    check_engine(OpenAIEngine(str(served_model), fake.url, samples_per_request=50), CONTEXTS)


@pytest.mark.parametrize(
    "check", [check for check in CHECKS if check is not check_probabilities], ids=lambda check: check.__name__
)
def test_contract_of_single_samples(fake: FakeServer, served_model: Path, check: Check) -> None:
    with OpenAIEngine(str(served_model), fake.url) as engine:
        check(engine, CONTEXTS)


@pytest.mark.parametrize("adapters", [False, True])
def test_a_server_with_adapters_is_not_asked_for_an_echo(fake: FakeServer, served_model: Path, adapters: bool) -> None:
    fake.adapters_allowed = adapters
    with OpenAIEngine(str(served_model), fake.url) as engine:
        [[completion]] = engine.generate([Request((5, 9), 1, 6, 0)], logprobs=True)
        assert engine.logprobs([(5, 9)], [completion.token_ids]) == [pytest.approx(completion.logprobs)]
    assert any(body.get("echo") for body in fake.bodies()) is not adapters


def test_requests_are_sent_one_by_one_with_seeds_of_their_own(fake: FakeServer, engine: OpenAIEngine) -> None:
    engine.generate(REQUESTS)
    bodies = fake.bodies()
    assert sorted(body["prompt"] for body in bodies) == sorted([[5, 9, 14]] * 3 + [[7, 8]] * 2 + [[5, 9]] * 4)
    assert len({body["seed"] for body in bodies}) == 9
    assert all(0 <= body["seed"] < 2**62 for body in bodies)
    assert {body["n"] for body in bodies} == {1}


def test_nothing_of_the_server_s_own_sampling_defaults_is_left(fake: FakeServer, engine: OpenAIEngine) -> None:
    engine.generate(REQUESTS[:1], temperature=0.7)
    expected = {
        "temperature": 0.7,
        "top_p": 1.0,
        "top_k": -1,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "stop_token_ids": [EOS],
        "return_token_ids": True,
    }
    assert all(expected.items() <= body.items() for body in fake.bodies())


def test_no_more_than_so_many_requests_are_in_flight(fake: FakeServer, served_model: Path) -> None:
    fake.always = lambda *_: time.sleep(0.02)
    with OpenAIEngine(str(served_model), fake.url, in_flight=3, **QUICK) as engine:
        engine.generate([Request((5, 9), 12, 3, 0)])
    assert 2 <= fake.busiest <= 3


def test_answers_come_as_they_are_ready(fake: FakeServer, engine: OpenAIEngine) -> None:
    fake.always = lambda handler, body, _: time.sleep(0.3) if body["prompt"] == [5, 9, 14] else None
    order = [position for position, _ in engine.stream(REQUESTS)]
    assert order[-1] == 0
    assert sorted(order) == [0, 1, 2]


def first(change: Callable[[dict[str, Any]], Any]) -> Fault:
    return altered(lambda answer: change(answer["choices"][0]))


def repeated() -> Fault:
    """The first answer again and again."""
    answers: list[dict[str, Any]] = []

    def change(answer: dict[str, Any]) -> None:
        answers.append(dict(answer))
        answer.update(answers[0])

    return altered(change)


TOKENS, NATS = "a wrong number of tokens", "log-probabilities that are none"
FAULTS: dict[str, tuple[Fault, str]] = {
    "500": (status(500), "HTTP 500"),
    "429": (status(429), "HTTP 429"),
    "429 with Retry-After": (status(429, Retry_After="0.05"), "HTTP 429"),
    "503 with a date": (status(503, Retry_After="Wed, 21 Oct 2015 07:28:00 GMT"), "HTTP 503"),
    "503 with garbage": (status(503, Retry_After="soon"), "HTTP 503"),
    "garbage": (text(b"\xff{not json"), "no JSON"),
    "no object": (text(b"[]"), "JSON without choices"),
    "no gzip": (text(b"no gzip", Content_Encoding="gzip"), "no JSON"),
    "deep": (text(b"[" * 100_000), "no JSON"),
    "nothing": (text(b""), "JSON without choices"),
    "blanks without end": (text(gzip.compress(b" " * (16 << 20)), Content_Encoding="gzip"), "an answer that is too"),
    "404": (status(404), "HTTP 404"),
    "half a body": (half, "cut connection"),
    "half a body without its length": (text(b'{"choices": [', Content_Length="13"), "no JSON"),
    "cut": (cut, "cut connection"),
    "silence": (silent(2.5), "time-out"),
    "unknown tokens": (first(lambda c: c["token_ids"].__setitem__(0, VOCABULARY)), "unknown token ids"),
    "negative tokens": (first(lambda c: c["token_ids"].__setitem__(0, -1)), "unknown token ids"),
    "texts for tokens": (first(lambda c: c["token_ids"].__setitem__(0, "w5")), "no token ids"),
    "no tokens": (first(lambda c: c.update(token_ids=None)), "no token ids"),
    "empty": (first(lambda c: c.update(token_ids=[])), TOKENS),
    "too many tokens": (first(lambda c: c.update(token_ids=[5] * 10)), TOKENS),
    "goes on after the end": (
        first(lambda c: c.update(token_ids=[EOS, 5], finish_reason="stop")),
        TOKENS,
    ),
    "too few tokens": (first(lambda c: c.update(token_ids=[5], finish_reason="length")), "an end that is none"),
    "an end that is none": (first(lambda c: c.update(token_ids=[5, 6], finish_reason="stop")), "an end that is none"),
    "aborted": (first(lambda c: c.update(finish_reason="abort")), "an unknown finish reason"),
    "another prompt": (first(lambda c: c.update(prompt_token_ids=[5])), "an answer to another prompt"),
    "no prompt": (first(lambda c: c.pop("prompt_token_ids")), "an answer to another prompt"),
    "another model": (altered(lambda a: a.update(model="other")), "an answer of another model"),
    "a list of models": (altered(lambda a: a.update(model=["fake"])), "an answer of another model"),
    "no choices": (altered(lambda a: a.update(choices=[])), "a wrong number of choices"),
    "choices of nothing": (altered(lambda a: a.update(choices=[None])), "a wrong number of choices"),
    "a choice twice": (altered(lambda a: a.update(choices=a["choices"] * 2)), "a wrong number of choices"),
    "an answer that came before": (repeated(), "an answer"),
    "few log-probabilities": (first(lambda c: c["logprobs"]["token_logprobs"].pop()), "not one log-probability"),
    "no log-probabilities": (first(lambda c: c.update(logprobs=None)), "not one log-probability"),
    "NaN": (
        first(lambda c: c["logprobs"]["token_logprobs"].__setitem__(0, float("nan"))),
        NATS,
    ),
    "above 0": (
        first(lambda c: c["logprobs"]["token_logprobs"].__setitem__(0, 0.5)),
        NATS,
    ),
    "an integer that is no float": (
        first(lambda c: c["logprobs"]["token_logprobs"].__setitem__(0, -(10**400))),
        NATS,
    ),
    "far below 0": (
        first(lambda c: c["logprobs"]["token_logprobs"].__setitem__(0, -1e30)),
        NATS,
    ),
    "false": (
        first(lambda c: c["logprobs"]["token_logprobs"].__setitem__(0, False)),
        NATS,
    ),
    "a text": (
        first(lambda c: c["logprobs"]["token_logprobs"].__setitem__(0, "-1")),
        NATS,
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_every_rollout_is_right_whatever_goes_wrong(fake: FakeServer, engine: OpenAIEngine, name: str) -> None:
    fault, kind = FAULTS[name]
    fake.faults = [fault, fault] if name != "silence" else [fault]
    assert engine.generate(REQUESTS, logprobs=True) == right(fake)
    assert any(each.startswith(kind) for each in engine.trouble), engine.trouble
    assert not fake.faults


@pytest.mark.parametrize("name", [name for name in FAULTS if name not in ("silence", "an answer that came before")])
def test_what_never_gets_better_is_one_clear_error(fake: FakeServer, served_model: Path, name: str) -> None:
    fake.always, kind = FAULTS[name]
    with (
        OpenAIEngine(str(served_model), fake.url, timeout=2.0, patience=0.1, in_flight=2) as engine,
        pytest.raises(EngineError, match="What is finished is kept") as caught,
    ):
        engine.generate(REQUESTS, logprobs=True)
    assert kind in str(caught.value)
    assert fake.url in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_silent_server_is_given_up(fake: FakeServer, served_model: Path) -> None:
    fake.always = silent(1.0)
    message = r"has not answered a request for 0\.[2-9] s \(2 attempts, last: time-out\)"
    with (
        OpenAIEngine(str(served_model), fake.url, timeout=0.2, patience=0.2) as engine,
        pytest.raises(EngineError, match=message),
    ):
        engine.generate(REQUESTS[:1])


def test_no_answer_that_was_asked_for_is_too_long() -> None:
    ids, word = [128_000] * 4096, "\u6f22" * 8
    logprobs = {
        "text_offset": ids,
        "token_logprobs": [-12.345678901234567] * 4096,
        "tokens": [word] * 4096,
        "top_logprobs": [{word: -12.345678901234567, word + "x": -1.2345678901234567e-05}] * 4096,
    }
    choice = {"text": word * 4096, "logprobs": logprobs, "token_ids": ids, "prompt_token_ids": ids}
    body = Ask(0, 0, 1024, tuple(ids), 4096, 0).body("fake", (), 1.0, True)
    assert 1024 * len(json.dumps(choice)) < longest(body)
    assert longest(body | {"n": 1}) < 20_000_000
    assert longest(None) < 20_000_000


def test_a_server_that_repeats_itself_is_given_up(fake: FakeServer, engine: OpenAIEngine) -> None:
    fake.always = repeated()
    with pytest.raises(EngineError, match=r"an answer that came before|an answer to another prompt"):
        engine.generate(REQUESTS)


def test_retry_after_is_honoured(fake: FakeServer, engine: OpenAIEngine) -> None:
    fake.faults = [status(429, Retry_After="0.4")]
    began = time.monotonic()
    engine.generate([Request((5, 9), 1, 3, 0)])
    assert time.monotonic() - began > 0.4


def test_what_is_refused_is_not_asked_again(fake: FakeServer, engine: OpenAIEngine) -> None:
    fake.always = status(400)
    with pytest.raises(EngineError, match=r"refuses with HTTP 400: .*on purpose"):
        engine.generate([Request((5, 9), 1, 3, 0)])
    assert len(fake.bodies()) == 1


def test_trouble_is_told(fake: FakeServer, engine: OpenAIEngine, caplog: pytest.LogCaptureFixture) -> None:
    fake.faults = [status(503), text(b"{")]
    with caplog.at_level(logging.WARNING, "gpo"):
        engine.generate(REQUESTS)
    fails, told = [record.getMessage() for record in caplog.records]
    assert fails in (
        f'{fake.url}: HTTP 503: {{"error": {{"message": "on purpose"}}}}. It is asked again, for 5 s at most.',
        f"{fake.url}: no JSON: {{. It is asked again, for 5 s at most.",
    )
    assert told == "Not answered as it should be, and asked again: 1 HTTP 503, 1 no JSON."
    caplog.clear()
    engine.generate(REQUESTS)
    assert not caplog.records


def test_several_servers_share_the_work_and_a_dead_one_is_left_out(fake: FakeServer, served_model: Path) -> None:
    other = FakeServer(str(served_model))
    with serving(other):
        engine = OpenAIEngine(str(served_model), f"{fake.url}, {other.url}/v1/", **QUICK)
        expected = engine.generate(REQUESTS)
        assert min(len(fake.bodies()), len(other.bodies())) > 0
        assert len(fake.bodies()) + len(other.bodies()) == 9
    with engine:
        assert engine.generate(REQUESTS) == expected
        assert engine.trouble["no connection"] + engine.trouble["cut connection"] > 0


def test_a_server_that_is_away_at_the_beginning_is_left_out(fake: FakeServer, served_model: Path) -> None:
    with OpenAIEngine(str(served_model), f"{NOWHERE},{fake.url}", **QUICK) as engine:
        assert engine.generate(REQUESTS, logprobs=True) == right(fake)
    with pytest.raises(EngineError, match=rf"No server answers at {NOWHERE} \(no connection\). Start it"):
        OpenAIEngine(str(served_model), NOWHERE, patience=0.1)


def test_a_server_that_restarts_is_waited_for(fake: FakeServer, served_model: Path) -> None:
    with serving(FakeServer(str(served_model))) as going:
        port = going.server.server_port
        engine = OpenAIEngine(str(served_model), going.url, timeout=2.0, patience=20.0)
        expected = engine.generate(REQUESTS)
    stop = threading.Event()

    def come_back() -> None:
        stop.wait(0.2)
        with serving(FakeServer(str(served_model)), port):
            stop.wait(20)

    thread = threading.Thread(target=come_back)
    thread.start()
    with engine:
        assert engine.generate(REQUESTS) == expected
        assert engine.trouble
    stop.set()
    thread.join()


BAD: dict[str, Fault] = {
    **{str(code): status(code) for code in (302, 400, 401, 403, 404)},
    "page": text(b"<html>"),
    "another model": FAULTS["another model"][0],
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_server_rests_while_others_answer(
    fake: FakeServer, served_model: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    with serving(FakeServer(str(served_model))) as other:
        with OpenAIEngine(str(served_model), f"{other.url},{fake.url}", **QUICK) as engine:
            other.always = BAD[name]
            assert engine.generate(REQUESTS, logprobs=True) == right(fake)
            assert engine.trouble
        warnings = [record.getMessage() for record in caplog.records if other.url in record.getMessage()]
        assert len(warnings) == 1
        assert warnings[0].endswith("It is asked again; others have its work.")


def test_what_every_server_refuses_is_told(fake: FakeServer, served_model: Path) -> None:
    with serving(FakeServer(str(served_model))) as other:
        fake.always = other.always = status(400)
        with (
            OpenAIEngine(str(served_model), f"{other.url},{fake.url}", **QUICK) as engine,
            pytest.raises(EngineError, match=r"refuses with HTTP 400: .*on purpose"),
        ):
            engine.generate([Request((5, 9), 1, 3, 0)])
        assert len(fake.bodies()) == len(other.bodies()) == 1


@pytest.mark.parametrize("name", ["404", "garbage", "no object", "nothing", "no gzip"])
def test_what_a_gateway_says_meanwhile_is_waited_out(fake: FakeServer, served_model: Path, name: str) -> None:
    fault, kind = FAULTS[name]
    pages = [b"<html>"] * 6
    models = fake.models
    with OpenAIEngine(str(served_model), fake.url, in_flight=1, **QUICK) as engine:
        fake.faults = [fault] * 6
        fake.models = lambda: pages.pop() if pages else models()  # type: ignore[assignment,method-assign]
        assert engine.generate(REQUESTS, logprobs=True) == right(fake)
        assert engine.trouble[kind] >= 6
        assert engine.trouble["no JSON"] >= 6


def test_a_server_is_asked_once_more_before_it_is_given_up(
    fake: FakeServer, served_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gpo.engines.connection.REST", (60.0, 60.0))
    request = [Request((5, 9), 1, 3, 0)]
    with OpenAIEngine(str(served_model), fake.url, patience=0.2) as engine:
        fake.faults = [status(500)]
        assert engine.generate(request)
        fake.always = status(500)
        with pytest.raises(EngineError, match=r"for 0\.[2-9] s \(2 attempts, last: HTTP 500: .*on purpose"):
            engine.generate(request)


def test_a_server_may_have_failed_very_often(fake: FakeServer, engine: OpenAIEngine) -> None:
    assert engine._connection is not None
    engine._connection.servers[0].failures = 5000
    fake.faults = [status(500)]
    assert engine.generate(REQUESTS, logprobs=True) == right(fake)


def test_an_end_that_is_no_token_is_not_looked_at(fake: FakeServer, engine: OpenAIEngine) -> None:
    fake.always = first(lambda c: c.update(matched_stop=[1]))
    assert engine.generate(REQUESTS, logprobs=True) == right(fake)
    assert not engine.trouble


def test_what_breaks_the_reading_is_an_answer_that_cannot_be_used(
    engine: OpenAIEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gpo.engines.openai.read_sampled", lambda *_, **__: {}["key"])
    with pytest.raises(EngineError, match=r"answered 4 times .* an answer that cannot be read \(KeyError: 'key'\)"):
        engine.generate(REQUESTS)


def test_a_server_that_is_still_to_come_is_waited_for(served_model: Path, caplog: pytest.LogCaptureFixture) -> None:
    with serving(FakeServer(str(served_model))) as going:
        port = going.server.server_port

    def come() -> None:
        while not caplog.records and not stop.wait(0.02):
            pass
        with serving(FakeServer(str(served_model)), port):
            stop.wait(20)

    stop = threading.Event()
    thread = threading.Thread(target=come)
    thread.start()
    with OpenAIEngine(str(served_model), f"http://127.0.0.1:{port}", timeout=2.0, patience=20.0) as engine:
        assert engine.generate(REQUESTS)
    stop.set()
    thread.join()
    [record] = caplog.records
    assert record.getMessage() == (
        f"http://127.0.0.1:{port}: no connection. It is asked again, for 20 s at most. Does it run, and is the address "
        "right (--engine.base_url)?"
    )


def test_silence_at_the_beginning_is_told(
    fake: FakeServer, served_model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("gpo.engines.connection.SLOW", 0.05)
    models = fake.models
    fake.models = lambda: time.sleep(0.2) or models()  # type: ignore[func-returns-value,method-assign]
    with OpenAIEngine(str(served_model), fake.url, **QUICK):
        assert caplog.messages == [f"Waiting for {fake.url}."]


def test_a_loop_that_hangs_does_not_keep_what_closes_it(engine: OpenAIEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpo.engines.connection.CLOSING", 0.01)
    connection = engine._connection
    assert connection is not None
    connection._loop.call_soon_threadsafe(time.sleep, 0.3)
    engine.close()
    assert connection._thread.is_alive()
    connection._thread.join()
