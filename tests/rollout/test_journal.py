from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from gpo.errors import EngineError
from gpo.rollout.journal import Journal
from gpo.toy import ChainEngine
from gpo.types import Completion, Request


@dataclass
class Counting(ChainEngine):
    """Remembers what it was asked for."""

    calls: list[list[Request]] = field(default_factory=list)

    def generate(
        self, requests: Sequence[Request], *, temperature: float = 1.0, logprobs: bool = False
    ) -> list[list[Completion]]:
        self.calls.append(list(requests))
        return super().generate(requests, temperature=temperature, logprobs=logprobs)


class Killed(BaseException):
    pass


def requests() -> list[Request]:
    prompt = tuple(ChainEngine().tokenizer.encode("0\n"))
    return [Request(prompt, 3, 50, seed) for seed in range(9)]


def journal(engine: ChainEngine, path: Path, kill_after: int = 1000) -> Journal:
    seen: list[int] = []

    def on_piece(done: int, wanted: int, tokens: int, seconds: float) -> None:
        seen.append(done)
        assert tokens > 0 < seconds
        assert done <= wanted == 27
        if len(seen) == kill_after:
            raise Killed

    return Journal(engine, path, path.with_name("size"), 1e-9, on_piece)


def test_a_call_in_pieces_gives_what_one_call_gives(tmp_path: Path) -> None:
    engine = Counting()
    answers = journal(engine, tmp_path / "j").generate(requests(), logprobs=True)
    assert answers == ChainEngine().generate(requests(), logprobs=True)
    assert len(engine.calls) > 1


def test_what_was_sampled_before_a_kill_is_not_sampled_again(tmp_path: Path) -> None:
    first, second = Counting(), Counting()
    with pytest.raises(Killed):
        journal(first, tmp_path / "j", kill_after=4).generate(requests())
    with (tmp_path / "j").open("ab") as file:
        file.write(b'{"key": "cut')
    again = journal(second, tmp_path / "j")
    assert again.generate(requests()) == ChainEngine().generate(requests())
    before, after = ({r.seed for call in e.calls for r in call} for e in (first, second))
    assert len(before) == 4
    assert before | after == set(range(9))
    assert not before & after
    again.clear()
    assert not (tmp_path / "j").exists()


def test_another_temperature_is_another_question(tmp_path: Path) -> None:
    engine = Counting()
    kept = journal(engine, tmp_path / "j")
    kept.generate(requests())
    asked = len(engine.calls)
    kept.generate(requests())
    assert len(engine.calls) == asked
    kept.generate(requests(), temperature=0.5)
    assert len(engine.calls) > asked


@dataclass
class Remote(ChainEngine):
    """Answers one by one, the third of them with a completion too few."""

    trouble: dict[str, int] = field(default_factory=dict)

    def stream(
        self, requests: Sequence[Request], *, temperature: float = 1.0, logprobs: bool = False
    ) -> Iterator[tuple[int, list[Completion]]]:
        for i, answer in enumerate(self.generate(requests, temperature=temperature, logprobs=logprobs)):
            yield i, answer[:-1] if i == 2 else answer


def test_what_a_remote_engine_answers_wrongly_is_not_kept(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="2 completions"):
        journal(Remote(), tmp_path / "j").generate(requests())
    engine = Counting()
    assert journal(engine, tmp_path / "j").generate(requests()) == ChainEngine().generate(requests())
    assert requests()[2] in [request for call in engine.calls for request in call]
