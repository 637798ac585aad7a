"""The toy engine: exact values, and sampling that agrees with them."""

from dataclasses import replace
from math import inf, log

import pytest

from gpo.contracts import Engine, Task
from gpo.errors import ConfigError, DataError, EngineError
from gpo.rollout.prompting import question_start
from gpo.toy import EOS, ChainEngine, ChainTask, Process, random_process
from gpo.types import ModelRef, Request

# Two decisions. "a" keeps the state, "b" swaps it; state 0 answers right.
SWAP = Process(
    probabilities=(((0.75, 0.25), (1.0, 0.0)), ((0.5, 0.5), (0.2, 0.8))),
    successors=(((0, 1), (1, 0)), ((0, 1), (1, 0))),
    right=(True, False),
)


def ids(engine: ChainEngine, text: str) -> tuple[int, ...]:
    return tuple(engine.tokenizer.encode(text))


def test_values_are_those_worked_out_by_hand() -> None:
    engine = ChainEngine((SWAP,))
    assert engine.value(ids(engine, "0\n")) == pytest.approx(0.75 * 0.5 + 0.25 * 0.8)
    assert engine.value(ids(engine, "0\na\n")) == engine.value(ids(engine, "0\na")) == pytest.approx(0.5)
    assert engine.value(ids(engine, "0\nb\n")) == pytest.approx(0.8)
    assert engine.value(ids(engine, "0\nb\nb\nY")) == 1.0
    assert engine.value((*ids(engine, "0\nb\na\nN"), EOS)) == 0.0


def test_sampled_frequencies_are_the_probabilities() -> None:
    engine = ChainEngine((SWAP,))
    [completions] = engine.generate([Request(ids(engine, "0\n"), 4000, 100, seed=3)])
    texts = [completion.text for completion in completions]
    assert sum(text.startswith("b") for text in texts) / 4000 == pytest.approx(0.25, abs=0.03)
    assert sum(text.endswith("Y") for text in texts) / 4000 == pytest.approx(0.575, abs=0.03)
    assert all(c.finish_reason == "stop" and c.token_ids[-1] == EOS for c in completions)


def test_a_continuation_depends_on_seed_index_and_position_only() -> None:
    engine = ChainEngine((SWAP, random_process(5)))
    requests = [Request(ids(engine, "0\n"), 6, 100, seed=1), Request(ids(engine, "1\na\n"), 3, 100, seed=2)]
    together = engine.generate(requests)
    assert engine.generate(requests[1:]) == together[1:]
    assert engine.generate([replace(requests[0], n=2)])[0] == together[0][:2]
    assert engine.generate([replace(requests[0], seed=9)])[0] != together[0]


def test_logprobs_padding_truncation_and_greedy() -> None:
    engine = ChainEngine((SWAP,), padding=2)
    [[completion]] = engine.generate([Request(ids(engine, "0\n"), 1, 100, seed=0)], temperature=0, logprobs=True)
    assert completion.text == "a..\na..\nY"
    at_temperature_one = [log(0.75), 0, 0, 0, log(0.5), 0, 0, 0, 0, 0]
    assert completion.logprobs == pytest.approx(at_temperature_one)
    [[cut]] = engine.generate([Request(ids(engine, "0\n"), 1, 2, seed=0)], logprobs=True)
    assert (len(cut.token_ids), cut.finish_reason) == (2, "length")
    assert cut.logprobs is not None
    assert min(cut.logprobs) < -0.2


def test_a_colder_policy_is_surer() -> None:
    engine = ChainEngine((SWAP,))
    [cold] = engine.generate([Request(ids(engine, "0\n"), 2000, 1, seed=0)], temperature=0.5)
    # 0.75^2 / (0.75^2 + 0.25^2) = 0.9
    assert sum(c.text == "a" for c in cold) / 2000 == pytest.approx(0.9, abs=0.03)


def test_save_and_load_give_the_same_processes(tmp_path) -> None:
    engine, other = ChainEngine((SWAP,)), ChainEngine()
    engine.save(tmp_path)
    other.load(ModelRef(tmp_path, "saved"))
    assert other.processes == (SWAP,)
    with pytest.raises(EngineError, match="No toy processes"):
        other.load(ModelRef(tmp_path / "absent", "absent"))


@pytest.mark.parametrize("text", ["a\n", "7\n", "0\nc\n", "0\nY", "0"])
def test_impossible_tokens_are_an_error(text: str) -> None:
    engine = ChainEngine((SWAP,))
    with pytest.raises(DataError, match=r"(?i)toy process"):
        engine.value(ids(engine, text))


def test_probabilities_must_sum_to_one() -> None:
    with pytest.raises(ConfigError, match="sum to 1"):
        Process((((0.5, 0.6),),), (((0, 0),),), (True,))


def test_engine_and_task_satisfy_the_protocols_and_fit_together() -> None:
    engine, task = ChainEngine(), ChainTask()
    assert isinstance(engine, Engine)
    assert isinstance(task, Task)
    problem = task.problems("train")[3]
    assert question_start(problem, task, engine.tokenizer).prompt_ids == ids(engine, "3\n")
    assert task.score(problem, "a\nb\nY").right
    assert task.score(problem, "a\nN").verdict == "wrong"
    assert task.score(problem, "a\nb\n").verdict == "ungradable"


def test_log_probabilities_of_given_tokens_are_exact() -> None:
    engine = ChainEngine((SWAP,), padding=1)
    given = [ids(engine, "b.\nb.\nY"), ids(engine, "b.\nY"), ids(engine, "a.")]
    one, two, three = engine.logprobs([ids(engine, "0\n")] * 3, given)
    assert one == pytest.approx([log(0.25), 0, 0, log(0.8), 0, 0, 0])
    assert two == pytest.approx([log(0.25), 0, 0, -inf])
    assert three == pytest.approx([log(0.75), 0])
    [[cold, _]] = engine.logprobs([ids(engine, "0\n")], given[2:], temperature=0.5)
    assert cold == pytest.approx(log(0.9))
    [[rest]] = engine.logprobs([ids(engine, "0\nb.\n")], [ids(engine, "a")])
    assert rest == pytest.approx(log(0.2))


def test_the_context_bounds_a_completion_and_unknown_tokens_are_refused() -> None:
    engine = ChainEngine((SWAP,), context_length=5)
    [[completion]] = engine.generate([Request(ids(engine, "0\n"), 1, 100, seed=0)])
    assert (len(completion.token_ids), completion.finish_reason) == (3, "length")
    with pytest.raises(EngineError, match="token ids from 2 to 999"):
        engine.generate([Request((2, 999), 1, 1, 0)])
