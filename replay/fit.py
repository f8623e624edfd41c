"""Finds the smallest device that holds a trace's traffic, for each allocator and setting."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import partial

from workbench.common.errors import MissingPartError, UsageError
from workbench.replay.alloc_conf import RULES, RecordedSettings
from workbench.replay.allocators import known_allocators, reference_of, runs_as, unfit_backend
from workbench.replay.cell import AllocatorSpec, check_completion, check_timeout
from workbench.replay.fitting import UNIT, Fit, Fits
from workbench.replay.processes import scratch_folder
from workbench.replay.search import TIMEOUT, Candidate, Outcome, Pool, Progress
from workbench.replay.subjects import Subject, load_subjects

# Sizes below the one found that are tried as well: with less memory an allocator may release more.
BELOW = 16
_MOST = 1 << 46
# What a search takes, about; for the progress bar.
_REPLAYS = 40


@dataclass(frozen=True)
class FitOptions:
    """How to search; the options of ``wb fit`` of the same names.

    Args:
        device: whose traffic; None for the allocator's own kind, or the busiest.
        completion: when work on a stream completes.
        timeout: seconds that one replay may take.
    """

    device: str | None = None
    completion: str = "recorded"
    timeout: float = TIMEOUT


def fit_trace(
    trace: str,
    allocators: Sequence[str],
    options: FitOptions = FitOptions(),
    progress: Progress = lambda what, done, total: None,
) -> Fits:
    """The smallest device for each of `allocators`, on each file of `trace`.

    Args:
        trace: a file, a folder of ranks, or a URL.
        allocators: ``NAME[:key:value,…]``, or ``all``.
        options: see `FitOptions`.
        progress: called with what is being done, how far it is and how far it goes.

    Raises:
        UsageError: a wrong name or value, or nothing to replay.
        BrokenFileError: not a trace.
        RunError: no process could be started.
    """
    from workbench.replay.choice import choose_allocators

    check_completion(options.completion)
    check_timeout(options.timeout)
    choice = choose_allocators(allocators, "simulated", progress)
    left_out = list(choice.left_out)
    specs = []
    for spec in choice.specs:
        if spec.name == "plan" and "file" in spec.settings_by_key():
            raise UsageError(
                f"--allocator {spec.label}: a plan in a file has its height already, which wb plan "
                "tells; leave the file out to fit a plan of this trace"
            )
        reference = reference_of(spec)
        if reference is None or spec in choice.named:
            specs.append(spec)
        elif all(name != spec.name for name, _ in left_out):
            left_out.append((spec.name, f"a reference; the fit of {reference.models} is ours"))
    kinds = {name: info["kind"] for name, info in known_allocators().items()}
    by_kind = load_subjects(
        trace,
        sorted({kinds[spec.name] for spec in specs}),
        options.device,
        None,
        lambda done, total: progress("Reading", done, total),
    )
    files = len(next(iter(by_kind.values()), []))
    cells = [(by_kind[kinds[spec.name]][file], spec) for file in range(files) for spec in specs]
    traffics = {subject.name: subject.traffic for subject, _ in cells}
    with scratch_folder() as scratch, Pool(traffics, scratch, timeout=options.timeout) as pool:
        fits = run_searches(
            [smallest_device(subject, spec, options.completion) for subject, spec in cells],
            pool,
            progress,
        )
    return Fits(fits, left_out, options.completion)


def _advance(progress: Progress, before: int, total: int, ended: int) -> None:
    progress("Replaying", before + ended, total)


Search = Generator[list[Candidate], list[Outcome], Fit]


def run_searches(searches: Sequence[Search], pool: Pool, progress: Progress) -> list[Fit]:
    """All of them in step: what each asks for next is replayed together."""
    fits: dict[int, Fit] = {}
    asked: dict[int, list[Candidate]] = {}

    def advance(number: int, answers: list[Outcome] | None) -> None:
        asked.pop(number, None)
        try:
            search = searches[number]
            asked[number] = next(search) if answers is None else search.send(answers)
        except StopIteration as end:
            fits[number] = end.value

    for number in range(len(searches)):
        advance(number, None)
    done, total = 0, _REPLAYS * len(searches)
    while asked:
        batch = [candidate for candidates in asked.values() for candidate in candidates]
        total = max(total, done + len(batch))
        outcomes = pool.run(batch, partial(_advance, progress, done, total))
        done += len(batch)
        at = 0
        for number, candidates in list(asked.items()):
            answers = outcomes[at : at + len(candidates)]
            at += len(candidates)
            advance(number, answers)
    progress("Replaying", total, total)
    return [fits[number] for number in range(len(searches))]


class _Broken(Exception):
    """A replay without an answer: its allocator does not take the settings, crashed, or hung."""

    def __init__(self, outcome: Outcome) -> None:
        self.outcome = outcome
        super().__init__(outcome.reason)


def rules_of(subject: Subject, spec: AllocatorSpec) -> str:
    """The setting ``rules:…`` of the trace where it is not asked for otherwise."""
    if spec.name != "caching" or RULES in spec.settings_by_key():
        return ""
    return RecordedSettings.of(subject.metadata).rules


def smallest_device(subject: Subject, spec: AllocatorSpec, completion: str) -> Search:
    """Asks for replays, is sent what came of them, and returns the answer.

    The smallest size lies between the peak of live memory, which no allocator does without, and
    what the traffic takes where there is no limit.
    """

    found = partial(Fit, subject, spec, rules=rules_of(subject, spec))
    try:
        reason = _unfit(spec)
        allocator, settings = (spec.name, "") if reason else runs_as(found(status="").replayed)
    except MissingPartError as error:
        reason = str(error)
    if reason:
        return found("unavailable", f"cannot be fitted: {reason}")

    def sized(unit: int | None) -> Candidate:
        return Candidate(
            traffic=subject.name,
            allocator=allocator,
            settings=settings,
            capacity=None if unit is None else unit * UNIT,
            completion=completion,
        )

    try:
        (unlimited,) = yield from _measure([sized(None)])
        if not unlimited.completed:
            reason = f"row {subject.row(unlimited):,} is refused on a device without limit too"
            return found("never", reason, unlimited=unlimited)
        least = -(-subject.peak_live // UNIT)
        start = max(-(-unlimited.peak_reserved // UNIT), least)
        smallest = yield from _smallest(sized, least - 1, start, lambda one: one.completed)
        if smallest is None:
            reason = "no device with a limit that was tried holds it"
            return found("never", reason, unlimited=unlimited)
        unit, there = smallest
        below = [one for one in range(unit - 1, unit - 1 - BELOW, -1) if one >= least]
        outcomes = yield from _measure([sized(one) for one in below])
        roomy = yield from _smallest(sized, unit - 1, max(start, unit), _is_unhindered)
    except _Broken as broken:
        return found(broken.outcome.status, broken.outcome.reason)
    return found(
        "fits",
        capacity=unit * UNIT,
        at=there,
        roomy=None if roomy is None else roomy[0] * UNIT,
        unlimited=unlimited,
        also=tuple(
            one * UNIT for one, outcome in zip(below, outcomes, strict=True) if outcome.completed
        ),
    )


def _unfit(spec: AllocatorSpec) -> str:
    """Why no size of a simulated device says anything of `spec`; empty where one does."""
    if known_allocators()[spec.name]["needs_library"] or unfit_backend(spec, "simulated"):
        return (
            "it may take its memory from the system by itself, and fits are sought on the "
            "simulated device"
        )
    return ""


def _is_unhindered(outcome: Outcome) -> bool:
    return outcome.completed and not outcome.known_retries and not outcome.refused_calls


def _measure(
    candidates: list[Candidate],
) -> Generator[list[Candidate], list[Outcome], list[Outcome]]:
    """The outcomes of `candidates`, each completed or out of memory."""
    outcomes = yield candidates
    for outcome in outcomes:
        if not outcome.measured:
            raise _Broken(outcome)
    return outcomes


def _smallest(
    sized: Callable[[int], Candidate], low: int, start: int, passes: Callable[[Outcome], bool]
) -> Generator[list[Candidate], list[Outcome], tuple[int, Outcome] | None]:
    """The smallest size that passes, in units, and the replay there; None where none does.

    All larger sizes that were tried pass too; the next smaller one does not.

    Args:
        sized: the candidate of a size.
        low: a size that does not pass.
        start: above `low`; likely large enough.
        passes: whether a replay does.
    """
    high, step = start, 1
    (there,) = yield from _measure([sized(high)])
    while not passes(there):
        low, high, step = high, high + step, 2 * step
        if high * UNIT > _MOST:
            return None
        (there,) = yield from _measure([sized(high)])
    middle = high - 1  # often the start was the answer
    while high - low > 1:
        (outcome,) = yield from _measure([sized(middle)])
        if passes(outcome):
            high, there = middle, outcome
        else:
            low = middle
        middle = (low + high) // 2
    return high, there
