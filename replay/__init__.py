"""Replay: the engine, the runner and the result format.

The package shares its name with the function ``workbench.replay()``: once any module of it has been
imported, ``workbench.replay`` is this package. So the package can be called, and is the function.
"""

from __future__ import annotations

import sys
from types import ModuleType

from workbench.replay.call import replay


class _Callable(ModuleType):
    __call__ = staticmethod(replay)


sys.modules[__name__].__class__ = _Callable
