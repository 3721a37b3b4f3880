"""start, up, down, peers, status."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

from grid.commands.errors import raise_last
from grid.commands.stopping import leaving, run
from protocol.errors import UnknownPeer

if TYPE_CHECKING:
    from grid.mesh import Mesh
    from peer.peer import Peer, Settings
    from peer.pool_settings import PoolSettings
    from peer.processes import PeerProcess


def start(settings: Settings, log_level: str) -> None:
    from peer import process

    def on_ready(peer: Peer) -> None:
        print(f"{peer.name} is ready at {peer.url} (id {peer.id[:12]}); Ctrl-C stops it", flush=True)

    process.log_to_stderr(log_level)
    process.run(settings, on_ready)


def up(names: Sequence[str], as_json: bool, workers: PoolSettings) -> None:
    from grid import show
    from peer.folders import Folders
    from peer.peer import Settings
    from peer.processes import PeerProcess

    folders = Folders.default()
    wanted = [Settings(name, folders=folders, workers=workers) for name in dict.fromkeys(names)]

    async def start_all() -> list[PeerProcess | BaseException]:
        starting = (
            PeerProcess.start(settings, folders.logs / f"{settings.name}.log", outlives_us=True) for settings in wanted
        )
        with leaving(lambda: "peers that had come up run: 'grid peers' shows them, 'grid down' ends them"):
            return await asyncio.gather(*starting, return_exceptions=True)

    results = run(start_all())
    started = [result for result in results if isinstance(result, PeerProcess)]
    for process in started:
        process.let_go()
    if as_json:
        show.json_out([{"name": made.name, "id": made.id, "url": made.url, "pid": made.pid} for made in started])
    else:
        for made in started:
            print(f"{made.name} is ready at {made.url} (id {made.id[:12]}, process {made.pid})")
        if started:
            print(f"logs are in {folders.logs}; 'grid down' ends them")
    raise_last([result for result in results if isinstance(result, BaseException)])


def down(names: Sequence[str], as_json: bool) -> None:
    from grid import show
    from peer.folders import Folders
    from peer.neighbours import Neighbours
    from peer.processes import end

    running = {neighbour.name: neighbour for neighbour in Neighbours(Folders.default().peers).list()}
    unknown = [name for name in names if name not in running]
    if unknown:
        raise UnknownPeer(f"no peer named {unknown[0]!r} runs on this machine; running: {', '.join(running) or 'none'}")
    ended = list(dict.fromkeys(names)) if names else list(running)

    async def end_all() -> list[bool]:
        with leaving(lambda: "peers that were told to end may still be at it: 'grid peers' shows who runs"):
            return await asyncio.gather(*(end(running[name].pid) for name in ended))

    in_order = run(end_all())
    if as_json:
        show.json_out([{"name": name, "killed": not orderly} for name, orderly in zip(ended, in_order, strict=True)])
        return
    for name, orderly in zip(ended, in_order, strict=True):
        print(f"{name} is down" + ("" if orderly else " (it had to be killed)"))
    if not ended:
        print("no peer runs on this machine")


async def peers(g: Mesh, as_json: bool) -> None:
    from grid import show

    infos = g.peers()  # asked for when the grid was joined
    if as_json:
        show.json_out(show.peers_json(infos))
    else:
        show.out().print(show.peers_table(infos))


async def status(g: Mesh, name: str | None, as_json: bool) -> None:
    from grid import show

    asked = [name] if name else [info.id for info in g.peers() if info.state == "alive"]
    statuses = await asyncio.gather(*(g.status(g.find_member(peer)) for peer in asked))
    if as_json:
        show.json_out(show.plain(statuses[0] if name else statuses))
        return
    show.out().print(show.status_table(statuses))
    show.print_unprotected(statuses)
    if name:
        principals = statuses[0].get("principals", ())
        show.out().print(show.principals_table(principals) if principals else "nobody computes here")
        show.out().print(show.traffic_table(statuses[0]["traffic"]))
