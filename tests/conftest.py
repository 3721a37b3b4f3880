"""What all tests share: an event loop for async tests, and real peers."""

from __future__ import annotations

import asyncio
import inspect
from pathlib import Path

import pytest

from peer.folders import Folders


def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run `async def` tests, each in a loop of its own, in debug mode off."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    wanted = inspect.signature(pyfuncitem.obj).parameters
    arguments = {name: pyfuncitem.funcargs[name] for name in wanted}
    asyncio.run(pyfuncitem.obj(**arguments))
    return True


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    """Folders of this test's own."""
    return Folders.under(tmp_path)
