"""The rollout engine for Hugging Face causal language models."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from gpo.contracts import Engine
from gpo.engines.adapters import without_wrapper
from gpo.engines.allocation import give_back_freed_memory
from gpo.engines.decoding import Decoding, Limits
from gpo.engines.graph import Graph
from gpo.engines.library import BatchDecoder, LibraryDecoder, RecomputingDecoder, forkable_layers
from gpo.engines.llama import LlamaDecoder, is_supported
from gpo.engines.loading import check_vocabulary, end_of_turn, load_model, load_tokenizer, vocabulary_of
from gpo.engines.packing import pack
from gpo.engines.prefixes import Continuations, shared_prompts
from gpo.engines.requests import check_continuations, check_temperature, token_limits
from gpo.engines.teacher_forcing import teacher_forced
from gpo.engines.templates import with_arguments
from gpo.errors import ConfigError, EngineError
from gpo.images.album import Album
from gpo.images.embedding import check_sight, see, sees
from gpo.images.tokenizer import ImageTokenizer
from gpo.images.tokens import has_images, images_in
from gpo.storage.weights import SMALL
from gpo.types import Completion, ModelRef, Request

UNLIMITED = 1 << 30  # the context of models that state none


@dataclass
class HFEngine(Engine):
    """Samples from any causal language model of transformers, from memory, a directory or the hub.

    A sequence is computed once for all continuations that begin with it: those that follow a longer request's tokens
    need no decoding, those that have drawn the same tokens so far are one row of the batch, and keys and values are
    forked where they part. All rows of all requests are decoded in one batch, which is refilled as rows finish.
    Sampling knows the temperature only: no top-p, top-k or penalties, whatever the model's generation configuration
    says. What is sampled depends on weights, token ids, seed and continuation index, not on the other requests (up to
    the rounding of logits).
    """

    model: Any = None  # to begin with: directory, hub id, ModelRef, or a loaded model, which is never written to
    tokenizer: Any = None  # object, directory or hub id; None: the model's own, which a loaded model does not have
    device: str = "auto"  # CUDA where there is one, for more than 20 M parameters; a loaded model stays where it is
    dtype: str = "auto"  # of loaded weights; on a CPU "auto" is float32 up to 200 M parameters (see docs/engines.md)
    attention: str | None = None  # transformers' attn_implementation; None is its default
    max_rows: int | None = None  # sequences decoded at once; None: 256, on CUDA 1024
    # Positions of all rows of a batch; those that wait to join keep their own tokens. None: 2^18, on CUDA what a
    # quarter of the memory that is free has room for.
    max_batch_tokens: int | None = None
    kernel: str = "auto"  # "library" decodes with the model's forward pass even where there is a faster one
    chat_template_kwargs: Mapping[str, Any] | None = None  # what the chat template reads beside the turns, as JSON
    _end_of_turn: int | None = field(default=None, init=False, repr=False, compare=False)
    _ref: ModelRef | None = field(default=None, init=False, repr=False, compare=False)
    _loaded: Any = field(default=None, init=False, repr=False, compare=False)  # None: closed
    # On a GPU the last one, for its memory: torch would keep that of each graph.
    _graph: Graph | None = field(default=None, init=False, repr=False, compare=False)
    _looked: bool = field(default=False, init=False, repr=False, compare=False)  # at an image, and saw it right

    def __post_init__(self) -> None:
        if any(limit is not None and limit < 1 for limit in (self.max_rows, self.max_batch_tokens)):
            raise ConfigError(
                f"max_rows and max_batch_tokens must be at least 1, got {self.max_rows} and {self.max_batch_tokens}."
            )
        if self.kernel not in ("auto", "library"):
            raise ConfigError(f"Unknown kernel {self.kernel!r}. Known: auto, library.")
        if self.model is None:
            raise ConfigError("The engine has no model. Give model= a directory, a hub id or a loaded model.")
        ref = self.model if isinstance(self.model, ModelRef) else reference(self.model)
        tokenizer = self.tokenizer if self.tokenizer is not None else ref.tokenizer
        album = Album()
        if isinstance(tokenizer, str | Path):
            tokenizer = load_tokenizer(str(tokenizer), images=album)
        elif tokenizer is None and isinstance(ref.source, str | Path):
            tokenizer = load_tokenizer(str(ref.source), ref.revision, album)
        elif hasattr(tokenizer, "image_processor"):  # a processor
            tokenizer = ImageTokenizer(tokenizer, album)
        elif tokenizer is None:
            raise ConfigError("A loaded model comes without a tokenizer. Give tokenizer= as well.")
        self.tokenizer = with_arguments(tokenizer, self.chat_template_kwargs)
        self._end_of_turn = end_of_turn(self.tokenizer)
        self._take(ref)

    def load(self, model: ModelRef) -> None:
        """Take the weights of a checkpoint directory or hub id, those of LoRA adapters merged, or a model in memory.

        A model that was handed over is left as it is.

        Raises:
            EngineError: there is no model that transformers can load whole, or the engine is closed.
        """
        self._network()
        self._take(model)

    def _take(self, ref: ModelRef) -> None:
        loaded = ref.source
        if isinstance(loaded, str | Path):
            where, self._loaded = str(loaded), None  # makes room
            loaded = load_model(where, ref.revision, device=self.device, dtype=self.dtype, attention=self.attention)
            fused = self.kernel == "auto" and is_supported(loaded)
            if not fused and forkable_layers(loaded) is not None:
                pack(loaded)
        check_vocabulary(self.tokenizer, loaded)
        see(without_wrapper(loaded), self.tokenizer, keep=isinstance(ref.source, str | Path))
        self._ref, self._loaded, self._looked = ref, loaded, False

    def _network(self) -> Any:
        """The model, which a closed engine does not have."""
        if self._loaded is None:
            raise EngineError("The engine is closed or its model could not be loaded. Make a new one.")
        return self._loaded

    @property
    def model_ref(self) -> ModelRef:
        """What it samples from now."""
        self._network()
        assert self._ref is not None, "a loaded model has a name"
        return self._ref

    @property
    def context_length(self) -> int:
        """Tokens of prompt and response together; 2^30 for a model that states no limit."""
        config = self._network().config.get_text_config(decoder=True)
        return int(getattr(config, "max_position_embeddings", None) or UNLIMITED)

    @property
    def stop_ids(self) -> frozenset[int]:
        """End-of-sequence tokens of generation configuration and tokenizer, and the end of turn of its template."""
        configured = getattr(getattr(self._network(), "generation_config", None), "eos_token_id", None)
        several = configured if isinstance(configured, list) else [configured]
        ends = (*several, self.tokenizer.eos_token_id, self._end_of_turn)
        return frozenset(stop for stop in ends if stop is not None)

    @property
    def repeatable(self) -> bool:
        """With float32 weights; the rounding of shorter types depends on what is computed in the same batch."""
        return all(parameter.dtype in (torch.float32, torch.float64) for parameter in self._network().parameters())

    def generate(
        self, requests: Sequence[Request], *, temperature: float = 1.0, logprobs: bool = False
    ) -> list[list[Completion]]:
        """`n` completions of each request, in order.

        A completion ends with the end-of-sequence token (`stop`), or after `max_tokens` or where the context is full
        (`length`). Temperature 0 takes the most probable token; its log-probabilities are those at temperature 1.

        Raises:
            ConfigError: the temperature is negative or not finite.
            EngineError: a request is empty, does not fit the context or has unknown tokens; logits are not finite.
        """
        check_temperature(temperature)
        model = self._network()
        sight = self._sight(request.token_ids for request in requests)
        limits = token_limits(
            requests, context_length=self.context_length, vocabulary=vocabulary_of(model), images=sight
        )
        work = Continuations(requests, limits, self.tokenizer, logprobs=logprobs)
        with torch.no_grad(), evaluating(model):
            decoder = self.decoder()
            decoding = Decoding(decoder, model, work, self.stop_ids, temperature, self.limits)
            decoding.finish(deque(shared_prompts([request.token_ids for request in requests])))
            self._graph = decoder.graph if isinstance(decoder, LlamaDecoder) else None
        del decoder, decoding
        self._tidy()
        return work.by_request()

    def logprobs(
        self, contexts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]], *, temperature: float = 1.0
    ) -> list[tuple[float, ...]]:
        """(T,) nats for each continuation: what `generate` would tell of these tokens behind their context.

        Raises:
            ConfigError: the temperature is negative or not finite.
            EngineError: a context is empty, does not fit with its continuation or has unknown tokens; logits are not
                finite.
        """
        check_temperature(temperature)
        model = self._network()
        check_continuations(
            contexts,
            continuations,
            context_length=self.context_length,
            vocabulary=vocabulary_of(model),
            images=self._sight(contexts),
        )
        limits = self.limits
        with torch.no_grad(), evaluating(model):
            return teacher_forced(
                without_wrapper(model),
                contexts,
                continuations,
                temperature=temperature,
                tokens=limits.prefill_tokens,
                logits=limits.prefill_logits,
            )

    def _tidy(self) -> None:
        """Give back what a large model took on a CPU; the next call may take it in other pieces."""
        model = self._network()
        if model.device.type == "cpu" and model.num_parameters() > SMALL:
            give_back_freed_memory()

    def _sight(self, sequences: Iterable[Sequence[int]]) -> bool:
        """Whether the model takes images; the first that there is, the library has to see in the same way."""
        model = without_wrapper(self._network())
        if not sees(model):
            return False
        if not self._looked and (named := next((images_in(ids) for ids in sequences if has_images(ids)), ())):
            with evaluating(model):
                check_sight(model, self.tokenizer, named[0])
            self._looked = True
        return True

    def close(self) -> None:
        """Let go of the model that was loaded; memory of CUDA goes back to the device."""
        on_cuda = self._loaded is not None and self._loaded.device.type == "cuda"
        self._loaded = self._ref = self._graph = None
        if on_cuda:
            torch.cuda.empty_cache()

    @property
    def limits(self) -> Limits:
        """How much it computes at once."""
        return Limits.of(self._network(), self.max_rows, self.max_batch_tokens)

    def decoder(self) -> BatchDecoder:
        model = without_wrapper(self._network())
        if self.kernel == "auto" and is_supported(model):
            return LlamaDecoder(model, self._graph)
        layers = forkable_layers(model)
        return RecomputingDecoder(model) if layers is None else LibraryDecoder(model, layers)


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Switch dropout off, and back to what it was."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def reference(model: Any) -> ModelRef:
    """What is meant by a directory, a hub id or a model in memory."""
    if isinstance(model, str | Path):
        return ModelRef(str(model), str(model))
    return ModelRef(model, f"{type(model).__name__} in memory")
