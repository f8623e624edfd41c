"""Searches the settings of ``caching`` for those that hold a trace's traffic best."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from workbench.common.errors import MissingPartError, RunError, UsageError
from workbench.replay.alloc_conf import (
    SEARCHED,
    ChanceTrial,
    RecordedSettings,
    Space,
    grid,
    unknown_keys,
    useful_collections,
)
from workbench.replay.cell import check_completion, check_timeout
from workbench.replay.objective import Objective
from workbench.replay.processes import scratch_folder
from workbench.replay.search import TIMEOUT, Candidate, Pool, Progress
from workbench.replay.subjects import Subject, load_subjects
from workbench.replay.tuning import ENOUGH, Check, Tried, Tuning, choose, gain, pareto_front

TRIALS = 200
# Trials asked for at once: the same number everywhere, so that the answer does not depend on how
# many processes share them.
BATCH = 16
# After so many draws that brought nothing new, the settings count as exhausted.
_DRAWS = 100


@dataclass(frozen=True)
class TuneOptions:
    """How to search; the options of ``wb tune`` of the same names.

    Args:
        check: other traces on which the best settings must hold too.
        device: whose traffic; None for the GPU with most bytes, else the busiest device.
        capacity: bytes; None for what the trace says, else 80 GiB.
        quick: try the fixed grid only.
        trials: distinct settings to try, the default and the trace's own among them.
        objective: see `Objective.parse`.
        completion: when work on a stream completes.
        without: keys that are not tried.
        seed: of the search.
        timeout: seconds that one replay may take.
    """

    check: Sequence[str] = ()
    device: str | None = None
    capacity: int | None = None
    quick: bool = False
    trials: int = TRIALS
    objective: str = "peak_reserved"
    completion: str = "recorded"
    without: Sequence[str] = ()
    seed: int = 0
    timeout: float = TIMEOUT


def tune_trace(
    trace: str,
    options: TuneOptions = TuneOptions(),
    progress: Progress = lambda what, done, total: None,
) -> Tuning:
    """Search the settings for `trace`, a file, a folder of ranks, or a URL.

    Of several ranks the one with most live memory is searched; on the others the answer is checked.

    Raises:
        UsageError: a wrong value, or nothing to replay.
        BrokenFileError: not a trace.
        MissingPartError: optuna is not installed, and `options.quick` is not set.
        RunError: the defaults could not be replayed.
    """
    objective = _check(options)
    subject, *others = _load(trace, options, progress)
    for path in options.check:
        found = _load(path, options, progress)
        if any(one.traffic.fingerprint == subject.traffic.fingerprint for one in found):
            raise UsageError(
                f"--check {path}: this is the same traffic as {subject.path}, which shows nothing; "
                "give a recording of another run"
            )
        others += found
    subjects = {one.name: one for one in (subject, *others)}
    with (
        scratch_folder() as scratch,
        Pool(
            {name: one.traffic for name, one in subjects.items()}, scratch, timeout=options.timeout
        ) as pool,
    ):
        search = _Search(subject, options, objective, pool, progress)
        search.run()
        best = choose(list(search.tried.values()), search.default)
        checks = [search.check(one, best) for one in subjects.values() if one is not subject]
    return Tuning(
        subject=subject,
        options=options,
        objective=objective,
        default=search.default,
        own=search.tried.get(search.recorded.own) if search.recorded.own else None,
        best=best,
        tried=list(search.tried.values()),
        front=pareto_front(search.tried.values()),
        checks=checks,
        recorded=search.recorded,
        notes=search.notes,
    )


def _check(options: TuneOptions) -> Objective:
    check_completion(options.completion)
    if options.trials < 1:
        raise UsageError(f"--trials {options.trials} is not a number of settings; write 1 or more")
    check_timeout(options.timeout)
    if not 0 <= options.seed < 2**32:
        raise UsageError(f"--seed {options.seed} is not a seed; write 0 to {2**32 - 1}")
    for key in options.without:
        if key not in SEARCHED:
            raise UsageError(
                f"--without {key!r} is not a setting that is searched; known are "
                f"{', '.join(SEARCHED)}"
            )
    if not options.quick:
        _optuna()
    return Objective.parse(options.objective)


def _optuna() -> Any:
    try:
        import optuna
    except ImportError:
        raise MissingPartError(
            "the search needs optuna, which is not installed; install it with pip install "
            "'allocator-workbench[tune]', or add --quick, which tries a fixed set of settings"
        ) from None
    return optuna


def _load(trace: str, options: TuneOptions, progress: Progress) -> list[Subject]:
    """The traffic of each file; that with the most live memory, of the device asked for, first."""
    found = load_subjects(
        trace,
        ["device"],
        options.device,
        options.capacity,
        lambda done, total: progress("Reading", done, total),
    )["device"]
    device = options.device
    return sorted(found, key=lambda one: (device not in (None, one.device), -one.peak_live))


@dataclass
class _Search:
    """One search on its way."""

    subject: Subject
    options: TuneOptions
    objective: Objective
    pool: Pool
    progress: Progress
    tried: dict[str, Tried] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    recorded: RecordedSettings = field(init=False)

    def __post_init__(self) -> None:
        self.recorded = RecordedSettings.of(self.subject.metadata)

    @property
    def default(self) -> Tried:
        return self.tried[""]

    def run(self) -> None:
        """Fill `tried`: the default first, then what the trace ran with, the grid, the search."""
        self._try(dict.fromkeys(("", self.recorded.own)))
        if not self.default.outcome.measured:
            raise RunError(
                f"{self.subject.path}: the default settings could not be replayed: "
                f"{self.default.outcome.reason}"
            )
        if self.recorded.own and self.tried[self.recorded.own].outcome.status == "refused":
            reason = self.tried.pop(self.recorded.own).outcome.reason
            self.notes.append(
                f"The settings that the trace ran with are none of caching's ({reason}); they are "
                "left out."
            )
        space = self._space()
        self._try(grid(space))
        if not self.options.quick:
            self._ask_optuna(space)
        if not self.options.quick and len(self.tried) < self.options.trials:
            self.notes.append(f"There were no more than {len(self.tried)} settings to try.")
        total = len(self.tried)
        self.progress("Replaying", total, total)

    def _space(self) -> Space:
        outcome, capacity = self.default.outcome, self.subject.capacity
        unknown = unknown_keys(self.subject.metadata, self.recorded.rules)
        left_out = [key for key in unknown if key not in self.options.without]
        if left_out:
            self.notes.append(
                f"Not tried: {' and '.join(left_out)}, for which the PyTorch of this trace is "
                "likely too old."
            )
        without = (*self.options.without, *unknown)
        collections = useful_collections(
            capacity.bytes if capacity.source in ("option", "trace") else None,
            self.subject.peak_live,
            outcome.peak_reserved,
        )
        if any(key in without for key in SEARCHED[-2:]):  # one is nothing without the other
            collections = []
        return Space(without, collections)

    def _try(self, texts: Iterable[str]) -> None:
        """Replay those of `texts` that have not been, as far as trials are left."""
        new = [text for text in dict.fromkeys(texts) if text not in self.tried]
        new = new[: max(self.options.trials, 2) - len(self.tried)]
        before = len(self.tried)
        total = before + len(new) if self.options.quick else max(self.options.trials, before)
        outcomes = self.pool.run(
            [_candidate(self.subject, text, self.options) for text in new],
            lambda done: self.progress("Replaying", before + done, total),
        )
        for text, outcome in zip(new, outcomes, strict=True):
            default = self.tried[""].outcome if self.tried else outcome
            value = self.objective.value(outcome, default) if outcome.completed else None
            self.tried[text] = Tried(text, outcome, value)

    def _ask_optuna(self, space: Space) -> None:
        import warnings

        optuna = _optuna()
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # some of its options are marked as experimental
            sampler = optuna.samplers.TPESampler(
                seed=self.options.seed, multivariate=True, group=True, n_startup_trials=2 * BATCH
            )
            study = optuna.create_study(sampler=sampler)
            by_chance = random.Random(self.options.seed)
            new = True
            while new and len(self.tried) < self.options.trials:
                new = self._one_batch(optuna, study, space, by_chance)

    def _one_batch(self, optuna: Any, study: Any, space: Space, by_chance: random.Random) -> bool:
        """Ask for a batch, replay it, tell the results; whether there was anything new in it.

        What has been tried already is not told again: it would draw the search to where it has
        been. Settings drawn by chance take its place.
        """
        drawn: dict[str, tuple[Any, ChanceTrial | None]] = {}
        for _ in range(BATCH):
            trial = study.ask()
            text = space.draw(trial)
            if text not in self.tried and text not in drawn:
                drawn[text] = (trial, None)
                continue
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
            for _ in range(_DRAWS):
                other = ChanceTrial(by_chance)
                text = space.draw(other)
                if text not in self.tried and text not in drawn:
                    drawn[text] = (trial, other)
                    break
        self._try(drawn)
        for text, (trial, chance) in drawn.items():
            if text not in self.tried:
                continue
            rank = self.tried[text].rank(self.default)
            if chance is None:
                study.tell(trial, rank)
            else:
                ranges = {
                    name: optuna.distributions.IntDistribution(*bounds)
                    for name, bounds in chance.ranges.items()
                }
                study.add_trial(
                    optuna.trial.create_trial(
                        params=chance.params, distributions=ranges, value=rank
                    )
                )
        return bool(drawn)

    def check(self, subject: Subject, best: Tried) -> Check:
        """`best` and the default on another trace."""
        recorded = RecordedSettings.of(subject.metadata)
        texts = list(dict.fromkeys(("", best.settings)))
        outcomes = self.pool.run(
            [_candidate(subject, text, self.options, recorded) for text in texts]
        )
        tried = [
            Tried(
                text,
                outcome,
                self.objective.value(outcome, outcomes[0]) if outcome.completed else None,
            )
            for text, outcome in zip(texts, outcomes, strict=True)
        ]
        found = gain(tried[-1], tried[0])
        return Check(subject, tried[0], tried[-1], found, found is not None and found > ENOUGH)


def _candidate(
    subject: Subject, text: str, options: TuneOptions, recorded: RecordedSettings | None = None
) -> Candidate:
    recorded = recorded or RecordedSettings.of(subject.metadata)
    return Candidate(
        traffic=subject.name,
        allocator="caching",
        settings=recorded.replayed(text),
        capacity=subject.capacity.bytes,
        completion=options.completion,
    )
