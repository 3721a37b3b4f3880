"""What all tests share: an event loop for async tests, and real peers."""

from __future__ import annotations

import gc
import inspect
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings

from peer import opening, processes, transport
from peer.folders import Folders
from peer.worker.reader import kept
from tests import loops, zygotes
from tests.waiting import PATIENCE

if TYPE_CHECKING:
    from benchmarks.mnist import Digits

# The same examples each time, however long they take to make; `--hypothesis-profile default` looks for others.
settings.register_profile("steady", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("steady")


def pytest_collection() -> None:
    """What is imported from here on is not garbage: nobody looks for any in it, neither now nor in each `gc.collect`
    of a test, which would take half a second."""
    gc.disable()


def pytest_collection_finish() -> None:
    gc.collect()
    gc.freeze()
    gc.enable()


def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run `async def` tests, each in a loop of its own that forgives a busy machine, in debug mode off."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    wanted = inspect.signature(pyfuncitem.obj).parameters
    arguments = {name: pyfuncitem.funcargs[name] for name in wanted}
    loops.run(pyfuncitem.obj(**arguments))
    return True


@pytest.fixture(scope="session", autouse=True)
def patience() -> Iterator[None]:
    """Peers are given the time that a busy machine takes to start them, to end them and to answer a dial."""
    start: Any = processes.PeerProcess.start
    with pytest.MonkeyPatch.context() as longer:
        longer.setattr(start.__func__, "__kwdefaults__", {**start.__kwdefaults__, "timeout": PATIENCE})
        for function in (processes.PeerProcess.stop, processes.end, transport.dial, opening.open_as_dialer):
            *others, seconds = function.__defaults__ or ()
            assert isinstance(seconds, float)
            longer.setattr(function, "__defaults__", (*others, PATIENCE))
        yield


@pytest.fixture(scope="session", autouse=True)
def zygotes_at_hand() -> Iterator[zygotes.Nursery]:
    """Peers need not import torch again and again. (Those that do: `real_zygotes`, or `zygotes.real()`.)"""
    nursery = zygotes.Nursery()
    with nursery.used():
        yield nursery
    nursery.close()


@pytest.fixture
def real_zygotes() -> Iterator[None]:
    """For tests of how zygotes begin, of where they stand among processes, or of what memory they take."""
    with zygotes.real():
        yield


@pytest.fixture(scope="session", autouse=True)
def heard() -> None:
    """Ctrl-C is heard here and in what is started here, also where a shell runs the tests in the background."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def steady() -> None:
    """Random tensors are the same each time, so that no rounding is out of luck; and tests that run side by side do
    not wait for each other's threads."""
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(7)
        sys.modules["torch"].set_num_threads(1)


@pytest.fixture(scope="session")
def mnist() -> Digits:
    """MNIST; where its files are not there, the test is skipped and says so."""
    from benchmarks.mnist import MISSING, Digits  # not above: they import torch

    digits = Digits.load()
    return pytest.skip(MISSING) if digits is None else digits


@pytest.fixture(scope="module")
def one_reader() -> Iterator[None]:
    """The confined process that opens other makers' files starts once."""
    with kept():
        yield


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    """Folders of this test's own."""
    return Folders.under(tmp_path)
