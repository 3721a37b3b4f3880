"""What users import: `import grid`.

Files in import order:

    ids.py        fresh object ids
    handle.py     what a pointer points to, and letting it go
    memory.py     memory for large values
    outbox.py     operations on their way to a peer
    pointer.py    pointers: torch tensors whose data live at a peer
    remote.py     one peer: g["alice"]
    stored.py     what stored models and plans have in common
    modules.py    modules whose parameters are pointers; stored models
    plan.py       @grid.plan, grid.load: functions that run where the data are
    placement.py  where a plan runs: decides
    running.py    a plan from its arguments to its result
    hits.py       what a search found
    client.py     the grid: connect, peers, search, run
    local.py      peers as processes here, for demos and tests
    readers.py    tensors from files of each kind
    writers.py    tensors into files
    files.py      both, by the file's ending
    scripts.py    plans from a user's own Python file
    show.py       tables and progress bars of the command line
    story.py      how the demo tells what it does
    demo.py       the main job, explained as it goes
"""

from grid.client import Grid, PeerInfo, connect
from grid.hits import Hits
from grid.local import local
from grid.modules import RemoteModel, RemoteModule
from grid.plan import Plan, RemotePlan, load, plan
from grid.pointer import Pointer
from grid.remote import RemotePeer
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
