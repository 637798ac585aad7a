"""What every rollout engine must do, whatever it samples from: run `check_engine` on one of yours.

    from gpo.engines.contract import check_engine
    check_engine(MyEngine(...), [(5, 9, 14, 3), (5, 9)])

Each check is a function of an engine and of contexts, token sequences that it can continue. At least two contexts leave
room for 30 tokens and more than one way to go on; one that leaves less shows what happens where the context is full.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from math import exp
from typing import Any

from gpo.contracts import Engine
from gpo.errors import EngineError, GPOError
from gpo.types import Completion, ModelRef, Request

Contexts = Sequence[Sequence[int]]
Check = Callable[[Engine, Contexts], None]

ROOM = 30  # tokens that most checks sample at most
LONGEST = 1 << 16  # contexts beyond it are not filled
NATS = 1e-4  # between what sampling and teacher forcing say, of an engine whose seeds repeat
NATS_ROUNDED = 0.3  # of another, whose weights may be rounded
COVERED = 0.15  # by which the probability of what was drawn may miss its estimate


def check_engine(engine: Engine, contexts: Contexts) -> None:
    """Run all checks; the last one closes the engine.

    Raises:
        AssertionError: the engine does not fulfil the contract; the message says where and how.
        GPOError: the engine refused what it has to answer.
    """
    for check in CHECKS:
        try:
            check(engine, contexts)
        except Exception as error:
            error.add_note(f"found by {check.__name__}")
            raise


def check_it_says_what_it_is(engine: Engine, contexts: Contexts) -> None:
    """Every member of the protocol is there and of the right kind, and the contexts serve for the other checks."""
    lacking = [name for name in dir(Engine) if name[0] != "_" and not hasattr(engine, name)] or [
        "__enter__ or __exit__"
    ]
    _expect(isinstance(engine, Engine), f"{type(engine).__name__} lacks {', '.join(lacking)}")
    _expect(isinstance(engine.model_ref, ModelRef) and engine.model_ref.name != "", "model_ref names no model")
    _expect(
        isinstance(engine.context_length, int) and engine.context_length > 0, "context_length is no number of tokens"
    )
    _expect(isinstance(engine.stop_ids, frozenset), "stop_ids is no frozenset of token ids")
    _expect(isinstance(engine.repeatable, bool), "repeatable is neither True nor False")
    eos = engine.tokenizer.eos_token_id
    _expect(eos is None or eos in engine.stop_ids, f"the tokenizer's end of sequence, {eos}, is not in stop_ids")
    _expect(len(_roomy(engine, contexts)) >= 2, f"fewer than two contexts leave room for {ROOM} tokens")


def check_nothing_for_no_requests(engine: Engine, contexts: Contexts) -> None:
    """Empty lists are answered by empty lists."""
    _expect(engine.generate([]) == [], "generate([]) is not []")
    _expect(engine.logprobs([], []) == [], "logprobs([], []) is not []")


def check_order_and_number(engine: Engine, contexts: Contexts) -> None:
    """One list of n completions for each request, in order; where seeds repeat, whatever else is asked."""
    first, second = _roomy(engine, contexts)[:2]
    requests = [Request(first, 2, 6, 1), Request(second, 5, 3, 2), Request(first, 1, 1, 3), Request(second, 3, 9, 2)]
    groups = engine.generate(requests)
    _expect([len(group) for group in groups] == [2, 5, 1, 3], "there are not n completions for each request, in order")
    for request, group in zip(requests, groups, strict=True):
        _check_completions(engine, request, group)
        if engine.repeatable:
            _expect(engine.generate([request]) == [group], "a request is answered otherwise when it is asked alone")


def check_budget_and_finish_reason(engine: Engine, contexts: Contexts) -> None:
    """At most max_tokens; `stop` where a stop token was sampled, which is the last then, and else `length`."""
    for context in _roomy(engine, contexts)[:2]:
        for limit in (1, 3, ROOM):
            request = Request(context, 20, limit, 0)
            _check_completions(engine, request, engine.generate([request])[0])


def check_seeds(engine: Engine, contexts: Contexts) -> None:
    """Continuations and seeds differ; where a seed repeats, continuation i does not depend on n."""
    context = _roomy(engine, contexts)[0]
    once, other = (engine.generate([Request(context, 12, 20, seed)])[0] for seed in (1, 2))
    _expect(len({c.token_ids for c in once}) > 1, "the continuations of a request are all the same at temperature 1")
    _expect([c.token_ids for c in once] != [c.token_ids for c in other], "another seed gives the same continuations")
    if engine.repeatable:
        _expect(engine.generate([Request(context, 12, 20, 1)]) == [once], "repeatable, but a seed does not repeat")
        _expect(engine.generate([Request(context, 5, 20, 1)]) == [once[:5]], "continuation i depends on n")
        _expect(
            [c.token_ids[:7] for c in engine.generate([Request(context, 12, 7, 1)])[0]]
            == [c.token_ids[:7] for c in once],
            "the first tokens depend on max_tokens",
        )


def check_text(engine: Engine, contexts: Contexts) -> None:
    """The text is what the tokens say, without special tokens."""
    for completion in engine.generate([Request(_roomy(engine, contexts)[0], 5, 20, 0)])[0]:
        said = engine.tokenizer.decode(completion.token_ids, skip_special_tokens=True)
        _expect(completion.text == said, f"the text is {completion.text!r}, but the tokens say {said!r}")


def check_logprobs(engine: Engine, contexts: Contexts) -> None:
    """Log-probabilities on request only, one a token, and the same from `logprobs`; greedy ones at temperature 1."""
    roomy = _roomy(engine, contexts)[:2]
    requests = [Request(context, 3, 8, seed) for seed, context in enumerate(roomy)]
    _expect(
        all(c.logprobs is None for group in engine.generate(requests) for c in group),
        "there are log-probabilities that nobody asked for",
    )
    for temperature in (1.0, 0.7, 0.0):
        groups = engine.generate(requests, temperature=temperature, logprobs=True)
        asked = [(r.token_ids, c) for r, group in zip(requests, groups, strict=True) for c in group]
        told = engine.logprobs([i for i, _ in asked], [c.token_ids for _, c in asked], temperature=temperature)
        _expect(len(told) == len(asked), "logprobs does not answer for each continuation")
        for (_, completion), nats in zip(asked, told, strict=True):
            _check_logprobs(engine, completion, nats, f"at temperature {temperature:g}")


def check_probabilities(engine: Engine, contexts: Contexts) -> None:
    """What is told is how often a token comes, at the temperature that was asked for.

    The probabilities of the tokens that were drawn must sum to the chance that one more draw is among them: 1 less the
    share of tokens drawn once (Good and Turing's estimate). Between two temperatures their log-ratios scale.
    """
    context, draws = _roomy(engine, contexts)[0], 400
    for temperature in (1.0, 0.5):
        [drawn] = engine.generate([Request(context, draws, 1, 3)], temperature=temperature, logprobs=True)
        counts = Counter(completion.token_ids[0] for completion in drawn)
        tokens = sorted(counts)
        nats = engine.logprobs([context] * len(tokens), [(token,) for token in tokens], temperature=temperature)
        covered, expected = sum(exp(each[0]) for each in nats), 1 - sum(n == 1 for n in counts.values()) / draws
        _expect(
            abs(covered - expected) < COVERED,
            f"the {len(tokens)} tokens of {draws} draws at temperature {temperature} have probability {covered:.2f} in "
            f"all, expected about {expected:.2f}",
        )
    seen = tokens[:8]
    cool, warm = (engine.logprobs([context] * len(seen), [(t,) for t in seen], temperature=t) for t in (0.5, 1.0))
    for one, other in zip(cool, warm, strict=True):
        scaled, told = 2 * (other[0] - warm[0][0]), one[0] - cool[0][0]
        within = NATS if engine.repeatable else NATS_ROUNDED
        _expect(abs(scaled - told) < 4 * within, "log-probabilities do not scale with the temperature")


def check_a_prefix_is_kept_to_the_token(engine: Engine, contexts: Contexts) -> None:
    """Sampling goes on from exactly the given tokens, and the completion holds the new ones only."""
    context = _roomy(engine, contexts)[0]
    [[whole]] = engine.generate([Request(context, 1, 20, 0)], temperature=0.0)
    for end in range(1, min(5, len(whole.token_ids))):
        prefix = whole.token_ids[:end]
        request = Request(context + prefix, 3, 6, 5)
        [completions] = engine.generate([request], logprobs=True)
        _check_completions(engine, request, completions)
        before = engine.tokenizer.decode(request.token_ids).rstrip("\N{REPLACEMENT CHARACTER}")
        for completion in completions:
            after = engine.tokenizer.decode([*request.token_ids, *completion.token_ids])
            _expect(after.startswith(before), f"{after!r} does not begin with the prefix {before!r}")
            [nats] = engine.logprobs([context], [prefix + completion.token_ids])
            _check_logprobs(engine, completion, nats[end:], "behind a prefix")
        if engine.repeatable:
            [[rest]] = engine.generate([Request(context + prefix, 1, 20 - end, 9)], temperature=0.0)
            _expect(rest.token_ids == whole.token_ids[end:], "greedy sampling goes on otherwise from its own prefix")


def check_greedy(engine: Engine, contexts: Contexts) -> None:
    """Temperature 0 ignores the seed."""
    context = _roomy(engine, contexts)[0]
    [group] = engine.generate([Request(context, 3, 8, 0)], temperature=0.0)
    [other] = engine.generate([Request(context, 1, 8, 99)], temperature=0.0)
    if engine.repeatable:
        _expect({c.token_ids for c in group} == {other[0].token_ids}, "at temperature 0 the tokens depend on the seed")


def check_a_full_context(engine: Engine, contexts: Contexts) -> None:
    """Where the context is full a completion ends with `length`; a request that fills it is refused."""
    for context in contexts:
        if 0 < (left := engine.context_length - len(context)) < ROOM:
            request = Request(tuple(context), 10, left + 50, 0)
            [completions] = engine.generate([request])
            _check_completions(engine, request, completions)
    if engine.context_length <= LONGEST:
        full = (tuple(contexts[0]) * engine.context_length)[: engine.context_length]
        _refuses("a request that fills the context", lambda: engine.generate([Request(full, 1, 1, 0)]))
        _refuses("a continuation that does not fit", lambda: engine.logprobs([full], [full[:1]]))


def check_bad_requests_are_refused(engine: Engine, contexts: Contexts) -> None:
    """What cannot be answered is an `EngineError`, also among other requests, and does the engine no harm."""
    context = _roomy(engine, contexts)[0]
    good = Request(context, 1, 2, 0)
    before = engine.generate([good])
    for what, bad in (
        ("no tokens", Request((), 1, 1, 0)),
        ("a negative token id", Request((*context, -1), 1, 1, 0)),
        ("a token id beyond the vocabulary", Request((*context, 1 << 30), 1, 1, 0)),
        ("n = 0", Request(context, 0, 1, 0)),
        ("max_tokens = 0", Request(context, 1, 0, 0)),
    ):
        _refuses(what, lambda bad=bad: engine.generate([good, bad]))  # type: ignore[misc]
    _refuses("fewer continuations than contexts", lambda: engine.logprobs([context, context], [context[:1]]))
    _refuses("an empty context", lambda: engine.logprobs([()], [context[:1]]))
    _refuses("an unknown token", lambda: engine.logprobs([context], [(1 << 30,)]))
    for temperature in (-1.0, float("nan")):
        _refuses("that temperature", lambda t=temperature: engine.generate([good], temperature=t), GPOError)  # type: ignore[misc]
    if engine.repeatable:
        _expect(engine.generate([good]) == before, "after a refused request the engine samples otherwise")


def check_load(engine: Engine, contexts: Contexts) -> None:
    """An engine that loads the model that it has samples as before, and its tokenizer stays."""
    request = Request(_roomy(engine, contexts)[0], 3, 8, 0)
    before, ref, tokenizer = engine.generate([request]), engine.model_ref, engine.tokenizer
    engine.load(ref)
    _expect(engine.model_ref == ref, "model_ref is not the one that was loaded")
    _expect(engine.tokenizer is tokenizer, "load has replaced the tokenizer")
    if engine.repeatable:
        _expect(engine.generate([request]) == before, "the model that it had, loaded again, samples otherwise")


def check_close(engine: Engine, contexts: Contexts) -> None:
    """A model that is none is refused. Leaving the context closes; nothing may be asked then but to close again."""
    nowhere = ModelRef("/no/such/directory/of/a/model", "nowhere")
    _refuses("a model that does not exist", lambda: engine.load(nowhere))
    with engine as same:
        _expect(same is engine, "`with engine as other` gives another object")
    engine.close()
    _refuses("a request after close", lambda: engine.generate([Request(tuple(contexts[0]), 1, 1, 0)]))
    _refuses("logprobs after close", lambda: engine.logprobs([contexts[0]], [contexts[0][:1]]))


CHECKS: tuple[Check, ...] = (
    check_it_says_what_it_is,
    check_nothing_for_no_requests,
    check_order_and_number,
    check_budget_and_finish_reason,
    check_seeds,
    check_text,
    check_logprobs,
    check_probabilities,
    check_a_prefix_is_kept_to_the_token,
    check_greedy,
    check_a_full_context,
    check_bad_requests_are_refused,
    check_load,
    check_close,
)


def _expect(condition: bool, otherwise: str) -> None:
    """As `assert`, which optimised Python leaves out."""
    if not condition:
        raise AssertionError(f"The engine breaks its contract: {otherwise}.")


def _refuses(what: str, ask: Callable[[], Any], error: type[GPOError] = EngineError) -> None:
    try:
        ask()
    except error:
        return
    except Exception as other:
        raise AssertionError(
            f"The engine breaks its contract: {what} is a {type(other).__name__}, expected {error.__name__}."
        ) from other
    raise AssertionError(f"The engine breaks its contract: {what} is accepted, expected {error.__name__}.")


def _roomy(engine: Engine, contexts: Contexts) -> list[tuple[int, ...]]:
    """The contexts that leave room for what the checks sample."""
    return [tuple(context) for context in contexts if engine.context_length - len(context) >= ROOM]


def _check_completions(engine: Engine, request: Request, completions: Sequence[Completion]) -> None:
    limit = min(request.max_tokens, engine.context_length - len(request.token_ids))
    _expect(len(completions) == request.n, f"there are {len(completions)} completions, {request.n} were asked for")
    for completion in completions:
        ids = completion.token_ids
        _expect(isinstance(ids, tuple), "token_ids is no tuple")
        _expect(1 <= len(ids) <= limit, f"a completion has {len(ids)} tokens, expected 1 to {limit}")
        _expect(not engine.stop_ids.intersection(ids[:-1]), "a completion goes on after a stop token")
        reason = "stop" if ids[-1] in engine.stop_ids else "length"
        _expect(completion.finish_reason == reason, f"finish_reason is {completion.finish_reason!r}, not {reason!r}")
        _expect(reason == "stop" or len(ids) == limit, f"`length`, but {len(ids)} tokens of {limit}")


def _check_logprobs(engine: Engine, completion: Completion, nats: Sequence[float], where: str) -> None:
    told = completion.logprobs
    _expect(told is not None, "there are no log-probabilities, although they were asked for")
    assert told is not None
    _expect(len(told) == len(completion.token_ids) == len(nats), f"not one log-probability for each token {where}")
    _expect(all(nat <= 1e-6 for nat in told), f"a log-probability is above 0 {where}")
    most = max((abs(one - other) for one, other in zip(told, nats, strict=True)), default=0.0)
    within = NATS if engine.repeatable else NATS_ROUNDED
    _expect(most <= within, f"sampling and logprobs differ by {most:.2g} nats {where}, expected at most {within:g}")
