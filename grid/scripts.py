"""Plans from Python files of the user's own, for `grid run`."""

from __future__ import annotations

import importlib.util
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from grid.jails import Jail
from grid.plans import Plan
from grid.pointer import Pointer
from protocol.errors import BadFile, GridError


def load_plan(reference: str) -> Plan | Jail:
    """The plan or jail of "FILE.py:PLAN", or of "FILE.py" where there is one in it. It is run, as an import would.

    Raises:
        BadFile: no such file, no such plan in it, or the file itself fails; the message has its line.
    """
    text, colon, name = reference.rpartition(":")
    path = Path(text if colon and not reference.endswith(".py") else reference)
    wanted = name if path == Path(text) else ""
    if path.suffix != ".py" or not path.is_file():
        raise BadFile(
            f"there is no Python file {path}; a plan is named as FILE.py:PLAN, or found by a query such as '#accuracy'"
        )
    module = _run(path)
    plans = {key: value for key, value in vars(module).items() if isinstance(value, Plan | Jail)}
    if wanted in plans:
        return plans[wanted]
    if not wanted and len(plans) == 1:
        return next(iter(plans.values()))
    there = f"it has {', '.join(plans)}" if plans else "it has none: put @grid.plan before a function"
    if callable(getattr(module, wanted, None)):
        there = "that is a plain function: put @grid.plan before it"
    raise BadFile(f"{path} has no plan called {wanted!r}; {there}" if wanted else f"{path}: which plan? {there}")


def _run(path: Path) -> ModuleType:
    name = f"peergrid_script_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # inspect looks for a function's source there
    sys.path.append(str(path.resolve().parent))  # what lies beside the script can be imported, and hides nothing
    try:
        spec.loader.exec_module(module)
    except GridError:
        raise
    except Exception as error:
        raise BadFile(f"{path}{_line(error, path)}: {type(error).__name__}: {error}") from error
    return module


def _line(error: Exception, path: Path) -> str:
    if isinstance(error, SyntaxError):
        return f" line {error.lineno}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename) == path]
    return f" line {lines[-1]}" if lines else ""


async def results(value: Any) -> Any:
    """The values of the pointers in a result, whatever it is made of."""
    if isinstance(value, Pointer):
        return await value.get()
    if isinstance(value, Mapping):
        return {key: await results(inside) for key, inside in value.items()}
    if isinstance(value, list | tuple):
        return [await results(inside) for inside in value]
    return value
