import json
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from math import isnan
from pathlib import Path
from random import Random
from typing import Any

import pytest
import yaml
from datasets import Dataset, load_dataset
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

import gpo
from gpo.errors import ConfigError, DataError
from gpo.experiment.run import Run
from gpo.preferences.dataset import apart, interleave, to_table, unpaired_rows, write_dataset
from gpo.preferences.pairs import read_pairs, to_row
from gpo.storage.rounds import RoundState
from gpo.types import Pair, StartKey
from toy import toy_config


def pair(problem: str, prefix: str = "", **provenance: Any) -> Pair:
    """Ids are the code points of the letters; both continuations end with 0."""
    chosen, rejected = f"{prefix}+{problem}", f"{prefix}-{problem}"
    ids = [tuple(map(ord, text)) for text in (problem, prefix, chosen, rejected)]
    more = {"chosen_id": f"{problem}/+", "rejected_id": f"{problem}/-", **provenance}
    return Pair(problem, ids[0], ids[1], (*ids[2], 0), (*ids[3], 0), problem, prefix, chosen, rejected, more)


ARMS = {"plain": "none", "random": "random_unsearched", "gpo": "monte_carlo"}
PAIRS = [pair(problem, prefix, model="m", values=[0.5, None]) for problem in "pqr" for prefix in ("", "x")]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = Run(tmp_path_factory.mktemp("run") / "toy", toy_config(arms=ARMS, reset_rollouts=6))
    for arm in run.config.arms:
        run.build(arm)
    return run


def test_a_dataset_has_the_text_columns_of_trl_and_our_ids() -> None:
    dataset = Dataset(to_table([to_row(pair) for pair in PAIRS]))
    assert dataset.column_names[:4] == ["problem_id", "prompt", "chosen", "rejected"]
    assert [dataset[i] for i in range(len(PAIRS))] == [to_row(pair) for pair in PAIRS]


def test_unpaired_rows_are_both_sides_of_every_pair() -> None:
    dataset = Dataset(to_table(list(unpaired_rows(PAIRS, "completion", seed=3))))
    found = {(row["prompt"], row["completion"], row["label"], tuple(row["completion_ids"])) for row in dataset}
    expected = {(p.prompt, p.prefix + p.chosen, True, p.chosen_ids) for p in PAIRS}
    assert found == expected | {(p.prompt, p.prefix + p.rejected, False, p.rejected_ids) for p in PAIRS}
    assert len(dataset) == 12
    for row in dataset:
        assert row["provenance"]["completion_id"] == f"{row['problem_id']}/{'+' if row['label'] else '-'}"
        assert row["provenance"]["model"] == "m"
        assert "chosen_id" not in row["provenance"]


def test_columns_have_the_same_types_where_one_arm_knows_nothing() -> None:
    known = to_table([to_row(pair("p", parent="t", boundary=1, values=[0.5], critical_step=0))])
    nothing = to_table([to_row(pair("p", parent=None, boundary=None, values=None, critical_step=None))])
    assert known.schema == nothing.schema
    assert to_table([to_row(pair("p", depth=1.5))]).schema.field("provenance").type.field("depth").type == "double"


def neighbours(rows: list[Any], key: Callable[[Any], Any]) -> int:
    return sum(key(a) == key(b) for a, b in pairwise(rows))


@given(st.lists(st.integers(0, 4), max_size=12))
def test_alike_rows_are_kept_apart_wherever_that_is_possible(rows: list[int]) -> None:
    found = apart(rows, key=lambda row: row)
    assert sorted(found) == sorted(rows)
    most = max((rows.count(row) for row in rows), default=0)
    # With one kind of more than half the rows, every other row parts two of it at best.
    assert neighbours(found, lambda row: row) == max(0, most - (len(rows) - most) - 1)


def test_rows_that_are_apart_already_stay_in_their_order() -> None:
    assert apart("abcab", key=lambda row: row) == list("abcab")
    assert apart("abbc", key=lambda row: row) == list("abcb")


def test_siblings_are_spread_over_the_whole_and_never_neighbours() -> None:
    rows = [(problem, start) for problem, size in (("p", 10), ("q", 10), ("r", 20)) for start in range(size // 2)] * 2
    order = interleave(rows, Random(0), problem=lambda row: row[0], start=lambda row: row)
    assert sorted(order) == sorted(rows)
    assert neighbours(order, lambda row: row) == 0
    for first in (0, 20):
        counts = [sum(row[0] == name for row in order[first : first + 20]) for name in "pqr"]
        assert all(abs(count - expected) <= 1 for count, expected in zip(counts, (5, 5, 10), strict=True))


def test_siblings_of_one_prefix_are_no_neighbours_in_the_unpaired_form() -> None:
    pairs = [pair("p", prefix) for prefix in "abc" for _ in range(4)]
    for seed in range(5):
        assert neighbours(list(unpaired_rows(pairs, seed=seed)), lambda row: row["prefix"]) == 0


def test_both_forms_load_from_the_folder_by_name(tmp_path: Path) -> None:
    write_dataset(PAIRS, tmp_path / "set", about={"arm": "gpo", "model": "m"})
    assert sorted(path.name for path in (tmp_path / "set").iterdir()) == [
        "README.md",
        "pairs.parquet",
        "unpaired.parquet",
    ]
    loaded = {
        form: load_dataset(str(tmp_path / "set"), form, split="train", cache_dir=str(tmp_path / "cache"))
        for form in ("pairs", "unpaired")
    }
    assert list(loaded["pairs"]) == [to_row(pair) for pair in PAIRS]
    assert list(loaded["unpaired"]) == list(unpaired_rows(PAIRS))


def test_a_data_set_that_is_written_in_parts_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_dataset(PAIRS, tmp_path / "whole")
    monkeypatch.setattr("gpo.preferences.dataset.ROWS", 2)
    write_dataset(PAIRS, tmp_path / "parts")
    for form in ("pairs", "unpaired"):
        whole, parts = (parquet.read_table(tmp_path / name / f"{form}.parquet") for name in ("whole", "parts"))
        assert parts.equals(whole)
        assert len(parts) > 2


def test_the_card_says_what_is_in_the_files(tmp_path: Path) -> None:
    write_dataset(PAIRS, tmp_path, about={"arm": "gpo", "pairs_per_start": 4})
    text = (tmp_path / "README.md").read_text()
    _, header, body = text.split("---\n", 2)
    values = yaml.safe_load(header)
    assert values["size_categories"] == ["n<1K"]
    assert [config["config_name"] for config in values["configs"]] == ["pairs", "unpaired"]
    assert values["configs"][0]["default"] is True
    assert "6 preference pairs over 3 problems and 6 starts" in body
    assert "3 pairs begin behind a prefix" in body
    assert "| pairs per start | 4 |" in body


def test_build_writes_lines_and_a_data_set_of_the_same_pairs(run: Run) -> None:
    for arm in run.config.arms:
        pairs = read_pairs(run.files.pairs(arm))
        dataset = gpo.load_pairs(run.files.path, arm)
        assert isinstance(dataset, Dataset)
        assert pairs
        assert list(dataset) == [json.loads(line) for line in run.files.pairs(arm).read_text().splitlines()]
        assert len(gpo.load_pairs(run.files.path, arm, "unpaired")) == 2 * len(pairs)


def test_every_row_says_where_it_comes_from(run: Run) -> None:
    groups = {t.id: t for group in RoundState.of(run.files, "gpo").groups() for t in group.trajectories}
    scores = {score.trajectory_id: score for score in run.files.scores("gpo").read()}
    behind = 0
    for row in gpo.load_pairs(run.files.path, "gpo"):
        origin = row["provenance"]
        estimator = run.described["arms"]["gpo"]["name"]
        assert (origin["model"], origin["estimator"], origin["arm"]) == ("reasoner", estimator, "gpo")
        assert (origin["seed"], origin["pairing_seed"], origin["prefix_tokens"]) == (0, 0, len(row["prefix_ids"]))
        for side in ("chosen", "rejected"):
            trajectory = groups[origin[f"{side}_id"]]
            assert trajectory.score.right == (side == "chosen")
            assert [*row["prefix_ids"], *row[f"{side}_ids"]] == list(trajectory.response_ids)
        if origin["parent"] in scores:
            values = scores[origin["parent"]].values
            assert origin["values"] == [None if isnan(value) else value for value in values]
            assert groups[origin["parent"]].boundaries[origin["boundary"]] == origin["prefix_tokens"]
            behind += 1
    assert behind


def test_a_start_that_the_search_has_sampled_from_gets_only_what_it_misses(run: Run) -> None:
    had = Counter(
        t.start.key for score in run.files.scores("gpo").read() for g in score.rollouts for t in g.trajectories
    )
    first: dict[StartKey, int] = {}
    for group in run.files.resets("gpo").read()[:-1]:  # the last one gets what is left
        first.setdefault(group.start.key, len(group.trajectories))
    known = [start for start in first if had[start]]
    assert known
    for start in known:
        assert first[start] in (6 - had[start], 6)  # 6: the second turn of a start that missed none
        assert had[start] >= 6 or first[start] < 6


def test_a_data_set_that_is_not_there_says_how_to_make_it(run: Run, tmp_path: Path) -> None:
    fresh = Run(tmp_path / "fresh", toy_config())
    fresh.problems("train")
    with pytest.raises(DataError, match=r"no data set at .*Write it with: gpo build .* --arm gpo"):
        gpo.load_pairs(fresh.files.path, "gpo")
    with pytest.raises(ConfigError, match=r"has no arm 'best'\. Its arms: plain, random, gpo"):
        gpo.load_pairs(run.files.path, "best")
    with pytest.raises(ConfigError, match="form is 'triples'"):
        gpo.load_pairs(run.files.path, "gpo", "triples")  # type: ignore[arg-type]
    write_dataset([], fresh.files.dataset("gpo"))
    with pytest.raises(DataError, match="The arm 'gpo' has no pair: no start had both"):
        gpo.load_pairs(fresh.files.path, "gpo")
    assert "configs" not in yaml.safe_load((fresh.files.dataset("gpo") / "README.md").read_text().split("---")[1])


def test_a_run_whose_data_set_was_lost_writes_it_again_from_its_pairs(run: Run, tmp_path: Path) -> None:
    other = Run(tmp_path / "run", toy_config())
    other.build("gpo")
    before = {path.name: path.read_bytes() for path in other.files.dataset("gpo").iterdir()}
    for path in other.files.dataset("gpo").iterdir():
        path.unlink()
    other.files.dataset("gpo").rmdir()
    other.build("gpo")
    assert {path.name: path.read_bytes() for path in other.files.dataset("gpo").iterdir()} == before
