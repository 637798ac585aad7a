"""temporal_sequences: find the free time in a day, by listing the day in order."""

from __future__ import annotations

from itertools import pairwise
from random import Random

from gpo.reasoner.example import Example, Slips, between, lettered, named_option, options

NAMES = (
    "Sarah William David Thomas Lisa Kimberly Mary Linda John Emily Richard Betty Jennifer Nancy Samantha Steven James "
    "Leslie Michael Susan Anthony Ashley Sean Hannah Elizabeth Tiffany Mark Andrew Jason Jessica"
).split()
PLACES = (
    "clothing store,basketball court,bakery,swimming pool,coffee shop,dance studio,art studio,market,beach,"
    "amusement park,construction site,orchestra hall,art show,gas station,restaurant,bookstore,park,soccer field,"
    "football field,physics classroom,movies,museum,library"
).split(",")
ACTIVITIES = (
    "fixing their computer at the electronic store,working out at the gym,sitting on a rooftop,reading at the library,"
    "waiting at the train station,taking photos near the Eiffel Tower,working at the office,"
    "walking towards the Statue of Liberty,buying a bike at the bike shop,"
    "taking photos near the Leaning Tower of Pisa,getting a coffee at the cafe,driving to the water park,"
    "walking in the garden,buying lunch at the deli,stretching at a yoga studio,"
    "buying a phone at the electronics store,waiting at the airport,watching a movie at the theater,"
    "attending class at the school,playing tennis at the tennis court,buying clothes at the mall,"
    "buying cookies at a bakery"
).split(",")


def clock(hour: int) -> str:
    return f"{(hour - 1) % 12 + 1}{'am' if hour < 12 else 'pm'}"


def span(start: int, end: int) -> str:
    return f"{clock(start)} to {clock(end)}"


def consecutive(rng: Random, count: int) -> list[str]:
    """Spans of which each but one begins where another ends, in any order."""
    times = sorted(rng.sample(range(5, 23), count + 1))
    spans = [span(*interval) for interval in pairwise(times)]
    rng.shuffle(spans)
    return spans


def make(rng: Random, level: float | None, slips: Slips, size: int | None = None) -> Example:
    events = size or (rng.randint(3, 5) if level is None else between(rng, 2, 5, level))
    times = sorted(rng.sample(range(5, 23), events + 2))
    spans = list(pairwise(times))
    free = rng.randrange(len(spans))
    name, *witnesses = rng.sample(NAMES, events + 1)
    place = rng.choice(PLACES)
    activities = rng.sample(ACTIVITIES, events)
    busy = [interval for i, interval in enumerate(spans) if i != free]
    facts = [f"{name} woke up at {clock(times[0])}."]
    facts += [
        f"{witness} saw {name} {activity} from {span(*interval)}."
        for witness, activity, interval in zip(witnesses, activities, busy, strict=True)
    ]
    facts.append(f"The {place} was closed after {clock(times[-1])}.")
    choices = [spans[free], *rng.sample(busy, min(3, len(busy)))]
    rng.shuffle(choices)
    question = (
        f"Today, {name} went to the {place}. Between what times could they have gone?\nWe know that:\n"
        + "\n".join(facts)
        + f"\nBetween what times could {name} have gone to the {place}?\n"
        + options([span(*choice) for choice in choices])
    )
    lines = [f"{clock(times[0])}: woke up."]
    found = spans[free]
    for interval in spans:
        if interval == spans[free]:
            missed = interval[0] != times[0] and interval[1] != times[-1] and slips(rng, "temporal.gap")
            if missed:
                found = rng.choice([choice for choice in choices if choice != spans[free]])
            else:
                lines.append(f"{span(*interval)}: free.")
        else:
            lines.append(f"{span(*interval)}: {activities[busy.index(interval)]}.")
    lines.append(f"{clock(times[-1])}: closed.")
    if found == spans[free] and slips(rng, "temporal.recall"):
        found = rng.choice(choices)
    names = [span(*choice) for choice in choices]
    lines += [lettered(names), f"The free time is {span(*found)}.", named_option(names, span(*found))]
    return Example(question, "\n".join(lines), f"({'ABCD'[choices.index(spans[free])]})")
