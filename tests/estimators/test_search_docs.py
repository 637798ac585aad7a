"""The search that `docs/search.md` writes in one file does what the page says."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy_chain import first_rollouts, make_sampler, mistake_chain

from gpo.contracts import Estimator
from gpo.toy import ChainEngine

PAGE = (Path(__file__).parents[2] / "docs" / "search.md").read_text(encoding="utf-8")
CHAIN = ChainEngine((mistake_chain([0.1, 0.4, 0.1, 0.1]),))


@pytest.fixture
def example() -> Any:
    section = PAGE.partition("## Add a search in one file\n")[2].partition("\n## ")[0]
    [block] = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    names: dict[str, Any] = {"__name__": "backwards"}
    exec(block, names)
    return names["Backwards"]


def test_the_example_finds_the_mistake(example: Any) -> None:
    wrong = [t for t in first_rollouts(CHAIN, 40) if not t.score.right]
    sample = make_sampler(CHAIN)
    search = example(rollouts=16)
    assert isinstance(search, Estimator)
    scores = search(wrong, sample)
    assert [score.critical_step for score in scores] == [t.completion.text.index("b") // 2 for t in wrong]
    assert sum(score.tokens for score in scores) == sample.tokens
    assert np.mean([score.counts[0] == 0 for score in scores]) > 0.5  # it did not look at what comes before


def test_the_page_names_every_search() -> None:
    from gpo.config.registry import ESTIMATORS

    table = PAGE.partition("| name | tokens")[2].partition("\n\n")[0]
    assert set(re.findall(r"^\| \[?`(\w+)`", table, re.MULTILINE)) == set(ESTIMATORS)


def test_links_within_the_page_lead_somewhere() -> None:
    anchors = {
        re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in re.findall(r"^#+ (.*)$", PAGE, re.M)
    }
    assert set(re.findall(r"\]\(#([\w-]+)\)", PAGE)) <= anchors
