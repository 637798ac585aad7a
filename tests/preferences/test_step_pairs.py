"""Pairs of single steps, on toy processes."""

import pytest

from gpo.config.components import Spec
from gpo.experiment.run import Run
from gpo.preferences.step_pairs import build_step_pairs
from gpo.storage.rounds import RoundState
from gpo.types import Group, PairSettings
from toy import toy_config


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    config = toy_config(rollouts=12, arms={"gpo": Spec("estimator", "monte_carlo", {"rollouts": 4})}, credit="step")
    made = Run(tmp_path_factory.mktemp("steps"), config)
    made.build("gpo")
    return made


def groups(run: Run) -> list[Group]:
    return RoundState.of(run.files, "gpo").groups()


def steps_of(run: Run) -> set[tuple[str, tuple[int, ...], tuple[int, ...]]]:
    """Problem, prefix and tokens of every step that was sampled."""
    return {
        (t.start.problem_id, t.response_ids[:begin], t.response_ids[begin:end])
        for group in groups(run)
        for t in group.trajectories
        for begin, end in zip(t.boundaries, t.step_ends, strict=False)
    }


def test_a_pair_is_two_steps_that_were_sampled_behind_one_prefix(run: Run) -> None:
    pairs = run.build("gpo")
    assert pairs
    sampled = steps_of(run)
    for pair in pairs:
        assert pair.chosen_ids != pair.rejected_ids
        assert {(pair.problem_id, pair.prefix_ids, ids) for ids in (pair.chosen_ids, pair.rejected_ids)} <= sampled
        assert pair.provenance["certainty"] >= 0.75
        assert (pair.prompt, pair.prefix, pair.chosen) == tuple(
            run.engine().tokenizer.decode(ids) for ids in (pair.prompt_ids, pair.prefix_ids, pair.chosen_ids)
        )


def test_step_credit_takes_places_where_rollouts_began_and_tree_credit_all(run: Run) -> None:
    engine = run.engine()
    began = {g.start.key for g in groups(run)}

    def places(starts_only: bool, settings: PairSettings) -> set[object]:
        found = build_step_pairs(
            groups(run), engine.tokenizer, stop_ids=engine.stop_ids, starts_only=starts_only, settings=settings
        )
        return {(p.problem_id, p.prompt_ids, p.prefix_ids) for p in found}

    free = PairSettings(per_problem=None)
    assert places(True, free) <= began
    assert places(True, free) < places(False, free)
    assert len(places(False, PairSettings(per_problem=2))) < len(places(False, free))


def test_the_choice_of_pairs_is_the_same_every_time(run: Run) -> None:
    engine = run.engine()
    once, again = (
        build_step_pairs(groups(run), engine.tokenizer, stop_ids=engine.stop_ids, starts_only=False, seed=3)
        for _ in range(2)
    )
    assert once == again


def test_a_pair_tells_how_often_its_steps_were_taken_and_how_often_that_was_right(run: Run) -> None:
    engine = run.engine()
    pairs = build_step_pairs(
        groups(run), engine.tokenizer, stop_ids=engine.stop_ids, starts_only=False, provenance={"from": "a run"}
    )
    rollouts = [t for group in groups(run) for t in group.trajectories]
    for pair in pairs:
        told = pair.provenance
        assert (told["from"], told["prefix_tokens"]) == ("a run", len(pair.prefix_ids))
        assert told["boundary"] == pair.prefix.count("\n")
        for side, step in (("chosen", pair.chosen_ids), ("rejected", pair.rejected_ids)):
            way = pair.prefix_ids + step
            scores = [
                float(t.score.right)
                for t in rollouts
                if t.start.prompt_ids == pair.prompt_ids
                and t.response_ids[: len(way)] == way
                and len(t.start.prefix_ids) <= len(way)
            ]
            assert told[f"{side}_count"] == len(scores)
            assert told[f"{side}_value"] == round(sum(scores) / len(scores), 4)
    few = build_step_pairs(
        groups(run), engine.tokenizer, stop_ids=engine.stop_ids, starts_only=False, settings=PairSettings(most=3)
    )
    assert len({pair.problem_id for pair in few}) == len(few) == 3 < len(pairs)


def test_more_rollouts_of_the_prior_make_a_pair_less_sure(run: Run) -> None:
    engine = run.engine()
    surest = [
        max(
            pair.provenance["certainty"]
            for pair in build_step_pairs(
                groups(run), engine.tokenizer, stop_ids=engine.stop_ids, starts_only=False,
                settings=PairSettings(strength=strength, certainty=0.5),
            )
        )
        for strength in (0.0, 50.0)
    ]  # fmt: skip
    assert surest[0] > surest[1]
