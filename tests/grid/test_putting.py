"""Files into peers: what is told on the way, and what is said where the peer takes no more."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from grid.commands import files as commands
from grid.mesh import Mesh
from grid.putting import Putting
from grid.saving import Source, save_object
from peer.folders import Folders
from peer.peer import Peer, Settings
from peer.resuming import Wait
from peer.store.store import Store
from protocol import limits
from protocol.errors import PeerLost, StorageFull
from tests.faults import FaultProxy

NBYTES = 8 * limits.MIB


@contextlib.asynccontextmanager
async def over_proxy(folders: Folders) -> AsyncIterator[tuple[Mesh, FaultProxy]]:
    """A grid of alice alone, reached through the proxy only."""
    async with FaultProxy("ws://127.0.0.1:1") as proxy:
        peer = await Peer.start(Settings("alice", port=0, folders=folders, advertise=(proxy.url,)))
        proxy.retarget(peer.url)
        try:
            async with await Mesh.open(proxy.url, folders=folders) as g:
                yield g, proxy
        finally:
            await peer.close()


def write(folder: Path, *names: str, nbytes: int = NBYTES) -> list[str]:
    for number, name in enumerate(names):
        np.save(folder / name, np.full(nbytes, number, np.uint8))
    return [str(folder / name) for name in names]


class Bar:
    """Cuts the line when so much is done, and lets nobody in until it hears that somebody waits."""

    def __init__(self, proxy: FaultProxy, cut_at: int) -> None:
        self.proxy = proxy
        self.cut_at: int | None = cut_at
        self.heard: list[Wait | None] = []

    def __call__(self, done: int, total: int) -> None:
        if self.cut_at is not None and done >= self.cut_at:
            self.cut_at = None
            self.cut()

    def cut(self) -> None:
        self.proxy.refuse = True
        self.proxy.cut()

    def waiting(self, wait: Wait | None) -> None:
        self.heard.append(wait)
        self.proxy.refuse = False

    def check(self, patience: float) -> None:
        assert self.heard[-1] is None and len(self.heard) > 1
        for wait in self.heard[:-1]:
            assert wait is not None and (wait.name, wait.patience) == ("alice", patience)
            assert wait.since <= time.monotonic()


class Shown:
    def __init__(self, bar: Bar) -> None:
        self.bar = bar

    @contextlib.contextmanager
    def progress(self, title: str, after: str = "") -> Iterator[Bar]:
        yield self.bar

    @contextlib.contextmanager
    def waiting(self, title: str) -> Iterator[None]:
        yield


async def test_a_put_says_whom_it_waits_for_and_that_it_goes_on(folders: Folders, tmp_path: Path) -> None:
    async with over_proxy(folders) as (g, proxy):
        bar = Bar(proxy, NBYTES // 2)
        putting = Putting(g, g.find_member("alice"), "#a")
        assert [name async for name, _ in putting.run(write(tmp_path, "x.npy"), Shown(bar))] == ["x"]
        bar.check(limits.RESUME_TIMEOUT)


async def test_a_put_that_begins_says_whom_it_waits_for(folders: Folders, tmp_path: Path) -> None:
    async with over_proxy(folders) as (g, proxy):
        bar = Bar(proxy, 2 * NBYTES)
        putting = Putting(g, g.find_member("alice"), "#a")
        async for name, _ in putting.run(write(tmp_path, "x.npy", "y.npy"), Shown(bar)):
            if name == "x":
                connection = await g.to(putting.member, bulk=True)
                bar.cut()
                await connection.closed
        assert putting.count == 2
        bar.check(limits.RECONNECT_TIMEOUT)


async def test_a_line_that_was_just_cut_is_no_defect(
    folders: Folders, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with over_proxy(folders) as (g, proxy):
        putting = Putting(g, g.find_member("alice"), "#a")
        async for _ in putting.run(write(tmp_path, "x.npy", "y.npy"), Shown(Bar(proxy, 2 * NBYTES))):
            proxy.cut()
        assert putting.count == 2
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == []


async def test_a_save_says_whom_it_waits_for_and_that_it_goes_on(folders: Folders, tmp_path: Path) -> None:
    async with over_proxy(folders) as (g, proxy):
        member = g.find_member("alice")
        putting = Putting(g, member, "#a")
        ((_, record),) = [one async for one in putting.run(write(tmp_path, "x.npy"), Shown(Bar(proxy, 2 * NBYTES)))]
        bar = Bar(proxy, NBYTES // 2)
        source = Source(lambda: g.to(member, bulk=True), "alice", record["id"], "tensor", bar.waiting)
        await save_object(source, tmp_path / "back.npy", progress=bar)
        bar.check(limits.RESUME_TIMEOUT)
        assert (tmp_path / "back.npy").read_bytes() == (tmp_path / "x.npy").read_bytes()


# --- the end of what a peer takes -------------------------------------------------------------------------


def full_after(monkeypatch: pytest.MonkeyPatch, count: int, error: Exception) -> None:
    """alice stores so many, and then her disk is full, or she is lost."""
    publish = Store.publish
    stored = []

    async def limited(*args: Any, **kwargs: Any) -> Any:
        if len(stored) == count:
            raise error
        stored.append(None)
        return await publish(*args, **kwargs)

    monkeypatch.setattr(Store, "publish", limited)


async def test_a_full_disk_names_the_file_what_is_there_what_failed_and_what_was_not_tried(
    folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    a, c, *rest = write(tmp_path, "a.npy", "c.npy", *(f"r{number}.npy" for number in range(7)), nbytes=8)
    (tmp_path / "b.csv").write_text("1\noops\n")
    full_after(monkeypatch, 1, StorageFull("no room"))
    async with over_proxy(folders) as (g, _):
        with pytest.raises(StorageFull) as caught:
            await commands.put(g, [a, str(tmp_path / "b.csv"), c, *rest], "alice", ["#a"], "", False, None, False)
    assert caught.value.message == (
        f"c of {c} could not be put at alice: no room; what was put before it is there (1 of them); "
        f"not tried: {', '.join(rest[:5])} and 2 more"
    )
    printed = capsys.readouterr()
    assert printed.out.startswith("alice has a: ") and printed.out.count("\n") == 1
    assert "b.csv line 2, column 1" in printed.err


async def test_of_a_file_of_several_what_is_left_is_named_too(
    folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.savez(tmp_path / "set.npz", x=np.ones(2), y=np.zeros(2), z=np.ones(3))
    full_after(monkeypatch, 1, PeerLost("gone"))
    async with over_proxy(folders) as (g, _):
        putting = Putting(g, g.find_member("alice"), "#a")
        async for _ in putting.run([str(tmp_path / "set.npz"), *write(tmp_path, "w.npy")], commands.bars):
            pass
    assert (putting.at_work, putting.count) == ("y", 1)
    assert putting.untried == ["z", str(tmp_path / "w.npy")]
    assert isinstance(putting.end, PeerLost)
