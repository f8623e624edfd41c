"""Keeps the path of the running module in the records: ``blocks.2.attention``.

Asked for with ``--scope module`` only: with a global hook every module call takes PyTorch's longer
way.
"""

from __future__ import annotations

import threading
import weakref
from types import ModuleType
from typing import Any

_MOST_NAMES = 0xFFFF


class ModuleScope:
    """Global forward hooks that tell the recorder which module a thread is in."""

    def __init__(self, torch: ModuleType, hook: Any) -> None:
        self._hook = hook
        self._thread = threading.local()
        # Weak: a table of ours must not keep the program's modules alive.
        self._numbers: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()
        self._named: weakref.WeakSet[Any] = weakref.WeakSet()
        modules = torch.nn.modules.module
        self._handles = [
            modules.register_module_forward_pre_hook(self._enter),
            modules.register_module_forward_hook(self._leave, always_call=True),
        ]

    def remove(self) -> None:
        """Takes the hooks out again."""
        for handle in self._handles:
            handle.remove()

    def _outer(self) -> list[int]:
        outer: list[int] | None = getattr(self._thread, "outer", None)
        if outer is None:
            outer = self._thread.outer = [0]
        return outer

    def _enter(self, module: Any, inputs: Any) -> None:
        outer = self._outer()
        number = self._numbers.get(module)
        if number is None:
            number = self._name(module, is_outermost=len(outer) == 1)
        outer.append(number)
        self._hook.wb_set_module(number)

    def _leave(self, module: Any, inputs: Any, output: Any) -> None:
        outer = self._outer()
        if len(outer) > 1:
            outer.pop()
        self._hook.wb_set_module(outer[-1])

    def _name(self, module: Any, *, is_outermost: bool) -> int:
        """Names all modules below an outermost one at once; one that came later by its class."""
        if is_outermost and module not in self._named:
            self._named.add(module)
            for path, below in module.named_modules():
                if below not in self._numbers:
                    self._numbers[below] = self._define(path or type(module).__name__)
        if module not in self._numbers:
            self._numbers[module] = self._define(type(module).__name__)
        return self._numbers[module]

    def _define(self, text: str) -> int:
        number = self._hook.wb_define_name(b"module", text.encode())
        return number if number <= _MOST_NAMES else 0
