"""How much each step moves the probability of the answer, from one forward and one backward pass: no rollouts.

    gradient_k = sum_{t in step k} grad_{e_t} log p(answer) . e_t
    deletion_k = log p(answer) - log p(answer | the response without step k)

The answer is the last `answer_tokens` tokens of the response, e_t the input embedding of token t. The first is, to
first order, what log p(answer) loses when the step's embeddings are set to zero; the second really takes the step out
and is its check (one more forward pass for each step). Both say what the policy's own answer rests on, right or wrong,
which is not what the success probability rests on.

Source: gradient times input (Shrikumar et al., arXiv 1605.01713) and erasure (Li et al., arXiv 1612.08220), by step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from gpo.contracts import Sample
from gpo.errors import ConfigError
from gpo.estimators.tally import NO_EVIDENCE, Block, Reset, Tally, check, largest
from gpo.storage.weights import SMALL, load_checked
from gpo.types import Evidence, ModelRef, StepScores, Trajectory

ROOM = 1.5  # free memory of a GPU that a model is put there with, in sizes of its weights


@dataclass(frozen=True)
class Gradient:
    """Reads one model; `sample` is not called. Of the values only the observed reward is known.

    The answer's own tokens belong to no step. Degenerate case: a response with nothing before the answer, or on which
    no step has an influence above 0, has no critical step.
    """

    model: Any = None  # directory, hub id, or a loaded causal language model, which is left as it is
    influence: Literal["gradient", "deletion"] = "gradient"
    sign: Literal["support", "oppose", "size"] = "size"  # the step that raises, lowers, or moves the answer the most
    answer_tokens: int = 4  # at the end of the response, the end-of-sequence token included
    reset: Reset = "before"

    def __post_init__(self) -> None:
        check(self)
        if self.answer_tokens < 1:
            raise ConfigError(f"Gradient got answer_tokens={self.answer_tokens}; expected at least 1.")
        if self.model is None:
            raise ConfigError("Gradient has no model. Give model= a directory, a hub id or a loaded model.")

    def __call__(
        self, trajectories: Sequence[Trajectory], sample: Sample, evidence: Evidence = NO_EVIDENCE
    ) -> list[StepScores]:
        """One result for each trajectory."""
        return [Tally(t).scores(self._block(t), self.reset, 0.95) for t in trajectories]

    @cached_property
    def _loaded(self) -> Any:
        return loaded(self.model)

    def _block(self, trajectory: Trajectory) -> Block | None:
        found = influences(self._loaded, trajectory, self.answer_tokens, self.influence)
        return largest({"support": found, "oppose": [-x for x in found], "size": [abs(x) for x in found]}[self.sign])


def influences(
    model: Any, trajectory: Trajectory, answer_tokens: int, kind: Literal["gradient", "deletion"] = "gradient"
) -> list[float]:
    """(K,) the influence of each step on the log-probability of the response's last tokens, in nats."""
    import torch

    prompt, response = trajectory.start.prompt_ids, trajectory.response_ids
    cut = max(0, len(response) - answer_tokens)
    answer = response[cut:]
    spans = [(min(begin, cut), min(end, cut)) for begin, end in pairwise(trajectory.boundaries)]
    embed = model.get_input_embeddings()

    def log_probability(body: Sequence[int], inputs: Any = None) -> Any:
        ids = torch.tensor([[*prompt, *body, *answer]], device=model.device)
        logits = model(**({"input_ids": ids} if inputs is None else {"inputs_embeds": inputs})).logits[0]
        first = ids.shape[1] - len(answer)
        chosen = logits[first - 1 : -1].float().log_softmax(-1)
        return chosen.gather(-1, ids[0, first:, None]).sum()

    training = model.training
    model.eval()
    try:
        if kind == "deletion":
            with torch.no_grad():
                whole = float(log_probability(response[:cut]))
                return [
                    whole - float(log_probability([*response[:begin], *response[end:cut]])) if end > begin else 0.0
                    for begin, end in spans
                ]
        ids = torch.tensor([[*prompt, *response]], device=model.device)
        inputs = embed(ids).detach().requires_grad_()
        [gradient] = torch.autograd.grad(log_probability(response[:cut], inputs), inputs)
        by_token = (gradient[0].float() * inputs[0].detach().float()).sum(-1)
        return [float(by_token[len(prompt) + begin : len(prompt) + end].sum()) for begin, end in spans]
    finally:
        model.train(training)


def loaded(model: Any) -> Any:
    """A model from a directory or the hub in float32, on a GPU where it is large and fits; one that is loaded as it is.

    Raises:
        ConfigError: it is one of vision and language, whose images nobody gives to a search.
        EngineError: there is none, or its weights are not whole.
    """
    if isinstance(model, str | Path):
        model = ModelRef(str(model), str(model))
    if not isinstance(model, ModelRef):
        return model
    import torch

    found = load_checked(str(model.source), revision=model.revision, dtype=torch.float32)
    if hasattr(found, "get_base_model"):  # adapters stay in its modules
        found = found.get_base_model()
    if hasattr(found, "get_image_features"):
        raise ConfigError(
            f"{model.name!r} is no causal language model of text alone. The searches critic, probe and gradient, and "
            "gpo states, read such a model by themselves; with images, search by rollouts (adaptive, monte_carlo)."
        )
    size = found.num_parameters()
    if torch.cuda.is_available() and size > SMALL and ROOM * 4 * size < torch.cuda.mem_get_info()[0]:
        return found.to("cuda")
    return found
