"""The rollout engine for Hugging Face causal language models."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gpo.engines.adapters import merge, without_wrapper
from gpo.engines.branching import DecodeBatch, follow_prompt, unfollowed
from gpo.engines.draw import NextToken
from gpo.engines.library import BatchDecoder, LibraryDecoder, RecomputingDecoder, forkable_layers
from gpo.engines.llama import LlamaDecoder, is_supported
from gpo.engines.prefixes import Continuations, DecodeRow, SharedPrompt, shared_prompts
from gpo.errors import ConfigError, EngineError
from gpo.types import Completion, Request

UNLIMITED = 1 << 30  # the context of models that state none
PREFILL_TOKENS = 8192  # of one prefill pass, padding included
PREFILL_LOGITS = 1 << 25  # of one prefill pass; a prompt that would need more is not followed


@dataclass
class HFEngine:
    """Samples from any causal language model of transformers, from memory, a directory or the hub.

    A sequence is computed once for all continuations that begin with it: those that follow a longer request's tokens
    need no decoding, those that have drawn the same tokens so far are one row of the batch, and keys and values are
    forked where they part. All rows of all requests are decoded in one batch, which is refilled as rows finish.
    Sampling knows the temperature only: no top-p, top-k or penalties, whatever the model's generation configuration
    says. What is sampled depends on weights, token ids, seed and continuation index, not on the other requests (up to
    the rounding of logits).
    """

    model: Any = None  # directory, hub id, or a loaded model, which is used as it is and never written to
    tokenizer: Any = None  # None takes the model's own, which a loaded model does not have
    device: str = "auto"  # "auto" is CUDA where there is one; a loaded model stays where it is
    dtype: str = "auto"  # of loaded weights; "auto" is float32 on CPU and what the checkpoint has elsewhere
    attention: str | None = None  # transformers' attn_implementation; None is its default
    max_rows: int = 256  # sequences decoded at once
    max_batch_tokens: int = 1 << 18  # positions of all rows of a batch; those that wait to join keep their own tokens
    kernel: str = "auto"  # "library" decodes with the model's forward pass even where there is a faster one

    def __post_init__(self) -> None:
        if self.max_rows < 1 or self.max_batch_tokens < 1:
            raise ConfigError(
                f"max_rows and max_batch_tokens must be at least 1, got {self.max_rows} and {self.max_batch_tokens}."
            )
        if self.kernel not in ("auto", "library"):
            raise ConfigError(f"Unknown kernel {self.kernel!r}. Known: auto, library.")
        if self.model is None:
            raise ConfigError("The engine has no model. Give model= a directory, a hub id or a loaded model.")
        if isinstance(self.model, str | Path):
            name = str(self.model)
            self.tokenizer = self.tokenizer if self.tokenizer is not None else load_tokenizer(name)
            self.load(Path(name))
        elif self.tokenizer is None:
            raise ConfigError("A loaded model comes without a tokenizer. Give tokenizer= as well.")

    def load(self, checkpoint: Path) -> None:
        """Take the weights of a checkpoint directory (or hub id), those of LoRA adapters merged.

        A model that was handed over is left as it is.

        Raises:
            EngineError: there is no model that transformers can load.
        """
        self.model = load_model(str(checkpoint), self.device, self.dtype, self.attention)

    @property
    def context_length(self) -> int:
        """Tokens of prompt and response together; 2^30 for a model that states no limit."""
        config = self.model.config.get_text_config(decoder=True)
        return int(getattr(config, "max_position_embeddings", None) or UNLIMITED)

    @property
    def stop_ids(self) -> frozenset[int]:
        """End-of-sequence tokens of the generation configuration and of the tokenizer."""
        configured = getattr(getattr(self.model, "generation_config", None), "eos_token_id", None)
        several = configured if isinstance(configured, list) else [configured]
        return frozenset(stop for stop in (*several, self.tokenizer.eos_token_id) if stop is not None)

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
        if not 0.0 <= temperature < float("inf"):
            raise ConfigError(f"Temperature must be 0 (greedy) or positive, got {temperature}.")
        limits = self.limits(requests)
        work = Continuations(requests, limits, self.tokenizer, logprobs=logprobs)
        with torch.no_grad(), evaluating(self.model):
            self.decode(shared_prompts([request.token_ids for request in requests]), work, temperature)
        return work.by_request()

    def limits(self, requests: Sequence[Request]) -> list[int]:
        """Tokens to sample at most for each request, after checking that it can be served at all."""
        context = self.context_length
        vocabulary = self.model.get_input_embeddings().num_embeddings
        for index, request in enumerate(requests):
            what = f"Request {index}"
            if request.n < 1 or request.max_tokens < 1:
                raise EngineError(
                    f"{what} has n={request.n}, max_tokens={request.max_tokens}; both must be at least 1."
                )
            if not request.token_ids:
                raise EngineError(f"{what} has no tokens; start from at least one (the tokenizer's BOS, say).")
            if len(request.token_ids) >= context:
                raise EngineError(
                    f"{what} has {len(request.token_ids)} tokens, expected fewer than the model's context ({context}). "
                    "Shorten the prompt or take a model with a longer context."
                )
            if not 0 <= min(request.token_ids) <= max(request.token_ids) < vocabulary:
                raise EngineError(
                    f"{what} has token ids from {min(request.token_ids)} to {max(request.token_ids)}, expected 0 to "
                    f"{vocabulary - 1}. Does the tokenizer belong to this model?"
                )
        return [min(request.max_tokens, context - len(request.token_ids)) for request in requests]

    def decoder(self) -> BatchDecoder:
        model = without_wrapper(self.model)
        if self.kernel == "auto" and is_supported(model):
            return LlamaDecoder(model)
        layers = forkable_layers(model)
        return RecomputingDecoder(model) if layers is None else LibraryDecoder(model, layers)

    def decode(self, prompts: Sequence[SharedPrompt], work: Continuations, temperature: float) -> None:
        """Finish all continuations."""
        decoder, stops = self.decoder(), self.stop_ids
        waiting: deque[DecodeRow] = deque()
        unread = deque(prompts)
        batch = DecodeBatch([], work, stops)
        while True:
            alive = batch.alive
            joining = self.max_rows - alive if unread else min(len(waiting), self.max_rows - alive)
            if not alive or not decoder.room or alive < len(batch.rows) * 3 / 4 or joining > alive / 12:
                rows = batch.survivors()
                while True:
                    self.admit(waiting, rows)
                    if waiting or not unread or len(rows) >= self.max_rows:
                        break
                    waiting += self.begin(decoder, unread, work, temperature)
                if not rows:
                    return
                decoder.arrange(rows)
                batch = DecodeBatch(rows, work, stops)
                tokens = torch.tensor([row.tokens[-1] for row in rows])
            following = NextToken(decoder.step(tokens.to(self.model.device)), temperature)
            tokens, branches = batch.advance(following, decoder.cut)
            waiting.extendleft(branches)

    def begin(
        self, decoder: BatchDecoder, unread: deque[SharedPrompt], work: Continuations, temperature: float
    ) -> list[DecodeRow]:
        """Prefill some prompts and follow them; the rows that branch off."""
        vocabulary = self.model.get_input_embeddings().num_embeddings
        longest = len(unread[0].token_ids)
        prompts: list[SharedPrompt] = []
        keep = rows = 0
        while unread and (len(prompts) + 1) * longest <= max(longest, PREFILL_TOKENS) and rows < self.max_rows:
            needed = max(keep, longest - min(int(work.begin[work.bounds[r]]) for r in unread[0].requests) + 1)
            if prompts and needed * vocabulary * (len(prompts) + 1) > PREFILL_LOGITS:
                break
            keep = needed
            prompts.append(unread.popleft())
            rows += sum(len(work.of(request)) for request in prompts[-1].requests)
        follows = keep * vocabulary * len(prompts) <= PREFILL_LOGITS
        logits = decoder.prefill(prompts, keep if follows else 1)
        found: list[DecodeRow] = []
        for prompt, scores in zip(prompts, logits, strict=True):
            first = longest - keep + 1  # the token that the first of these logits is about
            if follows:
                length = len(prompt.token_ids)
                found += follow_prompt(
                    prompt, NextToken(scores[: length - first + 1], temperature), first, work, self.stop_ids
                )
            else:
                found += unfollowed(prompt, work)
        return found

    def admit(self, waiting: deque[DecodeRow], rows: list[DecodeRow]) -> None:
        """Move waiting rows to the batch while it stays within its bounds; one row always fits."""
        longest = max((row.end for row in rows), default=0)
        while waiting and len(rows) < self.max_rows:
            longest = max(longest, waiting[0].end)
            if rows and longest * (len(rows) + 1) > self.max_batch_tokens:
                return
            rows.append(waiting.popleft())


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Switch dropout off, and back to what it was."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def load_tokenizer(name: str) -> Any:
    from transformers import AutoTokenizer

    if not Path(name).exists() and (name.startswith(("/", ".", "~")) or name.count("/") > 1):
        raise EngineError(
            f"There is no model at {name!r}: expected a directory with a Hugging Face model, "
            "a hub id such as Qwen/Qwen3-0.6B, or reasoner, the embedded one."
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
        # Without tokenizer files, transformers makes an empty one of the kind that the model's configuration names.
        if len(tokenizer) <= len(tokenizer.all_special_ids):
            raise ValueError("its vocabulary is empty")
    except (OSError, ValueError, KeyError) as error:
        raise EngineError(
            f"No tokenizer in {name!r} ({first_line(error)}). Save one beside the model, or give tokenizer=."
        ) from error
    return tokenizer


def load_model(name: str, device: str, dtype: str, attention: str | None) -> Any:
    from transformers import AutoModelForCausalLM

    chosen = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    dtype = "float32" if dtype == "auto" and chosen == "cpu" else dtype
    extra = {} if attention is None else {"attn_implementation": attention}
    try:
        model = AutoModelForCausalLM.from_pretrained(name, dtype=dtype, **extra)
    except (OSError, ValueError, KeyError, ImportError, AttributeError) as error:
        raise EngineError(
            f"No causal language model in {name!r} ({first_line(error)}). "
            "Expected a directory with config.json and weights, or a hub id that can be reached."
        ) from error
    try:
        model = model.to(chosen)
    except (RuntimeError, AssertionError) as error:
        raise EngineError(f"Cannot use device {chosen!r} ({first_line(error)}). Use 'cpu', or 'auto'.") from error
    merge(model)
    return model


def first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
