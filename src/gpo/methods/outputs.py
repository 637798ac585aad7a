"""What a model says of the tokens that carry loss, without the logits of a whole batch in memory.

The head is applied to a chunk of positions at a time, and its logits are computed again for the gradient. A model whose
logits are more than its head of the last hidden states (capped, scaled) computes its own, all of them at once.
Axes: B rows, L positions of a padded batch that predict a token, H hidden size, M positions that carry loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from peft import PeftModel
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.checkpoint import checkpoint

from gpo.methods.rows import TrainingRow

CHUNK = 2**25  # logits in one chunk: 128 MiB in float32
# Fields of a configuration that change logits behind the head, and the values with which they change nothing.
BEHIND_THE_HEAD = {
    "final_logit_softcapping": (None,),  # Gemma
    "logit_scale": (None, 1.0),  # Cohere
    "logits_scaling": (None, 1.0),  # Granite
    "lm_head_multiplier": (None, 1.0),  # Falcon H1
    "output_multiplier": (None, 1.0),
}
PROBE = 8  # tokens on which head and model are compared once

_plain: WeakKeyDictionary[torch.nn.Module, bool] = WeakKeyDictionary()


@dataclass(eq=False)
class PolicyOutputs:
    """What the model says of the rows of a batch, position for position the token that comes next."""

    rows: Sequence[TrainingRow]
    mask: Tensor  # (B, L) 1 where the next token carries loss
    logps: Tensor  # (B, L) nats; 0 where it carries none
    entropy: Tensor  # (B, L) nats, without gradient; 0 where it carries none
    hidden: Tensor | None  # (B, L, H) what the model's head saw, if it was asked for

    def cut(self, values: Tensor) -> list[Tensor]:
        """(B, L) numbers cut back to (T,) for each row, on the CPU."""
        places = values.float().cpu()
        return [v[len(r.context) - 1 : len(r.ids) - 1] for r, v in zip(self.rows, places, strict=True)]


def sequence_outputs(
    model: Any, rows: Sequence[TrainingRow], temperature: float, *, hidden: bool = False
) -> PolicyOutputs:
    """Run the model on these rows, padded on the right.

    Args:
        hidden: keep the last hidden states too.
    """
    device = model.device
    ids = pad_sequence([torch.tensor(row.ids) for row in rows], batch_first=True).to(device)
    lengths = torch.tensor([len(row.ids) for row in rows], device=device)[:, None]
    contexts = torch.tensor([len(row.context) for row in rows], device=device)[:, None]
    positions = torch.arange(ids.shape[1], device=device)
    inputs = {"input_ids": ids, "attention_mask": (positions < lengths).long()}
    trained = (positions[1:] >= contexts) & (positions[1:] < lengths)
    states: Tensor | None = None
    if has_plain_head(model, ids[:1, :PROBE]):
        states = last_hidden_states(model, **inputs)[:, :-1]
        head, given = model.get_output_embeddings(), states[trained]
    else:
        out = model(**inputs, use_cache=False, output_hidden_states=hidden)
        states = out.hidden_states[-1][:, :-1] if hidden else None
        head, given = torch.nn.Identity(), out.logits[:, :-1][trained]
    logps, entropy = token_logps(head, given, ids[:, 1:][trained], temperature)
    nowhere = torch.zeros(trained.shape, dtype=logps.dtype, device=device)
    return PolicyOutputs(
        rows,
        mask=trained.float(),
        logps=nowhere.masked_scatter(trained, logps),
        entropy=nowhere.masked_scatter(trained, entropy),
        hidden=states if hidden else None,
    )


def token_logps(head: torch.nn.Module, given: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """(M,) log-probability of each target, and (M,) entropy without gradient, both in nats.

    Args:
        head: from what is given, (M, ...), to logits.
    """
    with torch.no_grad():
        size = max(1, CHUNK // head(given[:1]).shape[-1])
    if len(given) <= size:
        return _score(head, given, targets, temperature)
    found = [
        checkpoint(_score, head, part, target, temperature, use_reentrant=False, preserve_rng_state=False)
        for part, target in zip(torch.split(given, size), torch.split(targets, size), strict=True)
    ]
    logps, entropy = (torch.cat(each) for each in zip(*found, strict=True))
    return logps, entropy


def _score(head: torch.nn.Module, given: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    every = (head(given).float() / temperature).log_softmax(dim=-1)
    logps = every.gather(-1, targets[:, None])[:, 0]
    with torch.no_grad():
        entropy = -(every.exp() * every).sum(dim=-1)
    return logps, entropy


def last_hidden_states(model: Any, **inputs: Tensor) -> Tensor:
    """(B, L, H) what the model's head sees."""
    whole = model.get_base_model() if isinstance(model, PeftModel) else model
    states: Tensor = whole.base_model(**inputs, use_cache=False).last_hidden_state
    return states


@torch.no_grad()
def has_plain_head(model: Any, probe: Tensor) -> bool:
    """Whether the logits are the head of the last hidden states: by the configuration, and by one look at these ids."""
    if model not in _plain:
        config = model.config.get_text_config()
        changed = any(getattr(config, name, values[0]) not in values for name, values in BEHIND_THE_HEAD.items())
        _plain[model] = not changed and _head_gives_the_logits(model, probe)
    return _plain[model]


def _head_gives_the_logits(model: Any, probe: Tensor) -> bool:
    inputs = {"input_ids": probe, "attention_mask": torch.ones_like(probe)}
    given = model(**inputs, use_cache=False).logits
    head = model.get_output_embeddings()
    if head is None:
        return False
    found = head(last_hidden_states(model, **inputs))
    return found.shape == given.shape and torch.allclose(found, given, rtol=1e-3, atol=1e-3, equal_nan=True)


def pad_rows(rows: Sequence[TrainingRow], like: PolicyOutputs, *names: str) -> dict[str, Tensor]:
    """Fields (T,) of the rows as (B, L), 0 where a token carries no loss."""
    placed = {name: torch.zeros_like(like.mask) for name in names}
    for name, target in placed.items():
        for i, row in enumerate(rows):
            target[i, len(row.context) - 1 : len(row.ids) - 1] = getattr(row, name).to(target)
    return placed
