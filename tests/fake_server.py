"""A real HTTP server on loopback, of a small deterministic language model, that misbehaves when it is told to.

It answers as vLLM does: /v1/models, /v1/completions with token ids, adapters, and what a server in development mode
has. Faults are taken from a list, one for each request of /v1/completions.
"""

from __future__ import annotations

import json
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from math import exp, log
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, PreTrainedTokenizerFast

VOCABULARY, EOS = 32, 1
NAMES = [f"w{index}" for index in range(2, VOCABULARY)]
Fault = Callable[["Handler", dict[str, Any], dict[str, Any]], bool]  # handler, request, right answer; True: answered


def words(names: Sequence[str] = NAMES) -> PreTrainedTokenizerFast:
    vocabulary = {"<pad>": 0, "<eos>": EOS} | {name: index for index, name in enumerate(names, 2)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")


def save_model(path: Path) -> Path:
    """A directory with tokenizer and configuration, and no weights: a server has those."""
    words().save_pretrained(path)
    shape = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "max_position_embeddings": 64}
    LlamaConfig(vocab_size=VOCABULARY, eos_token_id=EOS, **shape).save_pretrained(path)
    (path / "seed").write_text("first")
    return path


def seed_of(path: str) -> str:
    """What stands for the weights of a directory."""
    seed = Path(path, "seed")
    return seed.read_text() if seed.exists() else sha256(Path(path, "model.safetensors").read_bytes()).hexdigest()


@cache
def weights(seed: str, last: int, length: int) -> tuple[float, ...]:
    """Logits of the next token."""
    numbers = random.Random(f"{seed}/{last}/{length % 7}")
    return tuple(-1.0 if token == EOS else numbers.gauss(0, 1.5) for token in range(VOCABULARY))


def nats(seed: str, ids: Sequence[int], temperature: float) -> list[float]:
    logits = [each / (temperature or 1.0) for each in weights(seed, ids[-1], len(ids))]
    total = log(sum(map(exp, logits)))
    return [each - total for each in logits]


@dataclass
class FakeServer:
    """What it serves, what it is to do wrong, and what it was asked."""

    root: str
    tokenizer: Any = field(default_factory=words)
    name: str = "fake"
    key: str | None = None
    tempered: bool = True  # log-probabilities are those of the temperature
    gives_ids: bool = True
    adapters_allowed: bool = True
    development: bool = True
    context: int = 64
    faults: list[Fault] = field(default_factory=list)
    always: Fault | None = None
    seed: str = "first"
    version: str = "default"
    adapters: dict[str, str] = field(default_factory=dict)
    asked: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    answered: int = 0
    served: list[dict[str, Any]] = field(default_factory=list)  # those of `bodies` that were answered, in that order
    busiest: int = 0  # requests of /v1/completions at a time
    busy: int = 0
    lock: Any = field(default_factory=threading.Lock)
    server: Any = None
    connections: set[Any] = field(default_factory=set)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    def paths(self) -> list[str]:
        return [path for path, _ in self.asked]

    def bodies(self) -> list[dict[str, Any]]:
        """Of the requests for continuations of token ids."""
        return [body for path, body in self.asked if path == "/v1/completions" and isinstance(body["prompt"], list)]

    def models(self) -> dict[str, Any]:
        base = {"id": self.name, "root": self.root, "parent": None, "max_model_len": self.context}
        return {"data": [base, *({"id": n, "root": p, "parent": self.name} for n, p in self.adapters.items())]}

    def complete(self, body: dict[str, Any]) -> dict[str, Any]:
        prompt = body["prompt"]
        if isinstance(prompt, str):
            prompt = self.tokenizer.encode(prompt, add_special_tokens=body["add_special_tokens"])
        seed = self.adapters.get(body["model"], self.seed)
        choices = [self.choose(index, seed, prompt, body) for index in range(body.get("n", 1))]
        with self.lock:
            self.answered += 1
            return {"id": f"cmpl-{id(self)}-{self.answered}", "model": body["model"], "choices": choices}

    def choose(self, index: int, seed: str, prompt: list[int], body: dict[str, Any]) -> dict[str, Any]:
        numbers = random.Random(body["seed"] + index)
        temperature, told, tops = body["temperature"], [], []
        ids: list[int] = []
        shown = temperature if self.tempered else 1.0
        while len(ids) < min(body["max_tokens"], self.context - len(prompt)):
            values = nats(seed, prompt + ids, temperature)
            [token] = (
                [values.index(max(values))] if not temperature else numbers.choices(range(VOCABULARY), map(exp, values))
            )
            values = nats(seed, prompt + ids, shown)
            best = sorted(range(VOCABULARY), key=lambda t: -values[t])[: body.get("logprobs") or 0]
            wanted = [token, *(body.get("logprob_token_ids") or best)]
            tops.append({f"token_id:{t}": values[t] for t in wanted})
            told.append(values[token])
            ids.append(token)
            if token in (body.get("stop_token_ids") or ()):
                break
        stopped = ids[-1] in (body.get("stop_token_ids") or ())
        if body.get("echo"):
            told = [None, *(nats(seed, prompt[:end], 1.0)[prompt[end]] for end in range(1, len(prompt))), *told]
        logprobs = None if body.get("logprobs") is None else {"token_logprobs": told, "top_logprobs": tops}
        more = {"token_ids": ids, "prompt_token_ids": prompt} if self.gives_ids else {}
        reason = "stop" if stopped else "length"
        return {"index": index, "text": "", "finish_reason": reason, "logprobs": logprobs, **more}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # headers and content in one packet
    fake: FakeServer

    def setup(self) -> None:
        super().setup()
        self.fake.connections.add(self.connection)

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.fake.asked.append((self.path, {}))
        if self.refused():
            return
        if self.path == "/v1/models":
            self.send(200, self.fake.models())
        elif self.path == "/weight_info" and self.fake.development:
            self.send(200, {"weight_version": self.fake.version})
        elif self.path == "/v1/load_lora_adapter" and self.fake.adapters_allowed:
            self.send(405, {"detail": "Method Not Allowed"})
        else:
            self.send(404, {"detail": "Not Found"})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"] or 0)) or "null") or {}
        self.fake.asked.append((self.path, body))
        if self.refused():
            return
        if self.path == "/v1/completions":
            with self.fake.lock:
                self.fake.busy += 1
                self.fake.busiest = max(self.fake.busiest, self.fake.busy)
            try:
                self.complete(body)
            finally:
                with self.fake.lock:
                    self.fake.busy -= 1
        elif self.path in ("/v1/load_lora_adapter", "/v1/unload_lora_adapter") and self.fake.adapters_allowed:
            self.adapt(body)
        elif self.fake.development:
            self.develop(body)
        else:
            self.send(404, {"detail": "Not Found"})

    def refused(self) -> bool:
        wrong = self.fake.key is not None and self.headers["Authorization"] != f"Bearer {self.fake.key}"
        if wrong:
            self.send(401, {"error": f"Wrong key: {self.headers['Authorization']}"})
        return wrong

    def complete(self, body: dict[str, Any]) -> None:
        if body["model"] not in (self.fake.name, *self.fake.adapters):
            self.send(404, {"error": {"message": f"The model `{body['model']}` does not exist."}})
            return
        answer = self.fake.complete(body)
        if isinstance(body["prompt"], list):
            with self.fake.lock:
                fault = self.fake.faults.pop(0) if self.fake.faults else self.fake.always
            if fault is not None and fault(self, body, answer):
                return
            self.fake.served.append(body)
        self.send(200, answer)

    def adapt(self, body: dict[str, Any]) -> None:
        if self.path.startswith("/v1/un"):
            del self.fake.adapters[body["lora_name"]]
        elif not Path(body["lora_path"], "seed").exists():
            self.send(400, {"error": {"message": "No adapter found"}})
            return
        else:
            self.fake.adapters[body["lora_name"]] = Path(body["lora_path"], "seed").read_text()
        self.send(200, b"Success: what vLLM says here is no JSON")

    def develop(self, body: dict[str, Any]) -> None:
        if self.path == "/collective_rpc":
            self.fake.seed = seed_of(body["kwargs"]["weights_path"])
        elif self.path == "/update_weight_version":
            self.fake.version = body["new_version"]
        self.send(200, {"success": True})

    def send(self, status: int, answer: Any, **headers: str) -> None:
        content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(content))} | headers).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(content)


class Quiet(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def handle_error(self, *_: Any) -> None:
        """A client that is gone is part of the tests."""


@contextmanager
def serving(fake: FakeServer, port: int = 0) -> Iterator[FakeServer]:
    fake.server = Quiet(("127.0.0.1", port), type("Bound", (Handler,), {"fake": fake}))
    thread = threading.Thread(target=fake.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield fake
    finally:
        fake.server.shutdown()
        fake.server.server_close()
        for connection in fake.connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        thread.join()


def status(code: int, **headers: str) -> Fault:
    def answer(handler: Handler, body: Any, right: Any) -> bool:
        handler.send(code, {"error": {"message": "on purpose"}}, **headers)
        return True

    return answer


def text(content: bytes, **headers: str) -> Fault:
    def answer(handler: Handler, body: Any, right: Any) -> bool:
        handler.send(200, content, **headers)
        handler.close_connection = True
        return True

    return answer


def half(handler: Handler, body: Any, right: Any) -> bool:
    content = json.dumps(right).encode()
    handler.send(200, content[: len(content) // 2], Content_Length=str(len(content)))
    handler.close_connection = True
    return True


def cut(handler: Handler, body: Any, right: Any) -> bool:
    handler.connection.close()
    handler.close_connection = True
    return True


def silent(seconds: float) -> Fault:
    def wait(handler: Handler, body: Any, right: Any) -> bool:
        time.sleep(seconds)
        handler.close_connection = True
        return True

    return wait


def altered(change: Callable[[dict[str, Any]], Any]) -> Fault:
    """The right answer, but for what `change` does to it or to its first choice."""

    def answer(handler: Handler, body: Any, right: Any) -> bool:
        change(right)
        return False

    return answer
