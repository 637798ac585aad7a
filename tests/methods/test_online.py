import copy
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_policy import EOS, completion_logps, make_model, make_tokenizer, same, state

from gpo.contracts import OnlineMethod
from gpo.engines.hf import HFEngine
from gpo.errors import ConfigError, DataError
from gpo.estimators.critic import Critic
from gpo.methods.grpo import GRPO
from gpo.methods.losses import gae
from gpo.methods.online import Online
from gpo.methods.ppo import PPO
from gpo.methods.rloo import RLOO
from gpo.methods.rows import group_by_start, minibatches
from gpo.methods.scoring import scoring
from gpo.types import Completion, Group, ModelRef, Request, RoundContext, Score, Start, Trajectory

METHODS = [PPO, GRPO, RLOO]
DEFAULT = RoundContext()


def told(reference: Any) -> RoundContext:
    return RoundContext(reference=ModelRef(reference, "reference", tokenizer=make_tokenizer()))


def trajectory(
    start: Start, ids: Sequence[int], reward: float | None, logprobs: Sequence[float] | None = None
) -> Trajectory:
    verdict = "failed" if reward is None else "right" if reward else "wrong"
    given = None if logprobs is None else tuple(logprobs)
    completion = Completion(tuple(ids), "", "stop", given)
    ends = tuple(range(1, len(start.prefix_ids) + len(ids) + 1))
    return Trajectory(f"{start}/{tuple(ids)}", start, completion, Score(reward, verdict), ends)  # type: ignore[arg-type]


def group(
    prompt: Sequence[int], prefix: Sequence[int], *rows: tuple[Sequence[int], float | None], model: Any = None
) -> Group:
    """Trajectories of one start; with a model, its log-probabilities are the behaviour's."""
    start = Start(str(prompt), tuple(prompt), tuple(prefix))
    trajectories = []
    for ids, reward in rows:
        with torch.no_grad():
            logprobs = None if model is None else completion_logps(model, start.token_ids, ids).tolist()
        trajectories.append(trajectory(start, ids, reward, logprobs))
    return Group(start, tuple(trajectories))


def mixed_groups(model: Any = None) -> list[Group]:
    """A fresh group of three and a reset group of two; lengths 1 to 5."""
    return [
        group([1, 2], [], ([3, 4, 5, 6, EOS], 1.0), ([7, EOS], 0.0), ([8], 0.0), model=model),
        group([1, 2], [3, 4], ([9, EOS], 0.0), ([10, 11, EOS], 1.0), model=model),
    ]


def run(
    kind: type[Online], model: Any, groups: Sequence[Group], context: RoundContext = DEFAULT, **settings: Any
) -> tuple[Any, dict[str, float]]:
    method = kind(model, make_tokenizer(), **{"learning_rate": 1e-3, **settings})
    return method, method.update(groups, context)


@pytest.mark.parametrize("kind", METHODS)
def test_each_is_a_method(kind: type[Online]) -> None:
    assert isinstance(kind(make_model(), make_tokenizer()), OnlineMethod)


@pytest.mark.parametrize("kind", METHODS)
def test_the_first_ratio_is_one_with_log_probabilities_of_the_engine(tmp_path: Path, kind: type[Online]) -> None:
    model = make_model()
    model.save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    engine = HFEngine(tmp_path)
    starts = [Start("p", (1, 2, 3)), Start("p", (1, 2, 3), (4, 5))]
    requests = [Request(start.token_ids, 6, 12, seed) for seed, start in enumerate(starts)]
    completions = engine.generate(requests, temperature=0.7, logprobs=True)
    groups = [
        Group(start, tuple(trajectory(start, c.token_ids, float(i % 2), c.logprobs) for i, c in enumerate(sampled)))
        for start, sampled in zip(starts, completions, strict=True)
    ]
    _, metrics = run(kind, copy.deepcopy(model), groups, RoundContext(temperature=0.7), max_tokens=40)
    assert 0 < metrics["ratio_error"] < 1e-4
    _, wrong = run(kind, copy.deepcopy(model), groups)
    assert wrong["ratio_error"] > 0.01


@pytest.mark.parametrize("kind", METHODS)
def test_without_log_probabilities_the_policy_before_the_update_stands_in(kind: type[Online]) -> None:
    _, metrics = run(kind, make_model(), mixed_groups())
    assert metrics["ratio_error"] < 1e-5


def expected_loss(kind: type[Online], now: Any, before: Any, reference: Any, beta: float) -> float:
    """The loss of `mixed_groups`, one sequence at a time, with a clip that does not bind."""
    total, tokens = 0.0, 0
    groups = mixed_groups()
    for g in groups:
        rewards = [t.score.value or 0.0 for t in g.trajectories]
        mean, n = sum(rewards) / len(rewards), len(rewards)
        deviation = math.sqrt(sum((r - mean) ** 2 for r in rewards) / (n - 1))
        for t, reward in zip(g.trajectories, rewards, strict=True):
            with torch.no_grad():
                logps, old, ref = (
                    completion_logps(m, g.start.token_ids, t.completion.token_ids) for m in (now, before, reference)
                )
            tokens += len(logps)
            if kind is GRPO:
                advantage = (reward - mean) / (deviation + 1e-4)
                kl = (logps - old).exp() * ((ref - logps).exp() - (ref - logps) - 1)
                total += (-(logps - old).exp() * advantage + beta * kl).sum().item()
            else:
                penalised = [
                    r - beta * (completion_sum(before, g, s) - completion_sum(reference, g, s))
                    for r, s in zip(rewards, g.trajectories, strict=True)
                ]
                i = g.trajectories.index(t)
                others = [r for j, r in enumerate(penalised) if j != i]
                advantage = penalised[i] - sum(others) / len(others)
                total += -math.exp((logps - old).sum().item()) * advantage
    return total / (tokens if kind is GRPO else sum(len(g.trajectories) for g in groups))


def completion_sum(model: Any, g: Group, t: Trajectory) -> float:
    with torch.no_grad():
        return completion_logps(model, g.start.token_ids, t.completion.token_ids).sum().item()


@pytest.mark.parametrize("kind", [GRPO, RLOO])
@pytest.mark.parametrize("max_tokens", [6, 8192])
def test_the_loss_equals_an_independent_computation(kind: type[Online], max_tokens: int) -> None:
    now, before = make_model(), make_model()
    with torch.no_grad():
        for p in before.parameters():
            p.add_(0.003 * torch.randn_like(p))
    reference = copy.deepcopy(now)
    with torch.no_grad():
        for p in reference.parameters():
            p.mul_(0.9)
    expected = expected_loss(kind, now, before, reference, beta=0.3)
    groups = mixed_groups(before)
    settings = {"beta": 0.3, "clip": 0.9, "max_tokens": max_tokens, "importance_cap": None}
    _, metrics = run(kind, now, groups, told(reference), **settings)
    assert metrics["loss"] == pytest.approx(expected, abs=1e-5)
    assert metrics["clip_fraction"] == 0
    assert metrics["ratio_error"] > 0.001


def test_ppo_loss_equals_an_independent_computation() -> None:
    model = make_model()
    method = PPO(model, make_tokenizer(), whiten=False, monte_carlo=False, value_coefficient=0.7, trace=0.9)
    with torch.no_grad():
        method.head.weight.normal_(std=0.2)
        method.head.bias.fill_(0.3)
    start, total, tokens = copy.deepcopy(model), 0.0, 0
    for g in mixed_groups():
        for t in g.trajectories:
            ids = torch.tensor([[*g.start.token_ids, *t.completion.token_ids]])
            with torch.no_grad():
                hidden = start.model(ids).last_hidden_state[0, len(g.start.token_ids) - 1 : -1]
                values = method.head(hidden)[:, 0]
            rewards = torch.zeros(len(values))
            rewards[-1] = t.score.value or 0.0
            advantages, returns = gae(rewards, values, 1.0, 0.9)
            total += (-advantages + 0.7 * 0.5 * (values - returns) ** 2).sum().item()
            tokens += len(values)
    assert method.update(mixed_groups())["loss"] == pytest.approx(total / tokens, abs=1e-5)


@pytest.mark.parametrize("kind", METHODS)
def test_gradients_equal_finite_differences(kind: type[Online]) -> None:
    model = make_model().double()
    method = kind(model, make_tokenizer(), beta=0.1, kl_in="loss", clip=0.9, aggregate="sequence", epochs=2)
    rows, _ = method._rows(mixed_groups())
    method._look_up(rows)
    method._set_advantages(rows)

    def loss() -> torch.Tensor:
        ((members, _, out),) = method._lookup.batches(scorer, rows)
        return method._loss(members, out, len(rows))[0]

    with torch.no_grad():  # away from ratio 1, where the surrogate is no longer the plain policy gradient
        for p in model.parameters():
            p.add_(0.01 * torch.randn_like(p))
    with scoring(model) as scorer:
        check_gradients(model, loss)


def check_gradients(model: Any, loss: Callable[[], torch.Tensor]) -> None:
    for name in ("lm_head.weight", "model.layers.0.self_attn.q_proj.weight", "model.layers.1.mlp.up_proj.weight"):
        parameter = model.get_parameter(name)
        model.zero_grad()
        loss().backward()
        index = int(parameter.grad.abs().argmax())
        flat, step, sides = parameter.data.view(-1), 1e-3, []
        for sign in (1, -1):
            flat[index] += sign * step
            with torch.no_grad():
                sides.append(loss().item())
            flat[index] -= sign * step
        numeric = (sides[0] - sides[1]) / (2 * step)
        assert parameter.grad.view(-1)[index].item() == pytest.approx(numeric, rel=0.02, abs=1e-4)


def test_prefix_tokens_carry_loss_only_if_asked() -> None:
    groups = [group([1, 2], [3, 4], ([9, EOS], 0.0), ([10, EOS], 1.0))]
    for train_prefix, expected in ((False, 4.0), (True, 8.0)):
        method, metrics = run(GRPO, make_model(), groups, train_prefix=train_prefix)
        assert metrics["loss_tokens"] == expected
        assert metrics["trained_tokens"] == 12.0  # two sequences of 6, whatever carries loss
        rows, _ = method._rows(groups)
        assert {row.context for row in rows} == {(1, 2) if train_prefix else (1, 2, 3, 4)}


def test_the_shared_prefix_takes_part_in_the_gradient_only_as_context() -> None:
    """Planted: if prefix tokens had a loss, raising one reset completion would move them."""
    model = make_model()
    method = GRPO(model, make_tokenizer())
    rows, _ = method._rows(mixed_groups())
    with scoring(model) as scorer:
        ((members, batch, _),) = method._lookup.batches(scorer, rows)
    assert sorted(batch.sizes) == [1, 2, 2, 3, 5]
    assert batch.targets.tolist() == [token for row in members for token in row.tokens]


def test_groups_are_per_start() -> None:
    fresh, reset = mixed_groups()
    halves = [Group(fresh.start, fresh.trajectories[:1]), reset, Group(fresh.start, fresh.trajectories[1:])]
    models = [make_model(), make_model()]
    losses = [run(GRPO, m, g)[1]["loss"] for m, g in zip(models, ([fresh, reset], halves), strict=True)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)


def test_search_values_teach_the_critic_wherever_a_trajectory_passes() -> None:
    method = PPO(make_model(), make_tokenizer())
    rows, _ = method._rows(mixed_groups())
    method._look_up(rows)
    method._set_advantages(rows)
    passing = next(row for row in rows if row.tokens == (3, 4, 5, 6, EOS))
    # From the question one of three is right, after the tokens 3 and 4 one of two.
    assert passing.returns[0].item() == pytest.approx(1 / 3)
    assert passing.returns[2].item() == pytest.approx(1 / 2)
    assert passing.returns[4].item() == pytest.approx(1.0)


def test_the_critic_learns_and_gives_values_at_boundaries() -> None:
    method = PPO(make_model(), make_tokenizer(), learning_rate=5e-3, value_coefficient=2.0)
    errors = [method.update(mixed_groups())["value_error"] for _ in range(60)]
    assert errors[-1] < 0.25 * errors[0]
    good, bad = mixed_groups()[0].trajectories[:2]
    values = method.values([good, bad])
    assert [len(v) for v in values] == [6, 3]
    assert values[0][-1] == 1.0
    assert values[0][4] > 0.5 > values[1][1]
    failed = trajectory(good.start, [5, 6], None)
    assert math.isnan(method.values([failed])[0][-1])


def test_the_critic_begins_at_the_mean_reward() -> None:
    """Four trajectories of two tokens, one of them right: the squared error is the variance, 1/4 * 3/4.

    It falls to the half of that: before the first token nothing can be known, after it everything.
    """
    rows = [([3, 4], 1.0), ([5, 6], 0.0), ([7, 8], 0.0), ([9, 10], 0.0)]
    method = PPO(make_model(), make_tokenizer(), monte_carlo=False, learning_rate=3e-3)
    errors = [method.update([group([1, 2], [], *rows)])["value_error"] for _ in range(30)]
    assert errors[0] == pytest.approx(3 / 16, abs=1e-6)
    assert errors[-1] == pytest.approx(3 / 32, abs=5e-3)
    bias = method.head.bias.item()
    method._begin_at_mean([])  # never twice
    assert method.head.bias.item() == bias


def test_the_critic_of_ppo_serves_as_an_estimator(tmp_path: Path) -> None:
    make_model().save_pretrained(tmp_path / "start")
    make_tokenizer().save_pretrained(tmp_path / "start")
    method = PPO(tmp_path / "start", learning_rate=5e-3, value_coefficient=2.0)
    for _ in range(20):
        method.update(mixed_groups())
    method.save(tmp_path / "trained")
    trajectories = [t for g in mixed_groups() for t in g.trajectories]
    scores = Critic(str(tmp_path / "trained"), trained=True)(trajectories, no_sampling)
    for score, values in zip(scores, method.values(trajectories), strict=True):
        assert score.values == pytest.approx([min(1.0, max(0.0, value)) for value in values], abs=1e-5)
        assert score.tokens == 0
    fitted = Critic(str(tmp_path / "start"), trained=True)(trajectories, no_sampling)  # no head there yet
    assert fitted == Critic(str(tmp_path / "start"))(trajectories, no_sampling)


def no_sampling(starts: Sequence[Start], n: int) -> list[Group]:
    raise AssertionError("a critic samples nothing")


class TwoSteps:
    """Two tokens of eight: the first must be one of 4, the second one of 5 that depend on the first."""

    prompts = ((1,), (2,), (3,))

    def reward(self, first: int, second: int) -> float:
        return float(first % 2 == 0 and (second + first) % 8 < 5)

    @torch.no_grad()
    def sample(self, model: Any, generator: torch.Generator, n: int) -> list[Group]:
        groups = []
        for prompt in self.prompts:
            drawn = self._draw(model, [list(prompt)] * n, 2, generator)
            reset = drawn[0][0][:1]
            after = self._draw(model, [[*prompt, *reset]] * n, 1, generator)
            for prefix, rows in (((), drawn), (tuple(reset), after)):
                start = Start(str(prompt), prompt, prefix)
                groups.append(
                    Group(
                        start,
                        tuple(trajectory(start, ids, self.reward(*prefix, *ids), logps) for ids, logps in rows),
                    )
                )
        return groups

    def _draw(
        self, model: Any, contexts: list[list[int]], count: int, generator: torch.Generator
    ) -> list[tuple[list[int], list[float]]]:
        ids, logps = torch.tensor(contexts), []
        size = ids.shape[1]
        for _ in range(count):
            every = model(ids).logits[:, -1].log_softmax(-1)
            token = torch.multinomial(every.exp(), 1, generator=generator)
            ids = torch.cat([ids, token], dim=1)
            logps.append(every.gather(1, token))
        return list(zip(ids[:, size:].tolist(), torch.cat(logps, dim=1).tolist(), strict=True))


def mean_reward(groups: Sequence[Group]) -> float:
    rewards = [t.score.value or 0.0 for g in groups if not g.start.prefix_ids for t in g.trajectories]
    return sum(rewards) / len(rewards)


@pytest.mark.parametrize("kind", METHODS)
def test_each_method_learns_a_two_step_toy_problem(kind: type[Online]) -> None:
    task, generator = TwoSteps(), torch.Generator().manual_seed(0)
    model = make_model(vocab_size=8)
    with torch.no_grad():
        model.lm_head.weight.mul_(0.2)
    method = kind(model, make_tokenizer(), learning_rate=1e-3)
    assert mean_reward(task.sample(model, generator, 200)) == pytest.approx(0.31, abs=0.06)
    for update in range(1, 301):
        method.update(task.sample(model, generator, 8))
        if update % 10 == 0 and mean_reward(task.sample(model, generator, 200)) > 0.9:
            return
    pytest.fail("reward stayed below 0.9")


@pytest.mark.parametrize(("beta", "unbiased"), [(0.0, True), (0.3, True), (0.3, False)])
def test_grpo_loss_equals_the_one_of_trl(tmp_path: Path, beta: float, unbiased: bool) -> None:
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    model, before = make_model(), make_model()
    with torch.no_grad():
        for p in before.parameters():
            p.add_(0.02 * torch.randn_like(p))
    config = GRPOConfig(
        output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to="none", beta=0.0, per_device_train_batch_size=4,
        num_generations=4, gradient_checkpointing=None, activation_checkpointing=False, loss_type="dapo",
    )  # fmt: skip
    trainer = GRPOTrainer(
        model=copy.deepcopy(model), reward_funcs=lambda **_: [0.0], args=config, processing_class=make_tokenizer(),
        train_dataset=Dataset.from_list([{"prompt": "a"}]),
    )  # fmt: skip
    ids = [[3, 4, 5, EOS], [7, EOS], [8, 9, EOS], [6]]
    rewards = [1.0, 0.0, 0.0, 1.0]
    ours = group([1, 2], [], *zip(ids, rewards, strict=True), model=before)
    width = max(map(len, ids))
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in ids])
    padded = torch.tensor([row + [0] * (width - len(row)) for row in ids])
    old = torch.zeros(4, width)
    for i, t in enumerate(ours.trajectories):
        old[i, : len(ids[i])] = torch.tensor(t.completion.logprobs)
    values = torch.tensor(rewards)
    inputs = {
        "prompt_ids": torch.tensor([[1, 2]] * 4),
        "prompt_mask": torch.ones(4, 2, dtype=torch.long),
        "completion_ids": padded,
        "completion_mask": mask,
        "advantages": (values - values.mean()) / (values.std() + 1e-4),
        "old_per_token_logps": old,
        "num_items_in_batch": mask.sum(),
    }
    reference = make_model(seed=1)
    trainer.args.use_bias_correction_kl = unbiased
    trainer.beta = beta  # set beforehand, TRL would load the reference from the model's path
    with torch.no_grad():
        known = [completion_logps(reference, (1, 2), row).tolist() for row in ids]
    inputs["ref_per_token_logps"] = torch.tensor([row + [0.0] * (width - len(row)) for row in known])
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = trainer.args.steps_per_generation
    theirs = trainer._compute_loss(trainer.model, inputs)
    _, metrics = run(GRPO, model, [ours], told(reference), beta=beta, unbiased_kl=unbiased, importance_cap=None)
    assert metrics["loss"] == pytest.approx(theirs.item(), rel=1e-6, abs=1e-6)
    assert (metrics.get("kl_reference", 0.0) > 0.01) == (beta > 0)
    assert metrics["ratio_error"] > 0.01


@pytest.mark.parametrize("kind", METHODS)
def test_saved_training_goes_on_as_if_it_had_not_stopped(tmp_path: Path, kind: type[Online]) -> None:
    make_model().save_pretrained(tmp_path / "start")
    make_tokenizer().save_pretrained(tmp_path / "start")
    settings = {"learning_rate": 1e-3, "epochs": 2, "minibatches": 2}
    whole = kind(tmp_path / "start", **settings)
    first = kind(tmp_path / "start", **settings)
    context = RoundContext(metrics_path=tmp_path / "m.jsonl")
    whole.update(mixed_groups())
    first.update(mixed_groups(), context)
    first.save(tmp_path / "saved")
    second = kind(tmp_path / "saved", **settings)
    assert whole.update(mixed_groups()) == second.update(mixed_groups(), context)
    assert same(state(whole.policy.model), state(second.policy.model))
    rows = [json.loads(line) for line in (tmp_path / "m.jsonl").read_text().splitlines()]
    assert [row["update"] for row in rows] == [0, 1]
    with pytest.raises(ConfigError, match="needs the first model"):
        kind(tmp_path / "saved", beta=0.1, **settings).update(mixed_groups())


@pytest.mark.parametrize("kind", METHODS)
def test_the_kl_is_from_the_behaviour_policy_per_token(kind: type[Online]) -> None:
    """One row of two tokens twice as likely as it was, one of two tokens as likely: (1 - log 2) / 2 = .153 by k3."""
    model = make_model()
    rows = group([1, 2], [], ([3, 4], 1.0), ([5, 6], 0.0), model=model)
    first, second = rows.trajectories
    given = tuple(logprob - math.log(2) for logprob in first.completion.logprobs or ())
    changed = replace(first, completion=replace(first.completion, logprobs=given))
    _, metrics = run(kind, model, [Group(rows.start, (changed, second))], importance_cap=None)
    assert metrics["kl"] == pytest.approx((1 - math.log(2)) / 2, abs=1e-5)
    assert "kl_reference" not in metrics


def test_training_begins_anew_on_what_another_method_has_saved(tmp_path: Path) -> None:
    make_model().save_pretrained(tmp_path / "start")
    make_tokenizer().save_pretrained(tmp_path / "start")
    first = GRPO(tmp_path / "start", learning_rate=1e-3)
    first.update(mixed_groups())
    first.save(tmp_path / "saved")
    second = PPO(tmp_path / "saved", learning_rate=1e-3)
    assert not second.optimizer.state_dict()["state"]
    assert second.updates == 0
    second.update(mixed_groups())
    assert not same(state(first.policy.model), state(second.policy.model))


def test_what_is_gone_on_with_takes_the_settings_that_it_is_given(tmp_path: Path) -> None:
    make_model().save_pretrained(tmp_path / "start")
    make_tokenizer().save_pretrained(tmp_path / "start")
    first = GRPO(tmp_path / "start", learning_rate=1e-3)
    first.update(mixed_groups())
    first.save(tmp_path / "saved")
    second = GRPO(tmp_path / "saved", learning_rate=1e-5, weight_decay=0.5)
    assert second.optimizer.state_dict()["state"]
    assert {(g["lr"], g["weight_decay"]) for g in second.optimizer.param_groups} == {(1e-5, 0.5)}
    state_file = tmp_path / "saved/training.pt"
    before = torch.load(state_file, weights_only=True)
    del before["shapes"]  # as an earlier version wrote it
    torch.save(before, state_file)
    assert GRPO(tmp_path / "saved", learning_rate=1e-5).optimizer.state_dict()["state"]
    first.save(tmp_path / "saved")
    for rank in (2, 4):
        adapters = GRPO(tmp_path / "saved", lora=rank, merge=True, learning_rate=1e-3)
        assert not adapters.optimizer.state_dict()["state"]
        assert adapters.updates == 0
        adapters.update(mixed_groups())
        adapters.save(tmp_path / "saved")


@pytest.mark.parametrize(("number", "updates"), [(1, 0), (2, 1)])
def test_a_new_run_begins_anew_on_what_another_one_has_trained(tmp_path: Path, number: int, updates: int) -> None:
    method = PPO(make_model(), make_tokenizer(), learning_rate=1e-3)
    method.update(mixed_groups())
    method.save(tmp_path / "saved")
    context = RoundContext(number=number, model=ModelRef(str(tmp_path / "saved"), "saved"))
    next_one = PPO(learning_rate=1e-3)
    next_one.update(mixed_groups(), context)
    assert next_one.updates == updates + 1
    [step] = {float(state["step"]) for state in next_one.optimizer.state_dict()["state"].values()}
    assert step == updates + 1


def test_the_reference_stays_the_first_model() -> None:
    method = GRPO(make_model(), make_tokenizer(), beta=0.1, learning_rate=1e-3, epochs=3)
    kl = [method.update(mixed_groups())["kl_reference"] for _ in range(3)]
    assert 0 < kl[0] < kl[2]
    assert same(state(method.frozen), state(make_model()))


@pytest.mark.parametrize("kind", METHODS)
def test_adapters_alone_are_trained(kind: type[Online]) -> None:
    method, _ = run(kind, make_model(), mixed_groups(), lora=2)
    base = [p for name, p in method.policy.model.named_parameters() if "lora" not in name]
    assert same([p.detach() for p in base], state(make_model()))
    assert any(p.abs().sum() > 0 for name, p in method.policy.model.named_parameters() if "lora_B" in name)


def test_failed_grades_and_empty_completions_are_left_out_and_counted() -> None:
    rows = group([1], [], ([3], 1.0), ([4], 0.0), ([5], None), ([], 0.0))
    _, metrics = run(GRPO, make_model(), [rows])
    assert (metrics["rows"], metrics["rows_left_out"], metrics["reward"]) == (2, 2, 0.5)
    with pytest.raises(DataError, match="empty prompt"):
        run(GRPO, make_model(), [group([], [], ([5], 1.0))])
    with pytest.raises(DataError, match="Token id 60 is outside"):
        run(GRPO, make_model(), [group([1], [], ([60], 1.0))])


def test_a_loss_that_is_no_number_stops_before_the_step() -> None:
    model = make_model()
    with torch.no_grad():
        model.lm_head.weight[3] = math.nan
    before = state(model.model)
    with pytest.raises(DataError, match="loss of update 0 is nan"):
        run(GRPO, model, mixed_groups())
    assert same(before, state(model.model))


@pytest.mark.parametrize(
    ("kind", "settings"),
    [(GRPO, {"clip": 0}), (GRPO, {"beta": -1}), (PPO, {"trace": 2}), (PPO, {"value_clip": 0}), (RLOO, {"epochs": 0})],
)
def test_impossible_settings_are_errors(kind: type[Online], settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(settings))):
        kind(None, **settings)


class Killed(BaseException):
    pass


def test_slow_steps_are_saved_by_the_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def kill(row: dict[str, float]) -> None:
        if row["step"] == 3:
            raise Killed

    def made() -> Online:
        return GRPO(make_model(), make_tokenizer(), learning_rate=1e-3, epochs=2, minibatches=2)

    context = RoundContext(work_dir=tmp_path)
    monkeypatch.setattr("gpo.methods.update_checkpoint.SAVE_SECONDS", 0.0)
    monkeypatch.setattr("gpo.methods.update_checkpoint.SAVE_SHARE", math.inf)
    with pytest.raises(Killed):
        made().update(mixed_groups(), replace(context, on_step=kill))
    seen: list[float] = []
    resumed = made().update(mixed_groups(), replace(context, on_step=lambda row: seen.append(row["step"])))
    assert seen == [4]
    assert resumed == made().update(mixed_groups())


@pytest.mark.parametrize("kind", METHODS)
@pytest.mark.parametrize("step", [1, 3, 4])
def test_a_killed_update_goes_on_and_ends_as_if_it_had_not_been(tmp_path: Path, kind: type[Online], step: int) -> None:
    def kill(row: dict[str, float]) -> None:
        assert row["steps"] == 4
        if row["step"] == step:
            raise Killed

    def made() -> Online:
        return kind(make_model(), make_tokenizer(), learning_rate=1e-3, epochs=2, minibatches=2, save_steps=2)

    whole = made()
    expected = whole.update(mixed_groups(), RoundContext(metrics_path=tmp_path / "w.jsonl"))
    context = RoundContext(metrics_path=tmp_path / "m.jsonl", work_dir=tmp_path / "work")
    with pytest.raises(Killed):
        made().update(mixed_groups(), replace(context, on_step=kill))
    seen: list[float] = []
    resumed = made()
    assert resumed.update(mixed_groups(), replace(context, on_step=lambda row: seen.append(row["step"]))) == expected
    assert seen == {1: [1, 2, 3, 4], 3: [3, 4], 4: []}[step]
    assert same(state(whole.policy.model), state(resumed.policy.model))
    again = made()
    again.update(mixed_groups(), context)
    assert (tmp_path / "m.jsonl").read_bytes() == (tmp_path / "w.jsonl").read_bytes()
    other = made()
    other.update(mixed_groups()[:1], replace(context, metrics_path=None))
    assert not same(state(other.policy.model), state(again.policy.model))
    other.save(tmp_path / "model")
    assert list((tmp_path / "work").iterdir()) == []


def test_each_epoch_has_every_row_once_in_an_order_of_its_own() -> None:
    rows = group_by_start([group([1], [], *(([i], 1.0) for i in range(2, 8)))])
    parts = minibatches(rows, 2, 3, "0/0")
    assert [len(part) for part in parts] == [2] * 6
    first, second = ([row.tokens for part in half for row in part] for half in (parts[:3], parts[3:]))
    assert sorted(first) == sorted(second) == [row.tokens for row in rows]
    assert first != second
    assert minibatches(rows, 1, 1, "0/0")[0] != rows
    assert minibatches(rows, 1, 1, "0/1") != minibatches(rows, 1, 1, "0/0")
    assert [len(part) for part in minibatches(rows[:2], 1, 4, "0/0")] == [1, 1]  # no step without a row


def test_the_metrics_count_tokens_resets_and_steps() -> None:
    _, metrics = run(GRPO, make_model(), mixed_groups(), epochs=2, minibatches=2)
    told = {"reward": 2 / 5, "reset_share": 2 / 5, "loss_tokens": 13.0, "trained_tokens": 2 * 27.0, "steps": 4.0}
    assert {name: metrics[name] for name in told} == pytest.approx(told)
    assert metrics["ratio_error"] < 1e-5  # of the first step; weights have moved in the others
    assert metrics["kl"] > 1e-5


def test_grpo_takes_the_kl_of_a_whole_completion_from_its_score_and_need_not_scale() -> None:
    method = GRPO(make_model(), make_tokenizer(), scale=False, beta=0.3, kl_in="reward")
    rows, _ = method._rows(mixed_groups()[:1])
    for row in rows:
        row.old, row.reference = torch.zeros(len(row.tokens)), -torch.ones(len(row.tokens))
    method._set_advantages(rows)
    rewards = (1 - 0.3 * 5, -0.3 * 2, -0.3 * 1)
    for row, reward in zip(rows, rewards, strict=True):
        assert row.advantages.tolist() == pytest.approx([reward - sum(rewards) / 3] * len(row.tokens), abs=1e-6)


@pytest.mark.parametrize("monte_carlo", [False, True])  # a place from which one trajectory was sampled teaches nothing
def test_the_critic_is_taught_rewards_less_the_kl(monte_carlo: bool) -> None:
    method = PPO(make_model(), make_tokenizer(), beta=0.5, discount=0.9, monte_carlo=monte_carlo)
    rows, _ = method._rows([group([1, 2], [], ([3, 4, EOS], 1.0))])
    rows[0].old, rows[0].reference = torch.zeros(3), torch.tensor([-0.2, 0.4, 0.0])
    method._set_advantages(rows)
    assert rows[0].returns.tolist() == pytest.approx([-0.1 + 0.9 * (0.2 + 0.9), 0.2 + 0.9, 1.0])


def test_a_value_that_has_moved_beyond_the_clip_is_judged_by_the_clipped_one() -> None:
    method = PPO(make_model(), make_tokenizer(), value_clip=0.1, value_coefficient=0.7)
    rows, _ = method._rows([group([1, 2], [], ([3, EOS], 1.0))])
    rows[0].values, rows[0].returns = torch.zeros(2), torch.full((2,), 0.5)
    method._critic = lambda out: torch.full((2,), 0.5)  # type: ignore[method-assign]
    out: Any = None
    loss, _ = method._extra_loss(rows, out, torch.full((2,), 0.5))
    assert loss.item() == pytest.approx(0.7 * 0.5 * (0.1 - 0.5) ** 2)
