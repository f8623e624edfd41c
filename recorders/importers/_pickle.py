"""Unpickling that admits plain data and nothing else."""

from __future__ import annotations

import gc
import io
import pickle
from typing import Any, Never

from workbench.recorders._native import check_pickle
from workbench.recorders.importers._source import Progress, Source

_REMEDY = "name a snapshot that torch.cuda.memory._dump_snapshot wrote"


class _PlainUnpickler(pickle.Unpickler):
    """The check has refused such files already; this holds should it have missed one."""

    def find_class(self, module: str, name: str) -> Never:
        raise pickle.UnpicklingError(f"asks to call {module[:60]}.{name[:60]}")

    def persistent_load(self, _: Any) -> Never:
        raise pickle.UnpicklingError("asks for data from outside the file")


def load_plain(source: Source, progress: Progress | None = None) -> Any:
    """What a pickle holds: dict, list, tuple, str, int, float, bool, None and bytes only.

    Nothing in it holds itself or is nested more than 64 deep, keys of dictionaries are plain, and
    whole numbers have at most 16 bytes. One list may be referred to from many places.

    Raises:
        BrokenFileError: the file cannot be read, is damaged, or is not such a pickle.
    """
    content = source.read_whole(progress)
    try:
        check_pickle(content)
    except ValueError as error:
        problem = str(error)
        if problem.startswith("asks"):
            raise source.broken(
                f"{problem}: it is not a memory snapshot, or it is an attack", _REMEDY
            ) from error
        raise source.broken(
            problem, f"copy it again from where it came from, or {_REMEDY}"
        ) from error
    collecting = gc.isenabled()
    gc.disable()  # it would look through millions of new objects again and again
    try:
        return _PlainUnpickler(io.BytesIO(content)).load()
    except Exception as error:  # text that is not UTF-8, say; whatever it is, it is the file's
        raise source.broken(
            f"cannot be unpickled ({type(error).__name__}: {str(error)[:100]})", _REMEDY
        ) from error
    finally:
        if collecting:
            gc.enable()
