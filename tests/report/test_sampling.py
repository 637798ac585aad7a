"""What the rollouts of one question cost, on a terminal and elsewhere."""

from io import StringIO

import pytest
from hands import Hands
from rich.console import Console

from gpo.report.sampling import SamplingDisplay


def ask(console: Console) -> SamplingDisplay:
    hands = Hands()
    with SamplingDisplay(console, hands) as display:
        for part, rollouts, tokens in (("votes", 4, 400), ("votes", 12, 1200), ("search", 8, 20_000)):
            display(part, 0, 0)
            hands.seconds += 10
            display(part, rollouts, tokens)
    return display


def test_what_a_question_costs_is_shown_on_a_terminal_while_it_is_sampled() -> None:
    text = StringIO()
    console = Console(file=text, width=80, force_terminal=True, color_system=None)
    display = ask(console)
    rendered = console.render_lines(display.bars.get_renderable(), pad=False)
    lines = ["".join(segment.text for segment in line) for line in rendered]
    assert [" ".join(line[2:].split()[:-1]) for line in lines if line.strip()] == [
        "samples that vote 16 rollouts 1600 tokens 80 tok/s",
        "search of its steps 8 rollouts 20k tokens 2000 tok/s",
    ]
    assert max(map(len, lines)) <= 80


def test_elsewhere_only_what_it_cost_in_all_is_said() -> None:
    text = StringIO()
    display = ask(Console(file=text, width=80))
    assert text.getvalue() == ""
    said = "Sampled 21,600 tokens in 30.0 s, 720 a second: samples that vote 1,600, search of its steps 20,000."
    assert display.summary == said


@pytest.mark.parametrize(("seconds", "words"), [(59.0, "59.0 s"), (61.0, "1:01 min"), (7200.0, "2.0 h")])
def test_the_time_that_sampling_took_is_readable(seconds: float, words: str) -> None:
    hands = Hands()
    display = SamplingDisplay(Console(file=StringIO()), hands)
    display("solution", 0, 0)
    hands.seconds = seconds
    display("solution", 1, 100)
    assert f"Sampled 100 tokens in {words}, " in display.summary
