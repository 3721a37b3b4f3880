"""Peers whose code is another one than ours: a folder that Python finds first, and what it changes in modules."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

# Each module that is named, once it was loaded, is given to its function.
_FINDER = """
import importlib.abc, importlib.util, sys

class Finder(importlib.abc.MetaPathFinder):
    changes = {CHANGES}

    def find_spec(self, name, path, target=None):
        change = self.changes.pop(name, None)
        if change is None:
            return None
        spec = importlib.util.find_spec(name)
        usual = spec.loader.exec_module

        def exec_module(module):
            usual(module)
            change(module)

        spec.loader.exec_module = exec_module
        return spec

sys.meta_path.insert(0, Finder())
"""


@contextmanager
def changed(source: str, changes: Mapping[str, str]) -> Iterator[str]:
    """A folder: a process that has it on its path, when it starts, has in the modules `changes` what the functions of
    `source` that they name make of them."""
    named = ", ".join(f'"{module}": {function}' for module, function in changes.items())
    with tempfile.TemporaryDirectory(prefix="grid-tests-") as folder:
        Path(folder).chmod(0o755)  # for processes of another user
        (Path(folder) / "sitecustomize.py").write_text(source + _FINDER.replace("CHANGES", named))
        yield folder
