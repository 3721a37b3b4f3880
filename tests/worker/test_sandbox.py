"""The sandbox of workers: which walls there are, what is missing and what that means, and that work goes on behind it.

What hostile code comes to is in tests/attacks/test_escapes.py.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from grid.local_grid import Processes
from peer.folders import Folders
from peer.forks import Forks
from peer.keys import Identity
from peer.neighbours import Neighbours
from peer.opening import open_as_dialer
from peer.peer import Peer
from peer.peer import Settings as PeerSettings
from peer.pool_settings import PoolSettings
from peer.worker import confinement, kernel, landlock, seccomp
from peer.worker.sandbox import Settings
from protocol.errors import SetupError
from protocol.handshake import Introduction
from tests.attacks.den import Den
from tests.waiting import process_ended
from tests.worker.conftest import Asker, Workplace

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="workers are confined on Linux"),
    pytest.mark.usefixtures("real_zygotes"),
]

WALLS = {confinement.FILTER, confinement.LANDLOCK, confinement.FILES, confinement.NETWORK, confinement.PROCESSES}
SECCOMP_FILTERED = "2"


# --- what is there, and what is not -----------------------------------------------------------------------


def test_a_refused_wall_is_named_with_the_systems_word_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(landlock, "restrict", refuse)
    assert confinement.tried()[confinement.LANDLOCK] == os.strerror(errno.EOPNOTSUPP)


@pytest.mark.parametrize(
    "refused",
    [
        {},
        {confinement.LANDLOCK: "x"},
        {confinement.FILES: "x", confinement.NETWORK: "x", confinement.USER: "x", confinement.PROCESSES: "x"},
    ],
)
def test_a_filter_and_either_of_the_walls_around_files_are_a_boundary(refused: dict[str, str]) -> None:
    assert confinement.missing(refused) is None


@pytest.mark.parametrize(
    ("refused", "words"),
    [
        ({confinement.FILTER: "Invalid argument"}, ["CONFIG_SECCOMP_FILTER", "Invalid argument"]),
        (
            {confinement.FILES: "Operation not permitted", confinement.LANDLOCK: "Function not implemented"},
            [
                "max_user_namespaces",
                "lsm=",
                "Operation not permitted",
                "Function not implemented",
                "seccomp=unconfined",
            ],
        ),
    ],
)
def test_less_is_none_and_the_words_say_what_to_do(refused: dict[str, str], words: list[str]) -> None:
    text = confinement.missing(refused)
    assert text is not None
    for word in (*words, confinement.FLAG):
        assert word in text


def test_a_system_that_is_not_linux_has_no_boundary(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    text = confinement.missing(confinement.tried())
    assert text is not None and "darwin, not Linux" in text and confinement.FLAG in text


def test_a_machine_without_a_filter_is_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "MACHINE", "riscv64")
    assert "riscv64" in confinement.tried()[confinement.FILTER]


def test_a_filter_that_has_no_effect_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def forget(*_: object, **__: object) -> None:
        pass

    monkeypatch.setattr(seccomp, "confine", forget)
    monkeypatch.setattr(landlock, "restrict", forget)
    assert confinement.FILTER in confinement.tried()


def test_numbers_of_calls_are_those_of_this_kernel() -> None:
    libc_numbers = {"getpid": os.getpid(), "getppid": os.getppid(), "getuid": os.getuid()}
    for name, value in libc_numbers.items():
        assert kernel.call(seccomp.NUMBERS[kernel.MACHINE][name]) == value
    every = {*seccomp.ALLOWED, *seccomp.REFUSED}
    assert every <= set(seccomp.NUMBERS["x86_64"])
    old = {name for name in every if name not in seccomp.NUMBERS["aarch64"]}
    assert not old & {"openat", "execve", "clone", "socket", "recvmsg", "sendmsg", "futex", "close", "pwrite64"}
    assert not set(seccomp.ALLOWED) & set(seccomp.REFUSED)


# --- peers ------------------------------------------------------------------------------------------------


async def test_a_peer_that_cannot_confine_its_workers_does_not_start(
    folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = Forks._zygote_confined

    def worse(forks: Forks, _: dict[str, str] | None) -> None:
        heard(forks, {confinement.FILES: "Operation not permitted", confinement.LANDLOCK: "Function not implemented"})

    monkeypatch.setattr(Forks, "_zygote_confined", worse)
    with pytest.raises(SetupError, match="max_user_namespaces"):
        await Peer.start(PeerSettings("alice", port=0, folders=folders))
    assert not Neighbours(folders.peers).list()


async def test_unprotected_is_said_aloud(folders: Folders, caplog: pytest.LogCaptureFixture) -> None:
    workers = PoolSettings(Settings(is_sandboxed=False))
    peer = await Peer.start(PeerSettings("alice", port=0, folders=folders, workers=workers))
    try:
        session = await open_as_dialer(peer.url, Introduction("client", "somebody"), Identity.generate())
        try:
            answer = await session.request("status", {})
            assert answer.result["sandbox"] == "NONE (--unsafe-no-sandbox)"
        finally:
            await session.close()
    finally:
        await peer.close()
    assert "UNPROTECTED" in caplog.text


# --- what a worker is -------------------------------------------------------------------------------------


def _status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def test_workers_are_behind_every_wall_that_there_is(asker: Asker) -> None:
    asker.op("aten.zeros.default", [1])
    refused = confinement.tried()
    status = _status(asker.pid)
    assert status["Seccomp"] == SECCOMP_FILTERED
    assert status["NoNewPrivs"] == "1"
    assert int(status["CapPrm"], 16) == int(status["CapEff"], 16) == 0
    if os.geteuid() == 0 and confinement.USER not in refused:
        assert "0" not in status["Uid"].split() + status["Groups"].split()
    if confinement.PROCESSES not in refused:
        assert len(status["NSpid"].split()) >= 2
    assert set(refused) <= WALLS | {confinement.USER}


def test_a_worker_with_threads_uses_them_and_makes_no_process() -> None:
    place = Workplace(PoolSettings(Settings(threads=2)))
    try:
        asker = place.asker()
        x = asker.op("aten.rand.default", [600, 600])
        for _ in range(3):  # libraries of their own teams of threads, which shrink and grow
            asker.op("aten.mm.default", x, x)
            asker.op("aten.linalg_svd.default", x, outs=3)
            asker.op("aten.sort.default", x, outs=2)
            asker.op("aten.convolution.default", *_convolution(asker))
        assert int(_status(asker.pid)["Threads"]) >= 2
    finally:
        place.close()


def _convolution(asker: Asker) -> list[Any]:
    x, w = asker.op("aten.rand.default", [2, 8, 40, 40]), asker.op("aten.rand.default", [8, 8, 3, 3])
    return [x, w, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1]


def test_operations_that_write_their_own_code_work_for_shapes_that_are_new(asker: Asker) -> None:
    for side in (5, 12, 33):
        x, w = torch.randn(2, 4, side, side), torch.randn(6, 4, 3, 3)
        y = asker.op(
            "aten.convolution.default", asker.send(x), asker.send(w), None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1
        )
        torch.testing.assert_close(asker.value(y), torch.nn.functional.conv2d(x, w, padding=1))
    half = torch.randn(70, 70, dtype=torch.bfloat16)
    given = asker.send(half)
    torch.testing.assert_close(asker.value(asker.op("aten.mm.default", given, given)), half @ half)


def test_memory_has_an_end_and_the_worker_lives_on() -> None:
    den = Den(Settings(memory=100 << 20))
    try:
        worker = den.spawn()
        assert worker.run("torch.ones(100 << 20)") == "raised RuntimeError"
        assert worker.run("got = torch.ones(10 << 20).numel()") == f"ran {10 << 20}"
        worker.close()
        _threads_have_an_end(den)
        _all_ends_with_what_was_started(den)
    finally:
        den.close()


def _threads_have_an_end(den: Den) -> None:
    many = """if True:
        threads = []
        try:
            while len(threads) < 1_000:
                threads.append(threading.Thread(target=time.sleep, args=(60,), daemon=True))
                threads[-1].start()
        except RuntimeError:
            pass
        got = len(threads) < 50"""
    if confinement.USER not in confinement.tried():
        assert den.run(many, Settings(threads=4, memory=4 << 30)) == "ran True"


def _all_ends_with_what_was_started(den: Den) -> None:
    workers = [den.spawn() for _ in range(2)]
    den.process.send_signal(signal.SIGKILL)
    for worker in workers:
        process_ended(worker.pid)
        worker.close()


# --- secrets ----------------------------------------------------------------------------------------------


def _children(pid: int) -> Iterator[int]:
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in map(int, (task / "children").read_text().split()):
            yield child
            yield from _children(child)


def _finds(pid: int, secret: bytes) -> bool:
    """Whether it is anywhere in the memory of that process."""
    with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", 0) as memory:
        for line in maps:
            start, _, end = line.split()[0].partition("-")
            if "rw" not in line.split()[1]:
                continue
            try:
                memory.seek(int(start, 16))
                if secret in memory.read(int(end, 16) - int(start, 16)):
                    return True
            except (OSError, OverflowError):
                continue
    return False


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may read the memory of others")
async def test_the_peers_key_is_in_no_other_process(folders: Folders) -> None:
    processes = Processes(folders)
    await processes.start("alice")
    try:
        alice = processes["alice"]
        session = await open_as_dialer(alice.url, Introduction("client", "somebody"), Identity.generate())
        await session.request("run", {"operations": [["aten.zeros.default", [[2]], {}, [bytes(16)]]]})
        await session.close()
        raw = Identity.load(folders.key_file("alice"))._private.private_bytes_raw()
        children = list(_children(alice.pid))
        assert children
        assert _finds(alice.pid, raw)  # that is how it would look
        assert not [pid for pid in children if _finds(pid, raw)]
    finally:
        await processes.close()
