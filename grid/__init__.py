"""What users import: `import grid`.

Files in import order:

    ids.py        fresh object ids
    handle.py     what a pointer points to, and letting it go
    outbox.py     operations on their way to a peer
    dispatch.py   operations on pointers: queued at their peer, shapes known at once
    pointer.py    pointers: torch tensors whose data live at a peer
    fresh.py      memory for a value that is about to come
    files/        tensors in files of each kind, read and written in pieces
    saving.py     objects into files
    handing.py    an object handed from peer to peer
    remote.py     one peer: g["alice"]
    hits.py       what a search found
    mesh.py       the grid without tensors: who is there, and what they say they have
    found.py      objects of any kind where they are: changed, deleted, moved, copied
    putting.py    files into peers
    upkeep.py     the stores of this machine's peers: verify, compact
    stored.py     what stored models and plans have in common
    modules.py    modules whose parameters are pointers; stored models
    plans.py      @grid.plan, grid.load: functions that run where the data are
    placement.py  where a plan runs: decides
    running.py    a plan from its arguments to its result
    client.py     the grid: connect, peers, search, run
    local_grid.py peers as processes here, for demos and tests
    scripts.py    plans from a user's own Python file
    show.py       tables and progress bars of the command line
    commands/     what its commands do
    story.py      how the demo tells what it does
    demo.py       the main job, explained as it goes
"""

import importlib
from typing import TYPE_CHECKING, Any

from protocol.errors import (
    Ambiguous,
    AmbiguousPeer,
    CannotCapture,
    Denied,
    GridError,
    NeedsAwait,
    NotCollocated,
    NotFound,
    OperationFailed,
    OperationNotAllowed,
    PeerLost,
    QueryError,
    ReadOnly,
    TooLarge,
    UnknownPeer,
    Unreachable,
    WorkerLost,
)

if TYPE_CHECKING:
    from grid.client import Grid, connect
    from grid.hits import Hits
    from grid.local_grid import local
    from grid.mesh import PeerInfo
    from grid.modules import RemoteModel, RemoteModule
    from grid.plans import Plan, RemotePlan, load, plan
    from grid.pointer import Pointer
    from grid.remote import RemotePeer

__version__ = "0.1.0"

__all__ = [
    "Ambiguous",
    "AmbiguousPeer",
    "CannotCapture",
    "Denied",
    "Grid",
    "GridError",
    "Hits",
    "NeedsAwait",
    "NotCollocated",
    "NotFound",
    "OperationFailed",
    "OperationNotAllowed",
    "PeerInfo",
    "PeerLost",
    "Plan",
    "Pointer",
    "QueryError",
    "ReadOnly",
    "RemoteModel",
    "RemoteModule",
    "RemotePeer",
    "RemotePlan",
    "TooLarge",
    "UnknownPeer",
    "Unreachable",
    "WorkerLost",
    "connect",
    "load",
    "local",
    "plan",
]

# Importing torch takes more than a second, and commands that only look do without: names are found when first used.
_HOMES = {
    "Grid": "grid.client",
    "connect": "grid.client",
    "Hits": "grid.hits",
    "local": "grid.local_grid",
    "PeerInfo": "grid.mesh",
    "RemoteModel": "grid.modules",
    "RemoteModule": "grid.modules",
    "Plan": "grid.plans",
    "RemotePlan": "grid.plans",
    "load": "grid.plans",
    "plan": "grid.plans",
    "Pointer": "grid.pointer",
    "RemotePeer": "grid.remote",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'grid' has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(home), name)
    return value
