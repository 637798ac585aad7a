"""What a suite would run, what difference it could tell, and what it takes: `gpo compare SUITE --dry-run`.

What it takes is foretold by the law of `gpo advise` (gpo.advice.work), from what `[plan]` states in place of a pilot.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import inf, isinf
from textwrap import wrap

from gpo.advice.cost import ModelShape, Operations, Work, gpu_hours, gpu_named, shape_of
from gpo.advice.stated import SPREAD, Plan
from gpo.advice.work import TAKEN, Training, work_of
from gpo.config.components import Spec
from gpo.config.models import resolve_model
from gpo.config.options import resolve
from gpo.config.presets import EMBEDDED
from gpo.config.run import RunConfig, settled
from gpo.estimators.matched import MatchedRandom
from gpo.estimators.none import NoReset
from gpo.experiment.plan import EVALUATION, foretell
from gpo.experiment.reuse import arms_alike, ask_alike, first_alike
from gpo.report.clean import counted
from gpo.report.progress import short
from gpo.suites.suite import Cell, Suite
from gpo.types import Stage

# Of the embedded reasoner: 960 responses to the training questions of `table`.
REASONER = Plan(prompt=53, response=117, steps=9, right=0.62)


@dataclass(frozen=True)
class RowPlan:
    """What a row of a suite takes in all its runs, without what the rows above have sampled alike.

    None is what is not known without a model's shape or a GPU.
    """

    regime: str
    method: str
    stated: Plan
    work: Work
    done: Operations | None
    memory: float | None  # bytes of training, at least
    hours: float | None  # of one GPU; infinite where it is too small
    shape: ModelShape | None


def plan(suite: Suite) -> str:
    """All that `--dry-run` says of a suite, as lines of at most 80 characters where its names are short."""
    return "\n".join([*_runs(suite), *_takes(suite)])


def _runs(suite: Suite) -> Iterator[str]:
    from gpo.suites.table import detectable, trains_on_groups

    rows = [Cell(regime, method, suite.seeds[0]) for regime in suite.regimes for method in suite.methods]
    first: RunConfig = resolve(suite.options(rows[0]))
    questions = first.test_problems
    arms = dict.fromkeys(arm for row in rows for arm in resolve(suite.options(row)).arms)
    yield suite.title
    yield f"  rows        {len(rows)}: {len(suite.methods)} methods, {len(suite.regimes)} regimes"
    yield f"  arms        {', '.join(arms)}"
    yield f"  seeds       {len(suite.seeds)} ({', '.join(map(str, suite.seeds))})"
    yield f"  tuning      {len(list(suite.tuning_cells()))} runs on development questions"
    yield f"  test        {len(rows) * len(suite.seeds)} runs, more where arms have different settings"
    if suite.matched != "tokens":
        yield f"  matched     {suite.matched}, found by {len(rows)} runs, more where arms have different settings"
    if questions is not None:
        kinds = {trains_on_groups(suite.options(row)) for row in rows}
        told = " and ".join(
            f"{100 * detectable(questions, first.test_samples, len(suite.seeds), groups=groups):.1f} points "
            f"with {'groups' if groups else 'pairs'}"
            for groups in sorted(kinds)
        )
        yield f"  tells       {told}"
        yield f"              (four times of five; {questions} questions, {counted(first.test_samples, 'sample')} each)"


def foretell_rows(suite: Suite) -> list[RowPlan]:
    """Of every row of which enough is known, in the order of the suite, its tuning and matching runs included."""
    seeds = suite.tuning_seeds[:1] if suite.matched != "tokens" else ()
    rows = [(regime, method) for regime in suite.regimes for method in suite.methods]
    cells = [
        *suite.tuning_cells(),
        *(Cell(*row, seed, "matching") for seed in seeds for row in rows),
        *(Cell(*row, seed) for seed in suite.seeds for row in rows),
    ]
    works: dict[tuple[str, str], list[Work]] = {}
    sampled: dict[tuple[str, int], list[RunConfig]] = {}
    arms: dict[object, dict[str, Work]] = {}  # a seed changes nothing that is foretold
    for cell in cells:
        config = settled(resolve(suite.options(cell)))
        if (stated := stated_of(suite, cell.regime, config)) is None:
            continue
        row = (cell.regime, cell.method)
        if (alike := (row, cell.tuned)) not in arms:
            seen, training = stated.pilot(config.rollouts), Training.of(config)
            arms[alike] = {arm: work_of(config, arm, config.problems, seen, training) for arm in config.arms}
        before = sampled.setdefault((cell.regime, cell.seed), [])
        works.setdefault(row, []).append(work_of_cell(config, stated, arms[alike], before))
        before.append(config)
    return [_row(suite, *row, works[row]) for row in rows if row in works]


def stated_of(suite: Suite, regime: str, config: RunConfig) -> Plan | None:
    """What is known of the responses of a regime; None: nothing."""
    embedded = resolve_model(config).name == EMBEDDED and config.task == Spec("task", "reasoner")
    return suite.plan.get(regime, REASONER if embedded else None)


def work_of_cell(config: RunConfig, stated: Plan, works: Mapping[str, Work], before: Sequence[RunConfig]) -> Work:
    """What a run samples itself, answers to test questions included, and trains on, in all arms.

    Arms share the first rollouts, a control copies the first round's search, and of one of the runs before it all is
    taken over that is sampled alike.

    Args:
        works: of its arms, each as if it were alone.
        before: runs of the same seed and regime.
    """
    sources = [(arms_alike(config, each), each) for each in before if first_alike(config, each)]
    taken, source = max(sources, key=lambda each: len(each[0]), default=(set[str](), None))
    asked = min(config.round_problems or config.problems, config.problems)
    models = len(works) + (source is None or not ask_alike(config, source))
    tests = config.test_problems or 0
    of_model = foretell(config, config.problems, tests, stated.response)[EVALUATION] / (1 + len(works))
    found = [Work({Stage.EVALUATE.value: models * of_model}, models * tests * stated.prompt, 0.0)]
    for number, (arm, work) in enumerate(works.items()):
        sampled, prompts = dict(work.sampled), work.prompts
        if number or source is not None:
            sampled[Stage.ROLLOUT.value] *= 1 - 1 / config.rounds
            prompts -= asked * stated.prompt
        estimator = config.arms[arm]
        kind = estimator.component_class() if isinstance(estimator, Spec) else type(estimator)
        if issubclass(kind, MatchedRandom):
            sampled[Stage.LOCATE.value] *= 1 - 1 / config.rounds
        if issubclass(kind, NoReset):  # what it samples beyond is from the questions too
            sampled[Stage.ROLLOUT.value] += sampled.pop(Stage.RESET.value)
        if arm in taken:
            sampled, prompts = {}, 0.0
        found.append(Work(sampled, prompts, work.trained, work.scored))
    return added(found, stated.prompt + stated.response)


def added(works: Sequence[Work], context: float) -> Work:
    """All of it as one."""
    stages = dict.fromkeys(stage for work in works for stage in work.sampled)
    return Work(
        sampled={stage: sum(work.sampled.get(stage, 0.0) for work in works) for stage in stages},
        prompts=sum(work.prompts for work in works),
        trained=sum(work.trained for work in works),
        scored=sum(work.scored for work in works),
        context=context,
    )


def _row(suite: Suite, regime: str, method: str, works: Sequence[Work]) -> RowPlan:
    config = settled(resolve(suite.options(Cell(regime, method, suite.seeds[0]))))
    stated = stated_of(suite, regime, config)
    assert stated is not None
    work, training = added(works, works[0].context), Training.of(config)
    shape = shape_of(resolve_model(config)) or stated.shape
    if shape is None:
        return RowPlan(regime, method, stated, work, None, None, None, None)
    done = training.operations(shape, work)
    memory = training.memory(shape, stated.pilot(config.rollouts)).total
    hours = None
    if stated.gpu is not None:
        hf = isinstance(config.engine, Spec) and config.engine.name == "hf"
        gpu = gpu_named(stated.gpu)
        hours = gpu_hours(shape, work, done, gpu, bf16=training.bf16, hf=hf).total
        hours = inf if memory > gpu.memory else hours
    return RowPlan(regime, method, stated, work, done, memory, hours, shape)


def _takes(suite: Suite) -> Iterator[str]:
    """What each row takes, all of them, and what that rests on; nothing where nothing is known."""
    if not (rows := foretell_rows(suite)):
        return
    costs = all(row.done is not None for row in rows)
    hours = all(row.hours is not None for row in rows)
    header = ["rollouts", "search", "resets", "tests", "trained", *["FLOPs", "GB"] * costs, *["hours"] * hours]
    table = [["", *header]]
    for regime in suite.regimes:
        of_regime = [row for row in rows if row.regime == regime]
        table += [[regime]] * (len(suite.regimes) > 1 and bool(of_regime))
        table += [[f"  {row.method}", *_numbers([row], len(header))] for row in of_regime]
    if len(rows) > 1:
        table.append(["in all", *_numbers(rows, len(header))])
    widths = [max(len(line[i]) for line in table if len(line) > i) for i in range(len(header) + 1)]
    yield ""
    for line in table:
        cells = [
            line[0].ljust(widths[0]),
            *(text.rjust(width) for text, width in zip(line[1:], widths[1:], strict=False)),
        ]
        yield "  ".join(cells).rstrip()
    yield ""
    for text in _assumptions(suite, rows):
        yield from wrap(text, 80, subsequent_indent="  ")


def _numbers(rows: Sequence[RowPlan], columns: int) -> list[str]:
    stages = ((Stage.ROLLOUT, Stage.MORE), (Stage.LOCATE,), (Stage.RESET,), (Stage.EVALUATE,))
    cells = [short(sum(row.work.sampled.get(each, 0.0) for row in rows for each in some)) for some in stages]
    cells.append(short(sum(row.work.trained for row in rows)))
    if columns > len(cells):
        cells.append(f"{sum(row.done.total for row in rows if row.done):.1e}")
        cells.append(f"{max(row.memory or 0.0 for row in rows) / 1e9:.2g}")
    if columns > len(cells):
        took = sum(row.hours or 0.0 for row in rows)
        cells.append("no room" if isinf(took) else f"{took:.1f}")
    return cells


def _assumptions(suite: Suite, rows: Sequence[RowPlan]) -> Iterator[str]:
    """A paragraph each."""
    above = "what rows above sample alike is theirs; " * (len(rows) > 1)
    yield f"Tokens of all runs of a row: {above}tests are answers to test questions; trained with context."
    configs = [resolve(suite.options(Cell(row.regime, row.method, suite.seeds[0]))) for row in rows]
    plans = {row.regime: row.stated for row in rows}
    for regime, stated in plans.items():
        source = "the suite's [plan]" if suite.plan else "the embedded reasoner, as measured"
        yield (
            f"Assumed for {regime}: {stated.right:.0%} right, responses of {stated.response:g} tokens in "
            f"{stated.steps:g} steps, prompts of {stated.prompt:g} ({source})."
        )
    taken = ", ".join(f"{name} {share:g} of them" for name, share in TAKEN.items())
    yield (
        f"Assumed of all: no two responses are alike; how often questions are solved follows a Beta law of strength "
        f"{SPREAD:g}; a search takes the rollouts of its settings ({taken})."
    )
    shapes = {resolve_model(config).name: row.shape for config, row in zip(configs, rows, strict=True)}
    for name, shape in shapes.items():
        if shape is not None:
            yield f"FLOPs and GB (of training, at least) for {shape.parameters:,} parameters of {name}."
    if gpus := dict.fromkeys(stated.gpu for stated in plans.values() if stated.gpu is not None):
        yield f"Hours are of one {' or '.join(gpus)}, at assumed utilisations (docs/advise.md)."
    if any(config.test_problems is None for config in configs):
        yield "All test questions are asked; how many there are is not known, and their answers are not counted."
    if suite.matched != "tokens":
        yield f"Budgets are those before {suite.matched} are matched."
