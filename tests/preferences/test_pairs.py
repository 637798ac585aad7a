import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpo.errors import ConfigError, DataError
from gpo.preferences.pairs import build_pairs, read_pairs, to_row, write_pairs
from gpo.types import Completion, FinishReason, Group, Pair, PairSettings, Score, Start, StepScores, Trajectory, Verdict

EOS = 9


class Letters:
    """Token i is the i-th letter, 8 is a line break, 9 ends the sequence."""

    eos_token_id = EOS

    def encode(self, text: str, *, add_special_tokens: bool = False) -> list[int]:
        return ["abcdefgh\n$".index(letter) for letter in text]

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        return "".join("abcdefgh\n$"[i] for i in token_ids if not (skip_special_tokens and i == EOS))


def group(
    problem: str, prefix: tuple[int, ...], *rows: tuple[tuple[int, ...], Verdict], parent: str | None = None
) -> Group:
    start = Start(problem, (0, 1), prefix, parent)
    trajectories = []
    for ids, verdict in rows:
        finish: FinishReason = "stop" if ids[-1:] == (EOS,) else "length"
        score = Score(None if verdict == "failed" else float(verdict == "right"), verdict)
        name = f"{problem}/{prefix}/{ids}"
        completion = Completion(ids, Letters().decode(ids, skip_special_tokens=True), finish)
        trajectories.append(Trajectory(name, start, completion, score, (len(prefix) + len(ids),)))
    return Group(start, tuple(trajectories))


def ids_of(pairs: Sequence[Pair]) -> list[tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]:
    return [(pair.prefix_ids, pair.chosen_ids, pair.rejected_ids) for pair in pairs]


def test_one_right_and_one_wrong_make_a_pair_with_text_and_ids() -> None:
    (pair,) = build_pairs([group("p", (2, 8), ((3, EOS), "right"), ((4, EOS), "wrong"))], Letters())
    assert (pair.prompt_ids, pair.prefix_ids, pair.chosen_ids, pair.rejected_ids) == ((0, 1), (2, 8), (3, 9), (4, 9))
    assert (pair.prompt, pair.prefix, pair.chosen, pair.rejected) == ("ab", "c\n", "d", "e")
    assert pair.provenance["chosen_id"] == "p/(2, 8)/(3, 9)"


def test_groups_of_the_same_start_are_merged() -> None:
    groups = [group("p", (2,), ((3, EOS), "right"), parent="x"), group("p", (2,), ((4, EOS), "wrong"), parent="y")]
    assert ids_of(build_pairs(groups, Letters())) == [((2,), (3, EOS), (4, EOS))]


def test_other_prompts_prefixes_and_problems_are_not_merged() -> None:
    groups = [group("p", (2,), ((3, EOS), "right")), group("p", (3,), ((4, EOS), "wrong"))]
    groups += [group("q", (2,), ((4, EOS), "wrong"))]
    assert build_pairs(groups, Letters()) == []


def test_failed_grades_and_empty_completions_are_left_out() -> None:
    rows = group("p", (2,), ((3, EOS), "right"), ((4, EOS), "failed"), ((), "wrong"))
    assert build_pairs([rows], Letters()) == []


@pytest.mark.parametrize(("truncated", "expected"), [("rejected", 1), ("excluded", 0)])
def test_truncated_completions_are_rejected_or_excluded(truncated: str, expected: int) -> None:
    rows = group("p", (), ((3, EOS), "right"), ((4, 4), "ungradable"))
    pairs = build_pairs([rows], Letters(), settings=PairSettings(truncated=truncated))  # type: ignore[arg-type]
    assert len(pairs) == expected
    assert all(EOS not in pair.rejected_ids for pair in pairs)


def test_a_truncated_right_completion_is_on_neither_side() -> None:
    assert build_pairs([group("p", (), ((3, 3), "right"), ((4, EOS), "wrong"))], Letters()) == []
    assert build_pairs([group("p", (), ((3, 3), "right"), ((3, EOS), "right"))], Letters()) == []


def test_equal_completions_count_once() -> None:
    rows = group("p", (), ((3, EOS), "right"), ((3, EOS), "right"), ((4, EOS), "wrong"), ((4, EOS), "wrong"))
    assert len(build_pairs([rows], Letters())) == 1


def test_an_earlier_rollout_that_passes_through_a_prefix_continues_it() -> None:
    fresh = group("p", (), ((2, 8, 5, EOS), "wrong"), ((3, 8, 5, EOS), "wrong"))
    reset = group("p", (2, 8), ((6, EOS), "right"), parent="p/()/(2, 8, 5, 9)")
    assert ids_of(build_pairs([fresh, reset], Letters())) == [((2, 8), (6, EOS), (5, EOS))]
    assert build_pairs([fresh, reset], Letters(), reuse=False) == []


def test_a_reset_never_continues_an_earlier_start() -> None:
    fresh = group("p", (), ((3, EOS), "wrong"))
    reset = group("p", (2, 8), ((6, EOS), "right"))
    assert build_pairs([fresh, reset], Letters()) == []


def test_limits_per_start_per_problem_and_in_all() -> None:
    def rows(problem: str, prefix: int) -> Group:
        right = [((3, 3, i, EOS), "right") for i in range(5)]
        return group(problem, (prefix,), *right, *[((4, i, EOS), "wrong") for i in range(3)])  # type: ignore[arg-type]

    groups = [rows(problem, prefix) for problem in "pqr" for prefix in (2, 3)]
    assert len(build_pairs(groups, Letters(), settings=PairSettings(per_start=9, per_problem=None))) == 3 * 2 * 5
    capped = build_pairs(groups, Letters(), settings=PairSettings(per_start=4, per_problem=3))
    assert Counter(pair.problem_id for pair in capped) == {"p": 3, "q": 3, "r": 3}
    assert {pair.prefix_ids for pair in capped if pair.problem_id == "p"} == {(2,), (3,)}
    cut = build_pairs(groups, Letters(), settings=PairSettings(most=7))
    assert sorted(Counter(pair.problem_id for pair in cut).values()) == [2, 2, 3]


def test_the_critical_start_of_a_problem_comes_first_and_provenance_says_so() -> None:
    fresh = group("p", (), ((2, 8, 5, EOS), "wrong"), ((7, EOS), "right"))
    parent = fresh.trajectories[0]
    parent = replace(parent, step_ends=(2, 4))
    fresh = Group(fresh.start, (parent, fresh.trajectories[1]))
    reset = group("p", (2, 8), ((6, EOS), "right"), parent=parent.id)
    nan = float("nan")
    score = StepScores(parent.id, (0.5, nan, 0.0), (2, 0, 1), (0,) * 3, (1,) * 3, (nan, nan), 0, 1, tokens=7)
    for seed in range(5):
        pairs = build_pairs([fresh, reset], Letters(), scores=[score], seed=seed, provenance={"estimator": "test"})
        assert [pair.prefix_ids for pair in pairs] == [(2, 8), ()]
    assert pairs[0].provenance == {
        "chosen_id": "p/(2, 8)/(6, 9)",
        "rejected_id": parent.id,
        "parent": parent.id,
        "boundary": 1,
        "prefix_tokens": 2,
        "reset_boundary": 1,
        "critical_step": 0,
        "values": [0.5, None, 0.0],
        "estimator": "test",
    }
    json.dumps(to_row(pairs[0]), allow_nan=False)


continuations = st.lists(
    st.tuples(
        st.lists(st.integers(0, 7), min_size=1, max_size=2).map(lambda ids: (*ids, EOS)),
        st.sampled_from(["right", "wrong", "ungradable", "failed"]),
    ),
    max_size=6,
    unique_by=lambda row: row[0],
)


@settings(max_examples=60, deadline=None)
@given(st.lists(continuations, min_size=1, max_size=3), st.integers(0, 3))
def test_every_pair_is_one_right_and_one_wrong_of_its_start(
    starts: list[list[tuple[tuple[int, ...], Verdict]]], seed: int
) -> None:
    groups = [group("p", (8,) * i, *rows) for i, rows in enumerate(starts)]
    verdicts = {trajectory.id: trajectory.score.verdict for g in groups for trajectory in g.trajectories}
    pairs = build_pairs(groups, Letters(), seed=seed, settings=PairSettings(per_start=3))
    assert pairs == build_pairs(groups, Letters(), seed=seed, settings=PairSettings(per_start=3))
    assert len(set(ids_of(pairs))) == len(pairs)
    for pair in pairs:
        assert verdicts[pair.provenance["chosen_id"]] == "right"
        assert verdicts[pair.provenance["rejected_id"]] in {"wrong", "ungradable"}
        for side, name in ((pair.chosen_ids, "chosen_id"), (pair.rejected_ids, "rejected_id")):
            assert pair.provenance[name].startswith("p/")
            assert side[-1] == EOS
    mixed = [rows for rows in starts if {v for _, v in rows} >= {"right", "wrong"}]
    assert len(pairs) >= len(mixed)


def test_rows_hold_our_ids_and_the_text_columns_of_trl() -> None:
    (pair,) = build_pairs([group("p", (2, 8), ((3, EOS), "right"), ((4, EOS), "wrong"))], Letters())
    row = to_row(pair)
    assert (row["prompt"], row["chosen"], row["rejected"]) == ("abc\n", "d", "e")
    row = to_row(pair, prefix_in="completion")
    assert (row["prompt"], row["chosen"], row["rejected"]) == ("ab", "c\nd", "c\ne")
    assert (row["prompt_ids"], row["prefix_ids"], row["chosen_ids"]) == ([0, 1], [2, 8], [3, 9])


@pytest.mark.parametrize("prefix_in", ["prompt", "completion", "masked"])
def test_pairs_survive_the_file(tmp_path, prefix_in) -> None:  # type: ignore[no-untyped-def]
    rows = group("p", (2, 8), ((3, EOS), "right"), ((4, EOS), "wrong"), ((5, EOS), "wrong"))
    pairs = build_pairs([rows], Letters())
    write_pairs(pairs, tmp_path / "a" / "pairs.jsonl", prefix_in)
    assert read_pairs(tmp_path / "a" / "pairs.jsonl") == pairs
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["pairs.jsonl"]
    write_pairs(pairs, str(tmp_path / "b.jsonl"), prefix_in)
    assert read_pairs(str(tmp_path / "b.jsonl")) == pairs


@pytest.mark.parametrize("line", ["{", "{}", "[]", '{"problem_id": 1, "prompt_ids": 3}'])
def test_a_malformed_line_is_named(tmp_path, line) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "pairs.jsonl").write_text(line + "\n")
    with pytest.raises(DataError, match=r"pairs\.jsonl, line 1: not a preference pair"):
        read_pairs(tmp_path / "pairs.jsonl")
    with pytest.raises(DataError, match="No pairs at"):
        read_pairs(tmp_path / "other.jsonl")


def test_lines_end_at_a_line_feed_only(tmp_path) -> None:  # type: ignore[no-untyped-def]
    ends = "\u2028\u2029\u0085\x0c\x0b\x1c\r"
    pair = Pair("p", (1,), (), (2,), (3,), f"a{ends}b", "", f"c{ends}", f"{ends}d", {"model": f"m{ends}"})
    write_pairs([pair, pair], tmp_path / "pairs.jsonl")
    assert read_pairs(tmp_path / "pairs.jsonl") == [pair, pair]


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-20],  # cut off
        lambda data: data.replace(b'"right"', b'"\xff"'),  # no UTF-8
        lambda data: data.replace(b'"chosen_ids": [3, 9]', b'"chosen_ids": "39"'),
        lambda data: data.replace(b'"chosen_ids": [3, 9]', b'"chosen_ids": [3, -9]'),
        lambda data: data.replace(b'"chosen": "right"', b'"chosen": null'),
        lambda data: b"\n".join(data.split(b"\n")[:1]) + b"\n\n",  # an empty line
    ],
)
def test_a_damaged_file_is_an_error_that_names_file_and_line(tmp_path, damage) -> None:  # type: ignore[no-untyped-def]
    good = Pair("p", (1,), (), (4,), (5,), "q", "", "a", "b")
    write_pairs([good, Pair("p", (1,), (), (3, 9), (4, 9), "q", "", "right", "b")], tmp_path / "pairs.jsonl")
    (tmp_path / "pairs.jsonl").write_bytes(damage((tmp_path / "pairs.jsonl").read_bytes()))
    with pytest.raises(DataError, match=r"pairs\.jsonl, line 2: not a preference pair"):
        read_pairs(tmp_path / "pairs.jsonl")


def test_what_ends_a_response_is_what_the_engine_says() -> None:
    """A second end of sequence is no text, and the tokenizer's own is text where the engine does not stop at it."""
    rows = group("p", (), ((3, 7), "right"), ((4, EOS), "wrong"))
    stopped = [replace(t, completion=replace(t.completion, finish_reason="stop")) for t in rows.trajectories]
    rows = Group(rows.start, tuple(stopped))
    (pair,) = build_pairs([rows], Letters(), stop_ids=frozenset({7}))
    assert (pair.chosen, pair.rejected) == ("d", "e$")
    (pair,) = build_pairs([rows], Letters())
    assert (pair.chosen, pair.rejected) == ("dh", "e")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"per_problem": 0}, "pairs.per_problem is 0, expected at least 1, or none for all"),
        ({"most": 1.5}, "pairs.most is 1.5, expected at least 1, or none for all"),
        ({"per_start": None}, r"pairs.per_start is None, expected at least 1\."),
        ({"truncated": "kept"}, "pairs.truncated is 'kept', expected rejected or excluded"),
        ({"prefix_in": None}, "pairs.prefix_in is None, expected prompt or completion or masked"),
        ({"certainty": 7}, "pairs.certainty is 7, expected a number of at least 0.5 and below 1"),
        ({"strength": "3"}, "pairs.strength is '3', expected a number of at least 0"),
    ],
)
def test_settings_of_pairs_are_checked(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PairSettings(**wrong)


def test_only_what_is_chosen_is_decoded() -> None:
    """Decoding is most of the time where responses are long, and most pairs are left out by the caps."""

    class Counting(Letters):
        calls = 0

        def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
            Counting.calls += 1
            return super().decode(token_ids, skip_special_tokens=skip_special_tokens)

    rows = [((i, j, EOS), "right" if i % 2 else "wrong") for i in range(8) for j in range(8)]
    (pair,) = build_pairs([group("p", (), *rows)], Counting(), settings=PairSettings(most=1))
    assert pair.chosen
    assert Counting.calls < 10
    Counting.calls = 0
    few = [((3, EOS), "right"), *(((4, i, EOS), "wrong") for i in range(8))]
    assert len(build_pairs([group("p", (2,), *few)], Counting())) == 8
    assert Counting.calls == 1 + 2 + 2 * 9  # the prompt, the prefix, and each continuation once, each behind a head


def test_a_question_that_a_search_resets_to_is_a_critical_start_too() -> None:
    question = group("p", (), ((2, 3, EOS), "right"), ((4, EOS), "wrong"))
    behind = [group("p", (5,) * n, ((6, EOS), "right"), ((7, EOS), "wrong"), parent="other") for n in (1, 2, 3)]
    parent = question.trajectories[0].id
    nothing = (0.5, 0.5)
    score = StepScores(parent, nothing, (1, 1), nothing, nothing, (0.0,), critical_step=0, reset_boundary=0, tokens=0)
    for seed in range(4):
        assert build_pairs([*behind, question], Letters(), scores=[score], seed=seed)[0].prefix_ids == ()


def test_which_continuation_is_rejected_depends_on_the_seed() -> None:
    rows = group("p", (), ((2, EOS), "right"), *(((i, EOS), "wrong") for i in range(3, 8)))
    few = PairSettings(per_start=1)
    assert len({build_pairs([rows], Letters(), settings=few, seed=seed)[0].rejected_ids for seed in range(8)}) > 1


def test_a_response_without_an_answer_is_a_wrong_one() -> None:
    rows = group("p", (), ((3, EOS), "right"), ((4, EOS), "ungradable"))
    assert ids_of(build_pairs([rows], Letters())) == [((), (3, EOS), (4, EOS))]
