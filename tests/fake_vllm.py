"""The part of vLLM that the engine `vllm` uses, with the language model of the fake server in place of a real one."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

from fake_server import FakeServer

MADE: list[FakeLLM] = []  # all that were made


@dataclass
class SamplingParams:
    n: int = 1
    temperature: float = 1.0
    seed: int | None = None
    stop_token_ids: list[int] | None = None
    max_tokens: int | None = 16
    logprobs: int | None = None
    logprob_token_ids: list[int] | None = None
    detokenize: bool = True
    top_p: float = field(default=1.0, init=False)


@dataclass
class LoRARequest:
    lora_name: str
    lora_int_id: int
    lora_path: str = ""


class FakeLLM:
    """Weights are the text in a directory's file `seed`."""

    def __init__(
        self,
        model: str,
        *,
        skip_tokenizer_init: bool = False,
        tensor_parallel_size: int = 1,
        dtype: str = "auto",
        revision: str | None = None,
        gpu_memory_utilization: float = 0.92,
        **more: Any,
    ) -> None:
        self.server, self.more, self.calls, self.asleep = FakeServer(model), more, [], False
        self.server.seed = Path(model, "seed").read_text()
        self.model_config = SimpleNamespace(max_model_len=int(more.get("max_model_len", 64)))
        self.llm_engine = SimpleNamespace(engine_core=SimpleNamespace(shutdown=lambda: self.calls.append("shutdown")))
        self.known: dict[int, str] = {}  # names of adapters by their numbers, which are not read again
        self.stale = False  # says that other adapters have answered
        MADE.append(self)

    def generate(
        self,
        prompts: Sequence[dict[str, Any]],
        sampling_params: Sequence[SamplingParams],
        *,
        use_tqdm: bool = True,
        lora_request: LoRARequest | None = None,
    ) -> list[Any]:
        assert not self.asleep
        assert self.calls[-1:] != ["shutdown"]
        assert not use_tqdm
        assert all(each.n == 1 or each.temperature for each in sampling_params), (
            "n must be 1 when using greedy sampling"
        )
        seed = self.server.seed
        if lora_request is not None:
            assert self.more["enable_lora"]
            seed = self.known.setdefault(lora_request.lora_int_id, Path(lora_request.lora_path, "seed").read_text())
        self.calls.append("generate")
        return [
            SimpleNamespace(
                prompt_token_ids=prompt["prompt_token_ids"],
                lora_request=None if self.stale else lora_request,
                outputs=[self.output(index, seed, prompt, each) for index in reversed(range(each.n))],
            )
            for prompt, each in zip(prompts, sampling_params, strict=True)
        ]

    def output(self, index: int, seed: str, prompt: dict[str, Any], parameters: SamplingParams) -> Any:
        found = self.server.choose(index, seed, prompt["prompt_token_ids"], vars(parameters))
        told = [
            {int(token.partition(":")[2]): SimpleNamespace(logprob=nats) for token, nats in at.items()}
            for at in (found["logprobs"] or {"top_logprobs": []})["top_logprobs"]
        ]
        return SimpleNamespace(index=index, token_ids=found["token_ids"], logprobs=told or None, text="")

    def collective_rpc(self, method: str, kwargs: dict[str, Any]) -> None:
        self.server.seed = Path(kwargs["weights_path"], "seed").read_text()
        self.calls.append(method)

    def reset_prefix_cache(self) -> bool:
        self.calls.append("reset_prefix_cache")
        return True

    def sleep(self, level: int = 1) -> None:
        self.asleep = True
        self.calls.append(f"sleep {level}")

    def wake_up(self) -> None:
        self.asleep = False
        self.calls.append("wake_up")


def install(monkeypatch: Any, *, sleeps: bool) -> None:
    """Have `import vllm` find this."""
    MADE.clear()
    vllm: Any = ModuleType("vllm")
    vllm.LLM, vllm.SamplingParams = FakeLLM, SamplingParams
    lora: Any = ModuleType("vllm.lora.request")
    lora.LoRARequest = LoRARequest
    platforms: Any = ModuleType("vllm.platforms")
    platforms.current_platform = SimpleNamespace(is_sleep_mode_available=lambda: sleeps)
    known = {"vllm": vllm, "vllm.lora": ModuleType("vllm.lora"), "vllm.lora.request": lora, "vllm.platforms": platforms}
    for name, module in known.items():
        monkeypatch.setitem(sys.modules, name, module)
