"""First Python code in a recorded program: loads the agent and leaves no trace of itself.

`wb record` puts this folder in front of PYTHONPATH, so that the interpreter imports this file while
it starts. The program must find everything as in a plain run: this folder leaves `sys.path`, and a
`sitecustomize` of the user's own is run in our place.
"""

import importlib.machinery
import importlib.util
import os
import sys


def _load_agent(folder: str) -> None:
    path = os.path.join(os.path.dirname(folder), "agent.py")
    spec = importlib.util.spec_from_file_location("_workbench_recorder", path)
    if spec is None or spec.loader is None:
        return
    module = importlib.util.module_from_spec(spec)
    sys.modules["_workbench_recorder"] = module
    spec.loader.exec_module(module)
    module.wait_for_torch()


def _run_users_own() -> None:
    spec = importlib.machinery.PathFinder.find_spec("sitecustomize", sys.path)
    if spec is None or spec.loader is None:
        # As if there were none: the interpreter takes this for the usual case and goes on.
        raise ImportError("no sitecustomize of the user's own", name="sitecustomize")
    module = importlib.util.module_from_spec(spec)
    sys.modules["sitecustomize"] = module
    spec.loader.exec_module(module)


_folder = os.path.dirname(os.path.abspath(__file__))
sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry) != _folder]
sys.path_importer_cache.pop(_folder, None)
if os.environ.get("WORKBENCH_RECORD_SPOOL"):
    try:
        _load_agent(_folder)
    except Exception as error:  # whatever it is, the program goes on
        print(f"wb: not recorded: {type(error).__name__}: {error}", file=sys.stderr)
_run_users_own()
