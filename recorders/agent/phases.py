"""Finds out what the program is doing: which phase of training, and at which step.

A handful of calls per step tell it, all of them on functions that a program calls once or a few
times per step: never one per operator, which would cost more than the recording itself.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from types import ModuleType
from typing import Any

OTHER, FORWARD, BACKWARD, OPTIMIZER, DATA = range(5)
_STEP_MASK = (1 << 48) - 1


class _State:
    """The phase of the whole process. Threads that overlap share it, as they share the step."""

    def __init__(self, hook: Any) -> None:
        self.tell = hook.wb_context
        self.tell_step_seen = hook.wb_step_seen
        self.phase = OTHER
        self.step = 0
        self.steps_seen = False
        self.counts_steps = True  # until the program counts them itself
        # The first optimizer that stepped; weak, or its memory would live on with us.
        self.optimizer: weakref.ref[Any] | None = None
        self.undo: list[Callable[[], None]] = []

    def enter(self, phase: int) -> int:
        before = self.phase
        self.phase = phase
        self.tell(phase, self.step)
        return before

    def set_step(self, step: int) -> None:
        self.step = step & _STEP_MASK
        self.steps_seen = True
        self.tell_step_seen()
        self.tell(self.phase, self.step)


_state: _State | None = None


def install(torch: ModuleType, hook: Any) -> None:
    """Puts the hooks into torch and tells the recorder the first phase."""
    global _state
    _state = state = _State(hook)
    state.enter(OTHER)
    _watch_first_module(torch, state)
    _wrap(torch.autograd, "backward", BACKWARD, state)
    _wrap(torch.autograd, "grad", BACKWARD, state)
    from torch.utils.data import dataloader

    _wrap(dataloader._BaseDataLoaderIter, "__next__", DATA, state)
    _watch_optimizers(state)


def uninstall() -> None:
    """Takes them out again."""
    global _state
    if _state is not None:
        for undo in _state.undo:
            undo()
    _state = None


def tell_again() -> None:
    """For a recording that begins in the middle: what is going on now."""
    if _state is not None:
        if _state.steps_seen:
            _state.tell_step_seen()
        _state.enter(_state.phase)


def mark_step(step: int | None) -> None:
    """The program counts the steps itself from here on; None means one more."""
    if _state is not None:
        _state.counts_steps = False
        _state.set_step(_state.step + 1 if step is None else step)


def _wrap(owner: Any, name: str, phase: int, state: _State) -> None:
    original = getattr(owner, name)

    @functools.wraps(original)
    def in_phase(*args: Any, **kwargs: Any) -> Any:
        before = state.enter(phase)
        try:
            return original(*args, **kwargs)
        finally:
            state.enter(before)

    setattr(owner, name, in_phase)

    def undo() -> None:
        if getattr(owner, name) is in_phase:
            setattr(owner, name, original)

    state.undo.append(undo)


def _watch_first_module(torch: ModuleType, state: _State) -> None:
    """Set-up is over with the first module call; the wrapper goes away with it."""
    module_class = torch.nn.Module
    original = module_class.__call__

    def first_call(self: Any, *args: Any, **kwargs: Any) -> Any:
        undo()
        if state.phase == OTHER:
            state.enter(FORWARD)
        return original(self, *args, **kwargs)

    def undo() -> None:
        if module_class.__call__ is first_call:
            module_class.__call__ = original

    module_class.__call__ = first_call
    state.undo.append(undo)


def _watch_optimizers(state: _State) -> None:
    from torch.optim import optimizer as optimizers

    def before(optimizer: Any, args: Any, kwargs: Any) -> None:
        state.enter(OPTIMIZER)

    def after(optimizer: Any, args: Any, kwargs: Any) -> None:
        state.phase = FORWARD
        if state.optimizer is None or state.optimizer() is None:
            state.optimizer = weakref.ref(optimizer)
        if state.counts_steps and state.optimizer() is optimizer:
            state.set_step(state.step + 1)
        else:
            state.enter(FORWARD)

    for register, hook in (
        (optimizers.register_optimizer_step_pre_hook, before),
        (optimizers.register_optimizer_step_post_hook, after),
    ):
        state.undo.append(register(hook).remove)
