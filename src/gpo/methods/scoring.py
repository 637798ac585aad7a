"""Log-probabilities of packed sequences, with gradient, for any causal language model of transformers.

Axes: N computed tokens, U of them that predict a scored token, S scored tokens of all sequences, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from peft import PeftModel
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from gpo.errors import EngineError
from gpo.methods.attention import NAME, tile
from gpo.methods.processes import through
from gpo.methods.tree import PackedBatch, pack

LOGITS = 1 << 24  # held at once; more are computed in chunks, and once more in the backward pass
TRIAL = (((5, 3, 7), (2, 4, 6)), ((5, 3, 7), (2, 9)), ((5, 3, 7, 2), (8, 1, 4, 3)), ((6, 1), (3, 5)))

_tried: WeakKeyDictionary[torch.nn.Module, tuple[bool, bool]] = WeakKeyDictionary()  # shares, cuts_head


class Scores(NamedTuple):
    """What the model says of the scored tokens of a batch, sequence after sequence; `batch.split` takes them apart."""

    logps: Tensor  # (S,) nats
    entropy: Tensor | None = None  # (S,) nats, of the distribution that each token was drawn from; without gradient
    hidden: Tensor | None = None  # (S, H) what the model's head saw before each token


@dataclass(frozen=True, eq=False)
class Scorer:
    """A causal language model that scores packed sequences; `scoring` makes one."""

    model: Any
    shares: bool  # it takes trees: what `pack` is to be told as `share`
    cuts_head: bool  # only the logits that are asked for are computed, in chunks
    within: bool = False  # it is called by the model's own forward

    def __call__(
        self, batch: PackedBatch, temperature: float = 1.0, *, entropy: bool = False, hidden: bool = False
    ) -> Scores:
        """The log-probabilities of all scored tokens of a batch, at a temperature.

        Raises:
            EngineError: the batch is packed as the model does not take it, or no longer.
        """
        attends = without_adapters(self.model).config.get_text_config()._attn_implementation == NAME
        if attends != (batch.tree is not None):
            raise EngineError(
                f"{type(self.model).__name__} attends to {'trees' if attends else 'rows'} here and got the other: pack "
                "with share=scorer.shares, and score inside of the `with scoring(model)` block."
            )
        told = (batch, _inputs(batch, self.model.device), temperature, entropy, hidden)
        return self._score(*told) if self.within else through(self.model, lambda: self._score(*told))

    def _score(
        self, batch: PackedBatch, inputs: dict[str, Any], temperature: float, entropy: bool, hidden: bool
    ) -> Scores:
        device = self.model.device
        used, places = torch.unique(batch.predictors, return_inverse=True)
        used = used.to(device)
        vocabulary = self.model.config.get_text_config().vocab_size
        if self.cuts_head:
            states = without_adapters(self.model).get_decoder()(**inputs)[0].flatten(0, 1).index_select(0, used)
            logps, entropies = _in_chunks(self._logits, states, places, batch.targets, vocabulary, temperature, entropy)
        else:
            out = self.model(**inputs, output_hidden_states=hidden)
            states = out.hidden_states[-1].flatten(0, 1).index_select(0, used) if hidden else None
            logits = out.logits.flatten(0, 1).index_select(0, used).float()
            logps, entropies = _of_tokens(logits, places.to(device), batch.targets.to(device), temperature, entropy)
        return Scores(logps, entropies, states.index_select(0, places.to(device)) if hidden else None)

    def _logits(self, states: Tensor) -> Tensor:
        """(U, H) to (U, V). A model that does more to its logits than this is found out by `scoring`."""
        logits: Tensor = without_adapters(self.model).get_output_embeddings()(states).float()
        cap = getattr(self.model.config.get_text_config(), "final_logit_softcapping", None)
        return logits if cap is None else (logits / cap).tanh() * cap


@contextmanager
def scoring(model: Any, *, within: bool = False) -> Iterator[Scorer]:
    """Until the block is left, a model attends to trees if it can; the backward pass belongs inside.

    Whether it can is tried once: a small tree must have the log-probabilities of its sequences as padded rows.
    Recurrent layers fail at that, as does attention that cannot be replaced or has more to it than a window and a cap.
    They are scored as padded rows then, and so they are if attention is not told of a window or of chunks that the
    configuration has.
    """
    if model not in _tried:
        _tried[model] = _try_out(model)
    shares, cuts_head = _tried[model]
    with _attending(model) if shares else nullcontext():
        yield Scorer(model, shares, cuts_head, within)


@contextmanager
def _attending(model: Any) -> Iterator[None]:
    """Until the block is left, a model attends to trees."""
    base = without_adapters(model)
    before = base.config.get_text_config()._attn_implementation
    # The vision part of a model attends to its images as before.
    part = next(
        (name for name in base.config.sub_configs if getattr(base.config, name) is base.config.get_text_config()), None
    )
    try:
        base.set_attn_implementation(NAME if part is None else {part: NAME})
        yield
    finally:
        base.set_attn_implementation(before if part is None else {part: before})


def _try_out(model: Any) -> tuple[bool, bool]:
    """Whether a model takes trees, and whether its logits are its head's."""
    base = without_adapters(model)
    tolerance = torch.finfo(model.dtype).eps ** 0.5
    expected, _ = _trial(Scorer(model, False, False))
    found, _ = _try(Scorer(model, False, True))
    cuts_head = _agree(found, expected, tolerance)
    if not base._can_set_attn_implementation():
        return False, cuts_head
    with _attending(model):
        found, windows = _try(Scorer(model, True, cuts_head))
    return _agree(found, expected, tolerance) and _windows(base) <= windows, cuts_head


def without_adapters(model: Any) -> Any:
    """The causal language model inside of adapters, which stay in its layers."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def _try(scorer: Scorer) -> tuple[Tensor | None, set[int | None]]:
    """As `_trial`; None where the model cannot be called so, for whatever reason of its own."""
    try:
        return _trial(scorer)
    except (EngineError, TypeError, ValueError, AttributeError, RuntimeError):
        return None, set()


@torch.no_grad()
def _trial(scorer: Scorer) -> tuple[Tensor, set[int | None]]:
    """Log-probabilities of the tokens of `TRIAL`, and the windows that the model asked its attention for."""
    device = scorer.model.device
    vocabulary = scorer.model.get_input_embeddings().num_embeddings
    sequences = [([i % vocabulary for i in context], [i % vocabulary for i in tokens]) for context, tokens in TRIAL]
    (batch,) = pack(sequences, 1 << 10, share=scorer.shares)
    inputs = _inputs(batch, device)
    with torch.autocast(device.type, enabled=False):
        logps = batch.split(scorer._score(batch, inputs, 1.0, False, False).logps)
    by_sequence = dict(zip(batch.sequences, logps, strict=True))
    windows = inputs["tree"].windows if scorer.shares else set()
    return torch.cat([by_sequence[i] for i in range(len(sequences))]), windows


def _agree(found: Tensor | None, expected: Tensor, tolerance: float) -> bool:
    """Up to rounding: a wrong attention or head is off by about as much as the numbers differ from each other."""
    if found is None:
        return False
    spread = (expected - expected.mean()).abs().max()
    return bool((found - expected).abs().max() <= tolerance * spread)


def _windows(base: Any) -> set[int | None]:
    """The sliding windows or chunks that some layer of the model keeps to, by its configuration."""
    config = base.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ())
    if kinds == {"full_attention"}:
        return set()
    return {getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")} - {None}


def _inputs(batch: PackedBatch, device: torch.device) -> dict[str, Any]:
    """What the model is called with."""
    ids = batch.token_ids.to(device)
    if batch.tree is None:
        mask = torch.arange(ids.shape[1]) < batch.lengths[:, None]
        return {"input_ids": ids, "attention_mask": mask.long().to(device), "use_cache": False}
    tiles = tile(batch.tree, device)
    padding = (0, len(tiles.ends) - ids.shape[1])
    return {
        "input_ids": F.pad(ids, padding),
        "position_ids": F.pad(batch.positions.to(device), padding),
        "use_cache": False,
        "tree": tiles,
    }


def _in_chunks(
    logits: Callable[[Tensor], Tensor],
    states: Tensor,
    places: Tensor,
    targets: Tensor,
    vocabulary: int,
    temperature: float,
    entropy: bool,
) -> tuple[Tensor, Tensor | None]:
    """As `_of_tokens`, with the logits of a part of the states (U, H) at a time."""
    device, rows = states.device, max(1, LOGITS // vocabulary)

    def of_part(part: Tensor, places: Tensor, targets: Tensor) -> tuple[Tensor, Tensor | None]:
        return _of_tokens(logits(part), places, targets, temperature, entropy)

    if len(states) <= rows:
        return of_part(states, places.to(device), targets.to(device))
    order = places.argsort(stable=True)
    cuts = torch.searchsorted(places[order], torch.arange(rows, len(states), rows)).tolist()
    parts = [
        checkpoint(of_part, part, (places[own] - first).to(device), targets[own].to(device), use_reentrant=False)
        for first, part, own in zip(
            range(0, len(states), rows), torch.split(states, rows), order.tensor_split(cuts), strict=True
        )
    ]
    back = order.argsort().to(device)
    logps, entropies = zip(*parts, strict=True)
    return torch.cat(logps)[back], torch.cat(entropies)[back] if entropy else None


def _of_tokens(
    logits: Tensor, places: Tensor, targets: Tensor, temperature: float, entropy: bool
) -> tuple[Tensor, Tensor | None]:
    """(S,) log-probabilities of the targets by the rows of logits (U, V) at their places, and entropies there."""
    every = (logits if temperature == 1 else logits / temperature).log_softmax(dim=-1)
    logps = every[places, targets]
    if not entropy:
        return logps, None
    with torch.no_grad():
        spread = -(every.exp() * every).sum(dim=-1)
    return logps, spread[places]
