"""The rollout engine for vLLM in this process: token ids in, token ids out, on the GPUs of one machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from gpo.config.models import reference
from gpo.contracts import RestingEngine
from gpo.engines.completions import MOST_NATS, seed_of
from gpo.engines.requests import check_continuations, check_temperature, token_limits
from gpo.engines.served import Weights
from gpo.engines.served_tokens import TokenFacts, facts_of
from gpo.errors import ConfigError, EngineError, MissingDependency, naming
from gpo.types import Completion, ModelRef, Request


@dataclass
class VLLMEngine(RestingEngine):
    """Samples with an `LLM` of vLLM. Adapters are loaded beside its weights, whole checkpoints in their place.

    Between `rest` and the next call it holds no memory of the GPU.
    """

    model: Any = None  # directory, hub id or ModelRef
    tokenizer: Any = None  # object, directory or hub id; None: the model's own
    dtype: str = "auto"  # of the weights, as vLLM calls them
    lora: int = 16  # rank that adapters may have at most; 0: none are taken
    gpu_memory: float = 0.9  # share of a GPU's memory that it takes
    tensor_parallel: int = 1  # GPUs that share the model
    options: Mapping[str, Any] = field(default_factory=dict)  # more arguments of vllm.LLM, as JSON
    chat_template_kwargs: Mapping[str, Any] | None = None  # what the chat template reads beside the turns, as JSON
    _ref: ModelRef | None = field(default=None, init=False, repr=False, compare=False)  # None: closed
    _facts: TokenFacts | None = field(default=None, init=False, repr=False, compare=False)
    _llm: Any = field(default=None, init=False, repr=False, compare=False)  # None: made when something is asked
    _asleep: bool = field(default=False, init=False, repr=False, compare=False)
    _weights: Weights = field(default=Weights(), init=False, repr=False, compare=False)
    _held: Weights = field(default=Weights(), init=False, repr=False, compare=False)  # whole ones that the LLM has
    _adapters: dict[str, int] = field(default_factory=dict, init=False, repr=False, compare=False)  # their numbers

    def __post_init__(self) -> None:
        if self.lora < 0 or self.tensor_parallel < 1 or not 0 < self.gpu_memory <= 1:
            raise ConfigError(
                f"lora, tensor_parallel and gpu_memory are {self.lora}, {self.tensor_parallel} and {self.gpu_memory}; "
                "expected at least 0, at least 1, and a share between 0 and 1."
            )
        if self.model is None:
            raise ConfigError("The engine has no model. Give model= a directory or a hub id.")
        _vllm()
        ref = reference(self.model)
        self._facts = facts_of(ref, self.tokenizer, self.chat_template_kwargs)
        self.tokenizer = self._facts.tokenizer
        self._ref, self._weights = ref, Weights.of(ref, self._facts.base)
        try:
            self._awake()
        except BaseException:
            self.close()
            raise

    def __copy__(self) -> Self:
        """Another engine, which takes vLLM over: this one starts its own when it is asked again."""
        twin = object.__new__(type(self))
        vars(twin).update(vars(self), _adapters=dict(self._adapters))
        self._llm, self._asleep = None, False
        return twin

    def _open(self) -> TokenFacts:
        """What a closed engine does not have."""
        if self._ref is None or self._facts is None:
            raise EngineError("The engine is closed or its model could not be loaded. Make a new one.")
        return self._facts

    def _awake(self) -> Any:
        """The LLM with the present weights.

        Raises:
            EngineError: vLLM cannot load the model, or not these weights.
        """
        facts = self._open()
        assert self._ref is not None, "an open engine has a model"
        with naming("vLLM"):
            if self._llm is None:
                settings: dict[str, Any] = {
                    "model": facts.base,
                    "revision": self._ref.revision if str(self._ref.source) == facts.base else None,
                    "skip_tokenizer_init": True,
                    "dtype": self.dtype,
                    "tensor_parallel_size": self.tensor_parallel,
                    "gpu_memory_utilization": self.gpu_memory,
                    "enable_prefix_caching": True,
                    "enable_sleep_mode": _sleeps(),
                    "logprobs_mode": "processed_logprobs",
                    "generation_config": "vllm",
                }
                if self.lora:
                    settings |= {"enable_lora": True, "max_lora_rank": self.lora, "max_loras": 1}
                self._llm = _vllm().LLM(**settings | dict(self.options))
                self._held = Weights()
            if self._asleep:
                self._llm.wake_up()
                self._asleep = False
            self._bring()
        return self._llm

    def _bring(self) -> None:
        """Have the LLM hold the present weights; adapters come with each request."""
        wanted = Weights() if self._weights.adapter else self._weights
        if wanted == self._held:
            return
        place = self._open().base if wanted.path is None else wanted.path
        self._held = Weights(label="loading")
        self._llm.collective_rpc("reload_weights", kwargs={"weights_path": place})
        if self._llm.reset_prefix_cache() is False:
            raise EngineError("It does not empty its prefix cache, and would go on with keys of other weights.")
        self._held = wanted

    def _adapter(self) -> Any:
        """What vLLM is told of the present adapters; each version has a number of its own. None: there are none."""
        weights = self._weights
        if not weights.adapter:
            return None
        from vllm.lora.request import LoRARequest

        number = self._adapters.setdefault(weights.label, len(self._adapters) + 1)
        return LoRARequest(weights.label, number, weights.path)

    @property
    def model_ref(self) -> ModelRef:
        """What it samples from now."""
        self._open()
        assert self._ref is not None, "an open engine has a model"
        return self._ref

    @property
    def context_length(self) -> int:
        """Tokens of prompt and response together: of the model, or fewer where vLLM has room for fewer."""
        most = self._open().context_length
        return most if self._llm is None else min(most, int(self._llm.model_config.max_model_len))

    @property
    def stop_ids(self) -> frozenset[int]:
        """End-of-sequence tokens of the model's generation configuration and of the tokenizer."""
        return self._open().stop_ids

    @property
    def repeatable(self) -> bool:
        """What is computed in the same batch changes the last digits."""
        return False

    def _ask(self, prompts: Sequence[Sequence[int]], parameters: Sequence[Mapping[str, Any]]) -> list[Any]:
        """vLLM's outputs in order.

        Raises:
            EngineError: it fails, or says that other weights have answered.
        """
        llm, vllm, adapter = self._awake(), _vllm(), self._adapter()
        with naming("vLLM"):
            outputs: list[Any] = llm.generate(
                [{"prompt_token_ids": list(prompt)} for prompt in prompts],
                [vllm.SamplingParams(detokenize=False, **each) for each in parameters],
                use_tqdm=False,
                lora_request=adapter,
            )
        if len(outputs) != len(prompts):
            raise EngineError(f"vLLM gave {len(outputs)} answers to {len(prompts)} requests.")
        told = {output.lora_request.lora_name if output.lora_request else None for output in outputs}
        if told - {adapter.lora_name if adapter else None}:
            raise EngineError(f"vLLM answered with the adapters {told}, expected those of {self.model_ref.name}.")
        return outputs

    def generate(
        self, requests: Sequence[Request], *, temperature: float = 1.0, logprobs: bool = False
    ) -> list[list[Completion]]:
        """`n` completions of each request, in order.

        Raises:
            ConfigError: the temperature is negative or not finite.
            EngineError: a request cannot be served, or vLLM fails.
        """
        check_temperature(temperature)
        facts = self._open()
        if not requests:
            return []
        self._awake()  # which knows how much room there is
        limits = token_limits(requests, context_length=self.context_length, vocabulary=facts.vocabulary)
        asked = [(request, limit, i) for request, limit in zip(requests, limits, strict=True) for i in range(request.n)]
        parameters = [
            {
                "max_tokens": limit,
                "temperature": temperature,
                "seed": seed_of(request.seed, i),
                "stop_token_ids": sorted(facts.stop_ids),
                **({"logprobs": 0} if logprobs else {}),
            }
            for request, limit, i in asked
        ]
        outputs = iter(self._ask([request.token_ids for request, _, _ in asked], parameters))
        return [[self._completion(next(outputs), logprobs) for _ in range(request.n)] for request in requests]

    def _completion(self, output: Any, logprobs: bool) -> Completion:
        [found] = output.outputs
        ids = tuple(map(int, found.token_ids))
        return self._open().completion(ids, _nats(found.logprobs, ids) if logprobs else None)

    def logprobs(
        self, contexts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]], *, temperature: float = 1.0
    ) -> list[tuple[float, ...]]:
        """(T,) nats for each continuation: each token as one that could be sampled behind those before it.

        Raises:
            ConfigError: the temperature is negative or not finite.
            EngineError: a context is empty, does not fit with its continuation or has unknown tokens; or vLLM fails.
        """
        check_temperature(temperature)
        facts = self._open()
        if contexts or continuations:
            self._awake()
        check_continuations(contexts, continuations, context_length=self.context_length, vocabulary=facts.vocabulary)
        pairs = list(zip(contexts, continuations, strict=True))
        places = [
            ((*context, *continuation[:end]), token)
            for context, continuation in pairs
            for end, token in enumerate(continuation)
        ]
        parameters = [
            {"max_tokens": 1, "temperature": temperature or 1.0, "seed": 0, "logprobs": 1, "logprob_token_ids": [token]}
            for _, token in places
        ]
        outputs = self._ask([before for before, _ in places], parameters) if places else []
        nats = iter(
            [_nats(output.outputs[0].logprobs, [token])[0] for output, (_, token) in zip(outputs, places, strict=True)]
        )
        return [tuple(next(nats) for _ in continuation) for continuation in continuations]

    def load(self, model: ModelRef) -> None:
        """Sample from LoRA adapters, from a whole checkpoint, or from what it began with.

        Raises:
            EngineError: there is no such model, or vLLM does not take it; or the engine is closed.
        """
        weights = Weights.of(model, self._open().base)
        if weights.adapter and not self.lora:
            raise EngineError(
                f"{model.name} has adapters, and this engine takes none. Give --engine.lora at least their rank."
            )
        try:
            self._weights, self._ref = weights, model
            self._awake()
        except BaseException:
            self.close()
            raise

    def rest(self) -> None:
        """Leave the GPU's memory to others until something is asked: vLLM sleeps, or ends where it cannot."""
        self._open()
        if self._llm is None or self._asleep:
            return
        with naming("vLLM"):
            if _sleeps():
                self._llm.sleep(level=1)
                self._asleep = True
            else:
                self._end()

    def _end(self) -> None:
        llm, self._llm, self._asleep = self._llm, None, False
        if llm is not None:
            llm.llm_engine.engine_core.shutdown()

    def close(self) -> None:
        """End vLLM and its processes."""
        self._ref = None
        self._end()


def _nats(told: Any, tokens: Sequence[int]) -> tuple[float, ...]:
    """The log-probabilities that vLLM tells of these tokens.

    Raises:
        EngineError: it does not tell them, or what it tells is none.
    """
    if told is None or len(told) != len(tokens) or any(token not in at for at, token in zip(told, tokens, strict=True)):
        raise EngineError("vLLM tells no log-probability of a token. GPO is tested with vLLM 0.32.")
    nats = [float(at[token].logprob) for at, token in zip(told, tokens, strict=True)]
    if not all(nat <= MOST_NATS for nat in nats):
        raise EngineError(f"vLLM tells {max(nats)} as a log-probability.")
    return tuple(min(nat, 0.0) for nat in nats)


def _sleeps() -> bool:
    """Whether vLLM can sleep here, which takes a GPU."""
    from vllm.platforms import current_platform

    return bool(current_platform.is_sleep_mode_available())


def _vllm() -> Any:
    """Raises: MissingDependency if it is not installed."""
    try:
        import vllm
    except ImportError as error:
        raise MissingDependency(
            f"{error}. The engine needs vLLM beside GPO: pip install vllm. Where pip finds that the two do "
            "not fit together, run a server in an environment of its own: --engine openai."
        ) from error
    return vllm
