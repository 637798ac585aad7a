"""What the online methods (PPO, GRPO, RLOO) share: groups of rollouts in, a few steps of policy gradient.

Only sampled tokens carry loss; a prefix is context unless `train_prefix`. Ratios are to the policy as it is before the
update. Where the engine's log-probabilities are others (shorter types, quantized weights, another kernel) a truncated
importance weight stands in front of the loss; where it gave none, its policy is taken to be the one before the update.

Each process that accelerate has launched takes its part of the rows of every step, and their gradients are added up:
the weights are those of one process, up to rounding. All are given the same groups. What is looked up before the steps
is divided and told to all. Models may be sharded (FSDP2), the reference as well as the policy.
"""

from __future__ import annotations

import copy
import math
from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import KW_ONLY, dataclass
from functools import cached_property
from operator import attrgetter
from pathlib import Path
from statistics import fmean
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from gpo.errors import ConfigError, DataError, unknown
from gpo.methods import rows as of_rows
from gpo.methods.lookup import Lookup
from gpo.methods.losses import kl_estimate, policy_loss
from gpo.methods.policy import Policy, check_token_ids, load_policy, saved_state
from gpo.methods.processes import add_up, clip_gradients, is_sharded, load_optimizer, shard, whole
from gpo.methods.rows import TrainingRow, by_group, group_by_start, joined, known_or, set_step_advantages
from gpo.methods.scoring import Scores, scoring
from gpo.methods.training import Training, logger
from gpo.methods.update_checkpoint import SaveClock, UpdateCheckpoint
from gpo.preferences.credit import as_meant
from gpo.types import Group, RoundContext

DEFAULT = RoundContext()


@dataclass
class Online(Training):
    """Policy gradient on groups of rollouts; a subclass says what the advantages are.

    With `credit` (of the round) for steps, an action is a step in place of a completion: it has the advantage that all
    rollouts of the update give it, and ratio and mean are of steps where a method's are of completions.

    Each update takes `epochs` times `minibatches` steps. `save` keeps the optimizer's state beside the model, and a
    method whose model is such a directory goes on from there. With a `work_dir` an update that was killed goes on
    from its last checkpoint when the same update is asked for again, and ends with the same weights.
    """

    _: KW_ONLY
    minibatches: int = 1  # steps of one epoch
    max_tokens: int = 8192  # in memory at once; what trajectories share counts once
    clip: float = 0.2  # of the ratio, downwards
    clip_high: float | None = None  # upwards; None: the same
    importance_cap: float | None = 2.0  # of policy / sampler, the weight of what it sampled; None: they are one policy
    beta: float = 0.0  # weight of the KL to the reference
    kl_in: Literal["loss", "reward"] = "loss"
    unbiased_kl: bool = True  # in the loss, weighed by the token's ratio, which makes its gradient that of the KL
    aggregate: Literal["token", "sequence"] = "token"  # what counts alike in the mean of an optimizer's step
    train_prefix: bool = False  # gradients for the kept prefix too, the authors' unmasked form

    trains_on: ClassVar[Literal["groups"]] = "groups"
    reuses: ClassVar[bool] = False  # whether a run trains on a search's rollouts too where it does not say so
    ratio_of: ClassVar[Literal["token", "sequence"]] = "token"
    reads_hidden: ClassVar[bool] = False  # whether the loss takes the last hidden states too

    def __post_init__(self) -> None:
        super().__post_init__()
        self._positive("minibatches", "max_tokens", "clip", "clip_high", "importance_cap")
        if not self.beta >= 0:
            raise ConfigError(f"beta must be at least 0, got {self.beta}.")
        for name, known in (("kl_in", ("loss", "reward")), ("aggregate", ("token", "sequence"))):
            if (value := getattr(self, name)) not in known:
                raise unknown(name, value, known)

    @property
    def extra_passes(self) -> int:
        """Over all rows, without gradients, beside those that steps after the first and a reference take."""
        return int(self.epochs * self.minibatches == 1 and self.beta > 0 and self.kl_in == "reward")

    @cached_property
    def policy(self) -> Policy:
        """As `Training.policy`, on the device and ready for the policy gradient."""
        model, tokenizer, dtype = super().policy
        if self.gradient_checkpointing:
            model.activation_checkpointing_enable()
            model.enable_input_require_grads()  # adapters behind frozen embeddings would get no gradient
        # Dropout would make the ratio of the first step differ from 1; checkpointing works in training mode only.
        model.train(self.gradient_checkpointing)
        return Policy(self._placed(model), tokenizer, dtype)

    @cached_property
    def optimizer(self) -> torch.optim.Optimizer:
        # Shards and whole tensors, such as a critic's, cannot go through one fused call.
        fused = False if is_sharded(self.policy.model) else None
        parameters = self._parameters()
        optimizer = torch.optim.AdamW(parameters, lr=self.rate, weight_decay=self.weight_decay, foreach=fused)
        state = self._saved_state()
        if state is not None:
            load_optimizer(optimizer, state["optimizer"])
            for group in optimizer.param_groups:
                group |= {"lr": self.rate, "weight_decay": self.weight_decay}
            self.updates = max(self.updates, state["updates"])
        return optimizer

    @cached_property
    def frozen(self) -> Any:
        """The reference model, or None where the KL has no weight."""
        if self.beta == 0:
            return None
        if self._context.reference is not None:
            model, _, _ = load_policy(self._context.reference, images=self._context.images)
        elif self.updates:
            raise ConfigError(
                "Training that goes on with beta > 0 needs the first model: pass reference=ModelRef(...)."
            )
        elif is_sharded(self.policy.model):
            raise ConfigError("A sharded model is not copied: pass reference=ModelRef(...) for beta > 0.")
        else:
            model = copy.deepcopy(self.policy.model)
        return self._placed(model.eval().requires_grad_(False))

    def _placed(self, model: Any) -> Any:
        """A model on the device, or this process's part of it."""
        if not self.accelerator.is_fsdp2:
            return model.to(self.accelerator.device)
        with scoring(model):  # how it can be called is tried out while it is whole
            shard(self.accelerator, model)
        return model

    def update(self, groups: Iterable[Group], context: RoundContext = DEFAULT) -> dict[str, float]:
        """Train on these groups; groups of the same start are one group. Without a difference the model stays.

        Returns:
            reward, reset_share, rows, rows_left_out (failed grade, empty or too long), loss_tokens (that carry loss),
            trained_tokens (of all epochs, context included), steps, ratio_error (largest |policy / sampler - 1| of
            the first step), and means over steps of loss, entropy, kl (policy before || policy), kl_reference (policy
            || reference, where beta is not 0), clip_fraction, importance_capped (share that has the largest weight) and
            grad_norm.
            Entropy and both KLs are in nats per token. Where there is nothing to learn (no row, or all advantages 0):
            skipped (1), rows, rows_left_out, steps (0), and reward and reset_share if there is a row.

        Raises:
            ConfigError: there is no model, or no reference that training which goes on needs; or step credit together
                with `train_prefix`.
            DataError: token ids outside the vocabulary, or a loss that is no number.
        """
        self._begin(context)
        groups = list(groups)
        optimizer, _ = self.optimizer, self.frozen  # the state of a run that goes on comes with them
        rows, left_out = self._rows(groups)
        of_rows = {"rows": float(len(rows)), "rows_left_out": float(left_out)}
        if rows:
            means = (fmean(row.reward for row in rows), fmean(bool(row.start.prefix_ids) for row in rows))
            of_rows = dict(zip(("reward", "reset_share"), means, strict=True)) | of_rows
        self._begin_rows()
        if not self._give_advantages(rows):
            metrics = {"skipped": 1.0, **of_rows, "steps": 0.0}
        else:
            steps = self._take_steps(optimizer, rows)
            metrics = {
                **of_rows,
                "loss_tokens": float(sum(len(row.tokens) for row in rows)),
                "trained_tokens": float(self.epochs * sum(len(row.ids) for row in rows)),
                "steps": float(len(steps)),
                **{key: fmean(step[key] for step in steps) for key in steps[0]},
                "ratio_error": steps[0]["ratio_error"],
            }
        self._write_row(metrics)
        self.accelerator.wait_for_everyone()
        self.updates += 1
        return metrics

    def save(self, path: Path | str) -> None:
        """Write the model, its tokenizer and the state of training to a directory."""
        about = {"method": type(self).__name__, "updates": self.updates, "shapes": self._shapes}
        state = {**about, "optimizer": whole(self.optimizer.state_dict(), keep=self._writes), **self._extra_state()}
        self._save(path, None if self.merges and self.lora is not None else state)  # whole weights are no adapters

    def _clear(self, work_dir: Path) -> None:
        UpdateCheckpoint(work_dir).clear()

    def _give_advantages(self, rows: Sequence[TrainingRow]) -> bool:
        """Whether any row has one; the log says why there is none."""
        # Without a KL and with equal rewards a critic's errors would be all there is.
        of_steps = self._context.credit != "tail"
        if rows and (self.beta > 0 or of_steps or len({row.reward for row in rows}) > 1):
            self._look_up(rows)
            (self._set_step_advantages if of_steps else self._set_advantages)(rows)
            if any(row.advantages.abs().max() >= 1e-6 for row in rows):
                return True
        if rows:
            logger.warning(
                "Nothing to learn: the rewards of all %d trajectories equal those of their group. Sample more from "
                "each start, raise the temperature, or choose starts that succeed sometimes.",
                len(rows),
            )
        else:
            logger.warning(
                "No row to train on: no trajectory has a grade and at most %s tokens. Sample some, look at why "
                "grading failed, or raise max_length.",
                self._limit(),
            )
        return False

    def _take_steps(self, optimizer: torch.optim.Optimizer, rows: Sequence[TrainingRow]) -> list[dict[str, float]]:
        """The metrics of every step, those before a kill included."""
        steps: list[dict[str, float]] = []
        checkpoint = None
        if (work_dir := self._context.work_dir) is not None:
            data = [(row.ids, row.reward, row.group, row.steps) for row in rows]
            checkpoint = UpdateCheckpoint(work_dir, self._fingerprint(data))
            steps = checkpoint.load(self._parameters(), optimizer)
        parts = of_rows.minibatches(rows, self.epochs, self.minibatches, f"{self.seed or 0}/{self.updates}")
        clock = SaveClock()
        for part in parts[len(steps) :]:
            steps.append(self._step(optimizer, part))
            by_count = len(steps) % self.save_steps == 0 or len(steps) == len(parts)
            if checkpoint is not None and (by_count or clock.due):
                clock.begin()
                checkpoint.save(self._parameters(), optimizer, steps, write=self._writes)
                clock.end()
            if self._context.on_step is not None:
                counts = {"update": self.updates, "step": len(steps), "steps": len(parts)}
                self._context.on_step(steps[-1] | counts)
        return steps

    @abstractmethod
    def _set_advantages(self, rows: Sequence[TrainingRow]) -> None:
        """Give every row its advantages, (T,) each, with its score as the credit for all tokens."""

    def _set_group_advantages(self, rows: Sequence[TrainingRow], advantages_of: Callable[[Tensor], Tensor]) -> None:
        """For all tokens of a row what is made of the rewards (G,) of its start, less what the KL takes from them."""
        for siblings in by_group(rows):
            rewards = torch.tensor([row.reward - self._kl_penalty(row).sum().item() for row in siblings])
            for row, advantage in zip(siblings, advantages_of(rewards), strict=True):
                row.advantages = advantage.expand(len(row.tokens))

    def _set_step_advantages(self, rows: Sequence[TrainingRow]) -> None:
        """A(s, a) of its step for every token, less what the KL takes from the step's reward."""
        set_step_advantages(rows, [self._kl_penalty(row) for row in rows], scale=self._scales_steps)

    @property
    def _scales_steps(self) -> bool:
        """Whether the advantages of steps are divided by their deviation over the update."""
        return False

    def _parameters(self) -> list[Tensor]:
        return [parameter for parameter in self.policy.model.parameters() if parameter.requires_grad]

    def _extra_state(self) -> dict[str, Any]:
        return {}

    def _saved_state(self) -> dict[str, Any] | None:
        """What `save` left beside the model; None where there is none, or another method's, run's or adapters'."""
        begins = self.model is None and self._context.number == 1
        state = {} if begins else saved_state(self._source)
        same = state.get("method") == type(self).__name__ and state.get("shapes", self._shapes) == self._shapes
        return state if same else None  # a state from before has no shapes

    @property
    def _shapes(self) -> list[tuple[int, ...]]:
        """Of the model's weights that are trained."""
        return [tuple(parameter.shape) for parameter in self.policy.model.parameters() if parameter.requires_grad]

    def _rows(self, groups: Sequence[Group]) -> tuple[list[TrainingRow], int]:
        credit, strength = self._context.credit, self._context.pairing.strength
        if self.train_prefix and credit != "tail":
            raise ConfigError(
                f"train_prefix gives the kept prefix loss, and with credit {credit!r} only sampled steps have any: "
                "leave one of the two out."
            )
        wording = as_meant(self._context.meaning, self.policy.tokenizer)
        rows = group_by_start(groups, train_prefix=self.train_prefix, credit=credit, strength=strength, wording=wording)
        total = sum(len(group.trajectories) for group in groups)
        check_token_ids(self.policy.model, (row.ids for row in rows))
        limit = self._limit() or math.inf
        rows = [row for row in rows if len(row.ids) <= limit]
        return rows, total - len(rows)

    @property
    def _lookup(self) -> Lookup:
        return Lookup(self.accelerator, self.max_tokens, self._context.temperature, self.bf16, self.reads_hidden)

    def _look_up(self, rows: Sequence[TrainingRow]) -> None:
        """Log-probabilities of the policy before the update, and those of the reference."""
        for row in rows:
            row.old = row.sampled if self.importance_cap is None else None
        # The forward pass of an only step tells them too.
        if self.epochs * self.minibatches > 1 or (self.beta > 0 and self.kl_in == "reward"):
            self._set("old", self.policy.model, [row for row in rows if row.old is None])
        if self.frozen is not None:
            self._set("reference", self.frozen, rows)

    def _set(
        self, name: str, model: Any, rows: Sequence[TrainingRow], read: Callable[[Scores], Tensor] = attrgetter("logps")
    ) -> None:
        """Give each row (T,) numbers that the model tells, by default log-probabilities."""
        for row, values in zip(rows, self._lookup(model, rows, read), strict=True):
            setattr(row, name, values)

    def _kl_penalty(self, row: TrainingRow) -> Tensor:
        """(T,) what the KL takes from the reward of each token."""
        if row.reference is None or self.kl_in == "loss":
            return torch.zeros(len(row.tokens))
        assert row.old is not None
        return self.beta * (row.old - row.reference)

    def _step(self, optimizer: torch.optim.Optimizer, rows: Sequence[TrainingRow]) -> dict[str, float]:
        """One step of the optimizer on these rows."""
        optimizer.zero_grad()
        totals: dict[str, float] = {}
        counted = sum(len(row.tokens) if self.aggregate == "token" else len(row.sizes) for row in rows)
        # A backward pass takes the mean over the processes of what it adds up to shards.
        times = self.accelerator.num_processes if is_sharded(self.policy.model) else 1
        with scoring(self.policy.model) as scorer:
            for members, _, out in self._lookup.batches(scorer, rows):
                if not members:
                    self.accelerator.backward(0 * out.logps.sum())
                    continue
                loss, metrics = self._loss(members, out, counted)
                self.accelerator.backward(times * loss)
                error = max(totals.get("ratio_error", 0.0), metrics.pop("ratio_error"))
                totals = {key: totals.get(key, 0.0) + value for key, value in metrics.items()} | {"ratio_error": error}
        if self.accelerator.num_processes > 1:
            totals = add_up(self.accelerator, self._parameters(), totals, times)
        if not math.isfinite(totals["loss"]):
            raise DataError(
                f"The loss of update {self.updates} is {totals['loss']}. Lower learning_rate (now {self.rate:g}), "
                "train without bf16, or check the model's weights and log-probabilities."
            )
        totals["grad_norm"] = clip_gradients(self._parameters(), self.max_grad_norm)
        optimizer.step()
        return totals

    def _loss(self, rows: Sequence[TrainingRow], out: Scores, counted: int) -> tuple[Tensor, dict[str, float]]:
        """Mean of the tokens' losses, and its metrics: parts of means, so that batches add up.

        Args:
            counted: what counts alike in the mean: tokens, or completions (steps where these have credit).
        """
        assert out.entropy is not None
        now = out.logps.detach()
        weight = of_rows.weights_in_mean(rows, now, counted, self.aggregate)
        old = known_or(rows, "old", now)
        of_token, advantages = out.logps - old, joined(rows, "advantages", now)
        log_ratio, log_weight = of_rows.log_ratios(rows, out.logps, old, self.ratio_of)
        importance = log_weight.exp().clamp(max=self.importance_cap or math.inf)
        high = self.clip if self.clip_high is None else self.clip_high
        per_token, held = policy_loss(log_ratio, advantages, self.clip, high)
        per_token = importance * per_token
        metrics = {
            "entropy": (out.entropy * weight).sum().item(),
            "clip_fraction": (held * weight).sum().item(),
            "importance_capped": ((log_weight.exp() > importance) * weight).sum().item(),
            "kl": (kl_estimate(old, now) * weight).sum().item(),
            "ratio_error": ((log_ratio.detach() + log_weight).exp() - 1).abs().max().item(),
        }
        if rows[0].reference is not None:
            kl = kl_estimate(out.logps, joined(rows, "reference", out.logps))
            metrics["kl_reference"] = (kl.detach() * weight).sum().item()
            if self.kl_in == "loss":
                per_token = per_token + self.beta * (importance * of_token.exp() * kl if self.unbiased_kl else kl)
        extra, more = self._extra_loss(rows, out, weight)
        loss = (per_token * weight).sum() + extra
        return loss, {"loss": loss.item(), **metrics, **more}

    def _extra_loss(self, rows: Sequence[TrainingRow], out: Scores, weight: Tensor) -> tuple[Tensor, dict[str, float]]:
        return torch.zeros((), device=weight.device), {}
