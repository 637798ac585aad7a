"""Prefix trees: how sequences are laid out, and that scores and gradients are those of every sequence by itself."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from tiny_policy import completion_logps, make_model

from gpo.errors import DataError, EngineError
from gpo.methods import attention, scoring
from gpo.methods.attention import tile
from gpo.methods.policy import quiet
from gpo.methods.tree import PackedBatch, Scored, grow, pack

SMALL = {
    "vocab_size": 48,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 128,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
GPT2 = {key: SMALL[key] for key in ("vocab_size", "bos_token_id", "eos_token_id")}
SHARING: dict[str, dict[str, Any]] = {
    "Llama": SMALL,
    "Qwen2": SMALL,
    "Qwen3": SMALL,
    "Mistral": {**SMALL, "sliding_window": 4},
    "Gemma2": {**SMALL, "sliding_window": 4, "final_logit_softcapping": 2.0, "attn_logit_softcapping": 1.0},
    "Granite": {**SMALL, "logits_scaling": 3.0},  # does more to its logits than a head does
    "GPT2": {**GPT2, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 128},
    "OPT": {**SMALL, "ffn_dim": 48, "word_embed_proj_dim": 32},
}
PADDED: dict[str, dict[str, Any]] = {
    "GptOss": {**SMALL, "num_local_experts": 4, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
    "Bloom": {**GPT2, "hidden_size": 32, "n_layer": 2, "n_head": 2},  # attention cannot be replaced
    "Mamba": {"vocab_size": 48, "hidden_size": 32, "num_hidden_layers": 2},  # recurrent
}
P = (5, 3, 7, 9)
SEQUENCES: list[Scored] = [
    (P, (2, 4, 6, 8, 1)),
    (P, (2, 4, 6, 11)),  # shares scored tokens with the first
    (P, (2, 4)),  # the first goes on from here
    (P, (2, 4, 6, 8, 1)),  # the first once more
    ((*P, 2, 4), (6, 8, 13)),  # what others score is context here
    (P, (10, 11, 12, 13, 14, 15)),
    ((21,), (22, 23)),  # another prompt
    ((21, 22), (23,)),
]

tokens = st.lists(st.integers(0, 2), min_size=1, max_size=8).map(tuple)
forests = st.lists(st.tuples(tokens, tokens), min_size=1, max_size=8)


def make(family: str, settings: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**{"initializer_range": 0.2, **settings})
    return transformers.AutoModelForCausalLM.from_config(config).eval()


def in_order(batches: Sequence[PackedBatch], numbers: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """(T,) numbers of each sequence, in the order in which they were packed."""
    found = {
        index: part
        for batch, values in zip(batches, numbers, strict=True)
        for index, part in zip(batch.sequences, batch.split(values), strict=True)
    }
    return [found[index] for index in range(len(found))]


def weighted(logps: Sequence[torch.Tensor]) -> torch.Tensor:
    """A loss in which every token has a weight of its own."""
    return torch.stack([(part * torch.linspace(-1, 2, len(part) + i)[i:]).sum() for i, part in enumerate(logps)]).sum()


def gradients(model: Any, loss: torch.Tensor) -> list[torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


def check(model: Any, sequences: Sequence[Scored], max_tokens: int = 1 << 12, *, shares: bool = True) -> None:
    """Log-probabilities and gradients against those of each sequence alone."""
    expected = [completion_logps(model, context, tokens) for context, tokens in sequences]
    expected_gradients = gradients(model, weighted(expected))
    with scoring.scoring(model) as scorer:
        assert scorer.shares == shares
        batches = pack(sequences, max_tokens, share=scorer.shares)
        found = in_order(batches, [scorer(batch).logps for batch in batches])
        found_gradients = gradients(model, weighted(found))
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)
    for mine, theirs in zip(found_gradients, expected_gradients, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5 * (1 + theirs.abs().max().item()), rtol=1e-5)


@pytest.mark.parametrize("family", SHARING)
def test_a_tree_has_the_scores_and_gradients_of_its_sequences(family: str) -> None:
    check(make(family, SHARING[family]), SEQUENCES)


@pytest.mark.parametrize("family", PADDED)
@pytest.mark.filterwarnings("ignore")
def test_models_that_take_no_tree_get_padded_rows(family: str) -> None:
    check(make(family, PADDED[family]), SEQUENCES, shares=False)


@pytest.mark.parametrize("recomputed", [False, True])
def test_adapters_have_the_same_gradients(recomputed: bool) -> None:
    config = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
    with quiet():
        model = get_peft_model(make("Qwen3", SHARING["Qwen3"]), config)
    if recomputed:
        model.activation_checkpointing_enable()
        model.enable_input_require_grads()
        model.train()
    check(model, SEQUENCES)


def test_long_branches_are_cut_into_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "SMALLEST_TILE", 4)
    random = torch.Generator().manual_seed(0)
    prompt = torch.randint(48, (20,), generator=random).tolist()
    branches = [torch.randint(48, (size,), generator=random).tolist() for size in (3, 30, 17, 40, 1)]
    nested = [(prompt + branches[3][:25], branch) for branch in branches]
    for family in ("Mistral", "Qwen3", "Gemma2"):
        check(make(family, SHARING[family]), [(prompt, branch) for branch in branches] + nested)


@given(forests, st.integers(1, 60))
@settings(max_examples=40, deadline=None)
def test_any_forest_within_any_budget(sequences: list[Scored], max_tokens: int) -> None:
    check(MODEL, sequences, max_tokens)


MODEL = make_model()


@given(forests)
@settings(max_examples=60, deadline=None)
def test_nodes_are_the_distinct_prefixes_and_see_their_ancestors(sequences: list[Scored]) -> None:
    inputs = [(*context, *tokens) for context, tokens in sequences]
    tree, paths = grow(inputs)
    prefixes = {ids[:end] for ids in inputs for end in range(1, len(ids) + 1)}
    assert len(tree.token_ids) == len(prefixes)
    for ids, path in paths.items():
        assert tuple(tree.token_ids[node] for node in path) == ids
        assert [tree.depths[node] for node in path] == list(range(len(ids)))
        for node in range(len(tree.ends)):
            assert (node <= path[-1] < tree.ends[node]) == (node in path)


@given(forests, st.sampled_from([None, 3]))
@settings(max_examples=60, deadline=None)
def test_the_keys_of_a_tile_are_what_its_nodes_may_see(sequences: list[Scored], window: int | None) -> None:
    tree, _ = grow([(*context, *tokens) for context, tokens in sequences])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "SMALLEST_TILE", 2)
        tiles = tile(tree, torch.device("cpu"))
    seen = set()
    for (members, keys), mask in zip(tiles.blocks, tiles.masks(window, torch.bool), strict=True):
        for t, row, column in mask[:, 0].nonzero().tolist():
            seen.add((int(members[t]) * tiles.size + row, int(keys[t, column])))
    nodes = range(len(tree.ends))
    near = len(nodes) if window is None else window
    assert {pair for pair in seen if pair[0] in nodes} == {
        (i, j) for i in nodes for j in nodes if j <= i < tree.ends[j] and tree.depths[i] - tree.depths[j] < near
    }


def test_shared_tokens_are_computed_once() -> None:
    (batch,) = pack([(P, (1, 2, 3)), (P, (1, 2, 4)), (P, (5,))], 100)
    assert batch.token_ids.tolist() == [[*P, 1, 2]]  # the last tokens predict nothing
    assert batch.positions.tolist() == [[0, 1, 2, 3, 4, 5]]
    nodes = in_order([batch], [batch.predictors])
    assert [part.tolist() for part in nodes] == [[3, 4, 5], [3, 4, 5], [3]]
    assert sorted(batch.sizes) == [1, 3, 3]


@pytest.mark.parametrize("share", [True, False])
def test_a_budget_is_kept(share: bool) -> None:
    sequences: list[Scored] = [
        ((9, problem, *range(10)), (side, problem, 1)) for problem in range(6) for side in (20, 21)
    ]
    batches = pack(sequences, 40, share=share)
    assert len(batches) > 1
    assert all(batch.token_ids.numel() <= 40 for batch in batches)
    assert sorted(i for batch in batches for i in batch.sequences) == list(range(12))


def test_what_is_larger_than_the_budget_has_a_batch_to_itself() -> None:
    sequences: list[Scored] = [((1, 2, 3, 4, 5), (6,)), ((7,), (8,))]
    assert sorted(batch.token_ids.numel() for batch in pack(sequences, 2)) == [1, 5]


def test_sequences_that_cannot_be_scored_are_refused() -> None:
    with pytest.raises(DataError, match="Sequence 1 has 0 tokens of context"):
        pack([(P, (1,)), ((), (1, 2))], 100)
    with pytest.raises(DataError, match="and 0 to score"):
        pack([(P, ())], 100)
    assert pack([], 100) == []


@pytest.mark.parametrize("family", ["Llama", "Granite", "Bloom"])  # shares and cuts its head, shares only, neither
@pytest.mark.filterwarnings("ignore")
def test_entropy_temperature_and_what_the_head_saw(family: str) -> None:
    model = make(family, (SHARING | PADDED)[family])
    with scoring.scoring(model) as scorer:
        (batch,) = pack(SEQUENCES, 1000, share=scorer.shares)
        scores = scorer(batch, 0.7, entropy=True, hidden=True)
    assert scores.entropy is not None
    assert scores.hidden is not None
    assert not scores.entropy.requires_grad
    parts = [in_order([batch], [values]) for values in (scores.logps, scores.entropy, scores.hidden)]
    for (context, tokens), logps, entropy, hidden in zip(SEQUENCES, *parts, strict=True):
        out = model(torch.tensor([[*context, *tokens]]), output_hidden_states=True)
        every = (out.logits[0, len(context) - 1 : -1] / 0.7).log_softmax(dim=-1)
        torch.testing.assert_close(logps, every[range(len(tokens)), list(tokens)], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(entropy, -(every.exp() * every).sum(dim=-1), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(hidden, out.hidden_states[-1][0, len(context) - 1 : -1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("rows", [1, 3, 1000])
def test_chunks_of_logits_change_nothing(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "LOGITS", rows * 48)
    check(make_model(), SEQUENCES)


def test_a_model_is_left_with_the_attention_that_it_had() -> None:
    model = make_model()
    before = model.config._attn_implementation
    with scoring.scoring(model) as scorer:
        (batch,) = pack(SEQUENCES, 1000)
        assert model.config._attn_implementation != before
        with pytest.raises(EngineError, match=r"share=scorer\.shares"):
            scorer(pack(SEQUENCES, 1000, share=False)[0])
    assert model.config._attn_implementation == before
    with pytest.raises(EngineError, match=r"share=scorer\.shares"):
        scorer(batch)


def test_a_model_is_tried_once() -> None:
    model, passes = make_model(), []
    model.get_input_embeddings().register_forward_hook(lambda *_: passes.append(1))
    for _ in range(3):
        with scoring.scoring(model) as scorer:
            assert scorer.shares
    assert len(passes) == 3  # as it is, with its head cut off, and as a tree


def test_a_window_that_attention_is_not_told_of_means_padded_rows() -> None:
    model = make_model()
    model.config.sliding_window = 8
    with scoring.scoring(model) as scorer:
        assert not scorer.shares


def test_bfloat16_is_close() -> None:
    model = make("Qwen3", SHARING["Qwen3"])
    with torch.no_grad(), scoring.scoring(model) as scorer:
        (batch,) = pack(SEQUENCES, 1000)
        whole = scorer(batch).logps
        with torch.autocast("cpu", torch.bfloat16):
            torch.testing.assert_close(scorer(batch).logps, whole, atol=0.3, rtol=0)


def by_order(batch: PackedBatch) -> PackedBatch:
    return replace(batch, positions=torch.arange(batch.token_ids.numel())[None])


def without_branches(batch: PackedBatch) -> PackedBatch:
    assert batch.tree is not None
    return replace(batch, tree=replace(batch.tree, ends=(len(batch.tree.ends),) * len(batch.tree.ends)))


def one_late(batch: PackedBatch) -> PackedBatch:
    return replace(batch, predictors=(batch.predictors + 1).clamp(max=batch.token_ids.numel() - 1))


@pytest.mark.parametrize("bug", [by_order, without_branches, one_late])
def test_planted_bugs_are_noticed(bug: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Positions by order in place of depth; branches that see each other; predictors that are off by one."""
    right = pack
    monkeypatch.setitem(globals(), "pack", lambda *args, **kwargs: [bug(batch) for batch in right(*args, **kwargs)])
    with pytest.raises(AssertionError, match="not close"):
        check(make_model(), SEQUENCES)


@pytest.mark.parametrize("bug", [by_order, without_branches])
def test_the_trial_notices_attention_that_is_wrong(bug: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*args: Any, share: bool = True, **kwargs: Any) -> list[PackedBatch]:
        return [bug(batch) if share else batch for batch in pack(*args, share=share, **kwargs)]

    monkeypatch.setattr(scoring, "pack", wrong)
    with scoring.scoring(make_model()) as scorer:
        assert not scorer.shares
