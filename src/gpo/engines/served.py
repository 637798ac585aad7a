"""Which model a server serves, whether it is the one that is meant, and its weights.

vLLM takes new weights in two ways: LoRA adapters, each version under a name of its own (`--enable-lora` and
`VLLM_ALLOW_RUNTIME_LORA_UPDATING=1`), and whole checkpoints of the same architecture, read anew from a directory that
the server can see (`VLLM_SERVER_DEV_MODE=1`). For the latter it keeps a label, so that one that was started again, or
left with other weights, is found out before it is asked.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

from gpo.engines.completions import PLAIN, choices_of, token_ids, told_nats
from gpo.engines.connection import Connection
from gpo.engines.endpoints import Foreign, Refused, Server
from gpo.errors import EngineError
from gpo.types import ModelRef

log = logging.getLogger(__name__)

LABEL = "gpo-"  # begins the names of adapters and the labels of weights that were brought to a server
PROBES = 64  # tokens of the vocabulary that a server is asked about
COOL = 0.5  # a temperature at which log-probabilities differ from those of 1
TOLD_APART = 0.05  # nats


@dataclass(frozen=True, slots=True)
class Weights:
    """A version of the weights: those that the server began with, adapters for them, or a whole checkpoint."""

    path: str | None = None  # None: those that it began with
    adapter: bool = False
    label: str = ""  # of the files, so that another version has another one

    @classmethod
    def of(cls, ref: ModelRef, base: str) -> Weights:
        """Raises: EngineError if a server cannot be brought to it."""
        if not isinstance(ref.source, str | Path):
            raise EngineError(
                f"A server cannot sample from {ref.name}, a model in memory. Save it to a directory and load that."
            )
        if str(ref.source) == base:
            return cls()
        path = Path(ref.source).absolute()
        adapter = (path / "adapter_config.json").is_file()
        if not adapter and not (path / "config.json").is_file():
            raise EngineError(f"There is no model in {path}: expected a directory with config.json or LoRA adapters.")
        files = sorted((file.name, *_state(file)) for file in path.iterdir() if file.is_file())
        digest = blake2b(json.dumps([str(path), files]).encode(), digest_size=8).hexdigest()
        return cls(str(path), adapter, LABEL + digest)


def _state(file: Path) -> tuple[int, int]:
    status = file.stat()
    return status.st_size, status.st_mtime_ns


async def find_model(connection: Connection, server: Server, wanted: str | None, source: str) -> dict[str, Any]:
    """The entry of /v1/models of the model that is meant; its adapters are not looked at.

    Args:
        wanted: its name there; None: the one whose name or directory is `source`, or the only one.

    Raises:
        Foreign: it is no list of models.
        EngineError: there is none.
    """
    listed = await connection.call(server, "GET", "/v1/models")
    cards = listed.get("data") if isinstance(listed, Mapping) else None
    if not isinstance(cards, list) or not all(isinstance(card, Mapping) and card.get("id") for card in cards):
        raise Foreign("/v1/models lists no models")
    server.known["loaded"] = {str(card["id"]) for card in cards}
    bases = list({str(card["id"]): dict(card) for card in cards if card.get("parent") is None}.values())
    server.known["bases"] = [str(card["id"]) for card in bases]
    names = ", ".join(connection.shown(str(card["id"])) for card in bases) or "none"
    if wanted is not None:
        found = [card for card in bases if card["id"] == wanted]
        if not found:
            raise EngineError(
                f"{server.url} has no model {wanted!r}. It has: {names}. Give one of these to --engine.served_model."
            )
        return found[0]
    places = {source, str(Path(source).absolute()), str(Path(source).resolve())}
    roots = [str(card.get("root")) for card in bases]
    found = [
        card
        for card, root in zip(bases, roots, strict=True)
        if places & {str(card["id"]), root, str(Path(root).resolve())}
    ]
    if found:
        return found[0]
    if len(bases) != 1 or Path(str(bases[0].get("root"))).is_dir():
        raise EngineError(
            f"{server.url} serves {names}, expected {source}. Start it with that model; or, if one of these is the "
            "same, name it: --engine.served_model NAME."
        )
    root = str(bases[0].get("root") or bases[0]["id"])
    if Path(root).name.lower() != Path(source).name.lower() and not server.known.get("told"):
        server.known["told"] = True
        log.warning("%s calls its model %s; it is taken for %s.", server.url, connection.shown(root), source)
    return bases[0]


async def check_server(
    connection: Connection, server: Server, model: str, tokenizer: Any, vocabulary: int, room: int
) -> None:
    """Ask a server for what an engine needs: token ids, of the same tokenizer.

    Whether its log-probabilities are those of the temperature is noted in `server.known["tempered"]`; None: there are
    none, or nothing tells.

    Args:
        room: tokens that fit.

    Raises:
        EngineError: it cannot be used.
    """
    text, known = _probe(tokenizer, room)
    body: dict[str, Any] = {
        "model": model,
        "prompt": text,
        "add_special_tokens": False,
        "max_tokens": 1,
        "seed": 0,
        "return_token_ids": True,
        "logprobs": 5,
        **PLAIN,
    }
    told = []
    for temperature in (1.0, COOL):
        answer = await connection.call(server, "POST", "/v1/completions", {**body, "temperature": temperature})
        [choice] = choices_of(answer, server.known["names"], 1)
        if choice.get("token_ids") is None or choice.get("prompt_token_ids") is None:
            raise EngineError(
                f"{server.url} answers without token ids, so that a prefix could not be kept to the token. Take a "
                "server whose /v1/completions knows return_token_ids, such as vLLM or SGLang."
            )
        if choice["prompt_token_ids"] not in known:
            raise EngineError(
                f"The tokenizer of {server.url} is another one: it makes {_some(choice['prompt_token_ids'])} of a text "
                f"of which the tokenizer here makes {_some(known[0])}. Give --model (or --engine.tokenizer) the "
                "directory or hub id of the model that it serves."
            )
        token_ids(choice["token_ids"], vocabulary)
        told.append(told_nats(choice))
    server.known["tempered"] = _tempered(*told)


def _probe(tokenizer: Any, room: int) -> tuple[str, list[list[int]]]:
    """A text of many kinds and of tokens from all over the vocabulary, and the ids that it may become."""
    size = max(tokenizer.get_vocab().values()) + 1
    tokens = (tokenizer.decode([size * i // PROBES]) for i in range(min(PROBES, size)))
    text = "The 12 foxes,\n\n\tdef f(x): return {x: 3.14}  é ß 漢字 🙂 " + " ".join(tokens)
    while True:
        known = [list(tokenizer.encode(text, add_special_tokens=special)) for special in (False, True)]
        if max(map(len, known)) < room or len(text) < 2:
            return text, known
        text = text[max(1, len(text) // 3) :]


def _some(ids: Any) -> str:
    count = len(ids) if isinstance(ids, list) else 0
    if not count:
        return repr(ids)
    return f"{count} token{'s' * (count > 1)} ({', '.join(map(str, ids[:6]))}{', …' * (count > 6)})"


def _tempered(warm: Mapping[str, float], cool: Mapping[str, float]) -> bool | None:
    """Whether the differences between tokens grow as those of log-probabilities at a temperature do."""
    both = sorted(warm.keys() & cool.keys(), key=lambda token: warm[token])
    if len(both) < 2 or warm[both[-1]] - warm[both[0]] < TOLD_APART:
        return None
    ratio = (cool[both[-1]] - cool[both[0]]) / (warm[both[-1]] - warm[both[0]])
    return ratio > (1 + 1 / COOL) / 2


async def bring_weights(connection: Connection, server: Server, weights: Weights, root: str) -> None:
    """Have a server hold a version of the weights; nothing is done where it does.

    Args:
        root: what the server calls the place of its model.

    Raises:
        EngineError: it cannot take them.
    """
    whole = None if weights.adapter else weights
    held = await _label(connection, server)
    server.known["changes"] = held is not None
    if whole is not None and whole.path is not None:
        if held is None:
            raise EngineError(_cannot(server, weights, "it answers /weight_info with 404"))
        if held != whole.label:
            await _reload(connection, server, whole.path, whole.label)
    elif held is not None and held.startswith(LABEL) and held != LABEL + "first":
        await _reload(connection, server, root, LABEL + "first")
    if weights.adapter and weights.label not in server.known["loaded"]:
        await _load_adapter(connection, server, weights)


async def takes_adapters(connection: Connection, server: Server) -> bool:
    """Whether it may have adapters; /v1/models tells of those that it has."""
    try:
        await connection.call(server, "GET", "/v1/load_lora_adapter")
    except Refused as refused:
        return refused.status == 405 or len(server.known["loaded"]) > len(server.known["bases"])
    return True


async def _label(connection: Connection, server: Server) -> str | None:
    """Of the weights of a server that can read others; None: it cannot."""
    try:
        told = await connection.call(server, "GET", "/weight_info")
    except Refused as refused:
        if refused.status in (404, 405):
            return None
        raise
    return str(told.get("weight_version")) if isinstance(told, Mapping) else None


async def _reload(connection: Connection, server: Server, path: str, label: str) -> None:
    try:
        # If this is cut short nobody shall take the weights for what they were.
        await connection.call(server, "POST", "/update_weight_version", {"new_version": LABEL + "loading"})
        body = {"method": "reload_weights", "kwargs": {"weights_path": path}}
        await connection.call(server, "POST", "/collective_rpc", body)
        await forget_prefixes(connection, server)
        await connection.call(server, "POST", "/update_weight_version", {"new_version": label})
    except Refused as refused:
        raise EngineError(_cannot(server, Weights(path), str(refused))) from None


async def _load_adapter(connection: Connection, server: Server, weights: Weights) -> None:
    body = {"lora_name": weights.label, "lora_path": weights.path}
    try:
        await connection.call(server, "POST", "/v1/load_lora_adapter", body, reads=False)
    except Refused as refused:
        why = "it answers with 404" if refused.status == 404 else str(refused)
        raise EngineError(_cannot(server, weights, why)) from None
    server.known["loaded"].add(weights.label)
    with suppress(Refused):  # a prefix belongs to the name of its adapter, which is new
        await forget_prefixes(connection, server)


async def forget_prefixes(connection: Connection, server: Server) -> None:
    """Raises: EngineError if keys and values of other weights stay in use."""
    for attempt in range(6):
        told = await connection.call(server, "POST", "/reset_prefix_cache")
        if not isinstance(told, Mapping) or told.get("success") is not False:
            return
        await asyncio.sleep(0.1 * 2**attempt)
    raise EngineError(
        f"{server.url} does not empty its prefix cache, so that it would go on with keys and values of other weights. "
        "Is somebody else using it? Wait until it is idle, then give the same command again."
    )


async def unload_adapter(connection: Connection, server: Server, label: str) -> None:
    body = {"lora_name": label}
    await connection.call(server, "POST", "/v1/unload_lora_adapter", body, timeout=5.0, reads=False)
    server.known["loaded"].discard(label)


def _cannot(server: Server, weights: Weights, why: str) -> str:
    if weights.adapter:
        return (
            f"{server.url} does not take the adapters of {weights.path}: {why.rstrip('.')}. Start vLLM with "
            "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1, --enable-lora and --max-lora-rank of at least --method.lora, where it "
            "can read this directory."
        )
    return (
        f"{server.url} does not take the weights of {weights.path}: {why.rstrip('.')}. Start vLLM with "
        "VLLM_SERVER_DEV_MODE=1, where it can read this directory; or train adapters (--method.lora 16); or sample "
        "with --engine hf."
    )
