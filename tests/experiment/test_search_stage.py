"""What a run tells its searches, what they may spend, and the control that is matched to one."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from gpo.config.components import Spec
from gpo.contracts import Sample
from gpo.errors import ConfigError
from gpo.estimators.monte_carlo import MonteCarlo
from gpo.experiment.run import Run
from gpo.experiment.search import locate
from gpo.experiment.stages import rollout
from gpo.storage.events import Progress
from gpo.storage.rounds import RoundState
from gpo.toy import ChainEngine
from gpo.types import Evidence, StepScores, Trajectory, tokens_of
from toy import toy_config

SEEN: list[tuple[int, int, int | None]] = []


@dataclass(frozen=True)
class Spy(MonteCarlo):
    """Notes what each call is told."""

    def __call__(
        self, trajectories: Sequence[Trajectory], sample: Sample, evidence: Evidence = Evidence()
    ) -> list[StepScores]:
        SEEN.append((len(evidence.groups), len(evidence.scores), sample.left))
        return super().__call__(trajectories, sample, evidence)


def test_a_search_is_told_all_rollouts_of_the_round_and_what_was_searched_before(tmp_path: Path) -> None:
    SEEN.clear()
    run = Run(tmp_path, toy_config(arms={"gpo": Spy(rollouts=1)}, locate_per_problem=4))
    scores = run.locate("gpo")
    assert {groups for groups, _, _ in SEEN} == {8}
    searched = [number for _, number, _ in SEEN]
    assert searched[:3] == [0, 2, 4]
    assert searched == sorted(set(searched))
    assert searched[-1] < len(scores)
    lefts = [left for _, _, left in SEEN if left is not None]
    assert lefts == sorted(lefts, reverse=True)


@pytest.mark.parametrize("padding", [2, 40])
def test_a_search_stops_within_its_share_however_long_the_trajectories_are(tmp_path: Path, padding: int) -> None:
    engine = Spec("engine", "gpo.toy:ChainEngine", {"padding": padding})
    config = toy_config(
        engine=engine, arms={"gpo": Spec("estimator", "monte_carlo", {"rollouts": 64})}, problems=2, rollouts=2,
        budget=1.5,
    )  # fmt: skip
    run = Run(tmp_path, config)
    run.reset("gpo")
    budget = round(run.config.budget * tokens_of(run.rollout()))
    spent = sum(score.tokens for score in run.files.scores("gpo").read())
    assert spent <= 0.4 * budget
    assert tokens_of(RoundState.of(run.files, "gpo").groups()) < 1.2 * budget


def test_what_the_limit_leaves_without_a_rollout_is_not_searched(tmp_path: Path) -> None:
    run = Run(tmp_path, toy_config(problems=8, rollouts=4, arms={"gpo": Spec("estimator", "monte_carlo")}, budget=2.0))
    scores = run.locate("gpo")
    assert 0 < len(scores) < 32
    assert all(score.tokens for score in scores)
    events = run.files.events.path.read_bytes()
    assert run.locate("gpo") == scores
    assert run.files.events.path.read_bytes() == events  # nothing is tried again


def test_a_rollout_is_no_longer_than_the_context(tmp_path: Path) -> None:
    found = {}
    for most in (40, 1500):
        engine = Spec("engine", "gpo.toy:ChainEngine", {"context_length": 40})
        config = toy_config(arms={"gpo": Spec("estimator", "monte_carlo")}, engine=engine, max_tokens=most)
        found[most] = len(Run(tmp_path / str(most), config).locate("gpo"))
    assert found[1500] == found[40] > 2


def test_a_search_that_no_rollout_fits_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = Run(tmp_path, toy_config(arms={"gpo": Spec("estimator", "monte_carlo")}, budget=1.1, max_tokens=4000))
    assert run.locate("gpo") == []
    assert "The search of gpo may take" in caplog.text


def test_a_search_that_nothing_is_left_for_searches_nothing(tmp_path: Path) -> None:
    """An estimator that is told that nothing is left would return what it believes before any rollout."""
    run = Run(tmp_path, toy_config(arms={"gpo": "adaptive"}, locate_share=1e-6))
    assert run.locate("gpo") == []


def test_a_search_says_once_that_it_is_over(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []

    def tell(progress: Progress) -> None:
        if progress.stage == "locate":
            told.append((progress.done, progress.total))

    run = Run(tmp_path, toy_config(arms={"gpo": Spec("estimator", "monte_carlo")}, budget=2.0), on_progress=tell)
    found = len(run.locate("gpo"))
    assert told[-1] == (found, found)
    assert all(done < total for done, total in told[:-1])
    told.clear()
    run.locate("gpo")
    assert told == []


def test_a_search_without_rollouts_goes_through_all_whatever_the_limit(tmp_path: Path) -> None:
    config = toy_config(arms={"gpo": "random_unsearched"}, locate_per_problem=4, budget=1.01, max_tokens=4000)
    assert len(Run(tmp_path, config).locate("gpo")) == 8 * 4


def matched(**changes: Any) -> dict[str, Any]:
    arms = {
        "plain": "none",
        "random": Spec("estimator", "random_matched"),
        "gpo": Spec("estimator", "monte_carlo", {"rollouts": 2}),
    }
    return {"arms": arms, **changes}


def test_the_matched_control_differs_in_the_place_only(tmp_path: Path) -> None:
    run = Run(tmp_path, toy_config(**matched()))
    ours, theirs = run.locate("gpo"), run.locate("random")
    assert [s.trajectory_id for s in ours] == [s.trajectory_id for s in theirs]
    assert [s.tokens for s in ours] == [s.tokens for s in theirs]
    assert [s.rollouts for s in ours] == [s.rollouts for s in theirs]
    assert [s.critical_step is None for s in ours] == [s.critical_step is None for s in theirs]
    assert [s.critical_step for s in ours] != [s.critical_step for s in theirs]
    run.reset("random")
    run.reset("gpo")
    spent = [tokens_of(RoundState.of(run.files, arm).groups()) for arm in ("random", "gpo")]
    assert abs(spent[0] - spent[1]) < 0.01 * spent[0]


def test_the_matched_control_takes_over_what_a_larger_budget_adds_to_the_search(tmp_path: Path) -> None:
    for budget in (2.0, 6.0):
        run = Run(tmp_path, toy_config(**matched(budget=budget, problems=8, rollouts=4)))
        ours, theirs = run.locate("gpo"), run.locate("random")
        assert [s.trajectory_id for s in theirs] == [s.trajectory_id for s in ours]
    assert len({s.trajectory_id for s in theirs}) == len(theirs) > 4


def test_in_later_rounds_the_matched_control_searches_its_own_trajectories(tmp_path: Path) -> None:
    run = Run(tmp_path, toy_config(**matched(rounds=2)))
    run.train("random")
    ids = {t.id for group in run.files.fresh("random", 2).read() for t in group.trajectories}
    scores = run.files.scores("random", 2).read()
    assert scores
    assert {score.trajectory_id for score in scores} <= ids
    assert sum(score.tokens for score in scores) > 0


def test_a_control_without_its_arm_is_refused(tmp_path: Path) -> None:
    arms = {"random": Spec("estimator", "random_matched", {"arm": "best"}), "gpo": "monte_carlo"}
    with pytest.raises(ConfigError, match="repeats the search of arm 'best'"):
        Run(tmp_path, toy_config(arms=arms)).locate("random")


@dataclass
class Named(ChainEngine):
    """An engine with a model of its own."""

    model: Any = None


@dataclass(frozen=True)
class Reads(MonteCarlo):
    """A search that reads a model."""

    model: Any = None
    told: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        TOLD.append(self.model)


TOLD: list[Any] = []


def test_a_search_that_reads_a_model_reads_the_one_that_samples(tmp_path: Path) -> None:
    TOLD.clear()
    engine = Spec("engine", "test_search_stage:Named", {"model": "somewhere/else"})
    run = Run(tmp_path, toy_config(engine=engine, arms={"gpo": Spec("estimator", "test_search_stage:Reads")}))
    run.locate("gpo")
    assert set(TOLD) == {"somewhere/else"}
    assert {pair.provenance["model"] for pair in run.build("gpo")} == {"somewhere/else"}


def test_a_search_that_a_pilot_began_goes_on_with_all_questions(tmp_path: Path) -> None:
    """What was searched of the first questions counts, and is not searched twice."""
    arms = {"gpo": Spec("estimator", "monte_carlo", {"rollouts": 2})}
    run = Run(tmp_path, toy_config(problems=3, arms=arms))
    with run.held():
        state = RoundState.of(run.files, "gpo")
        rollout(run, state)
        locate(run, state, searches=2)
    begun = [score.trajectory_id for score in run.files.scores("gpo").read()]
    assert len(begun) == 2
    whole = Run(tmp_path, toy_config(problems=8, arms=arms))
    found = [score.trajectory_id for score in whole.locate("gpo")]
    assert found[:2] == begun
    assert len(set(found)) == len(found) > 4
    share = 0.4 * whole.allowance(RoundState.of(whole.files, "gpo"))
    assert sum(score.tokens for score in whole.files.scores("gpo").read()) <= share
    whole.reset("gpo")
    assert len(whole.files.searched("gpo")) == len(found)
