"""A tiny random model, its tokenizer, pairs for it, and log-probabilities worked out without batching or padding."""

from collections.abc import Sequence
from random import Random
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import BPE
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from gpo.types import Pair

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789+= \n"
EOS, PAD = len(LETTERS) + 1, len(LETTERS) + 2


def make_tokenizer() -> Any:
    """One token a letter, but two line breaks in a row are merged into one token."""
    vocabulary = {letter: i for i, letter in enumerate(LETTERS)}
    vocabulary |= {"\n\n": len(LETTERS), "<eos>": EOS, "<pad>": PAD}
    model = Tokenizer(BPE(vocab=vocabulary, merges=[("\n", "\n")]))
    model.add_special_tokens(["<eos>", "<pad>"])
    return PreTrainedTokenizerFast(tokenizer_object=model, eos_token="<eos>", pad_token="<pad>")


def make_model(seed: int = 0, vocab_size: int = 48, context: int = 64) -> Any:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=context,
        initializer_range=0.2,
        bos_token_id=None,
        eos_token_id=None,
    )
    return LlamaForCausalLM(config).eval()


def make_pairs(count: int, seed: int = 0) -> list[Pair]:
    """Prompt and prefix end with a line break and completions begin with one, which text would merge into one token.

    Completions end in "yes" or "no"; every second rejected one was cut before its end of sequence.
    """
    random, tokenizer = Random(seed), make_tokenizer()
    pairs = []
    for i in range(count):
        prompt = "".join(random.choices(LETTERS[:36], k=random.randint(2, 6))) + "\n"
        prefix = "".join(random.choices(LETTERS[:36], k=random.randint(1, 4))) + "\n"
        texts = (prompt, prefix, f"\n{random.randint(0, 99)} yes", f"\n{random.randint(0, 999)} no")
        ids = [tuple(tokenizer.encode(text)) for text in texts]
        rejected = (*ids[3], EOS) if i % 2 == 0 else ids[3]
        pairs.append(Pair(f"problem-{i}", ids[0], ids[1], (*ids[2], EOS), rejected, *texts))
    return pairs


def completion_logps(model: Any, context: Sequence[int], completion: Sequence[int]) -> torch.Tensor:
    """(T,) log-probabilities in nats of one completion."""
    ids = torch.tensor([[*context, *completion]])
    logps = model(ids).logits[0].log_softmax(dim=-1)
    positions = torch.arange(len(context), ids.shape[1])
    return logps[positions - 1, ids[0, positions]]


def state(model: Any) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def same(left: list[torch.Tensor], right: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))
