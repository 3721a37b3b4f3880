"""What users import: `import grid`.

Files in import order:

    ids.py        fresh object ids
    blocking.py   waiting without await, in a thread in which no loop runs
    handle.py     what a pointer points to, and letting it go
    came.py       values that came along with an answer
    stretches.py  pieces of what is queued that were sent before
    settling.py   what became of what is under way, for the handles of that
    foreseen.py   values asked for before anybody awaits them
    outbox.py     operations on their way to a peer
    operators.py  Python's operators, of what has no value yet
    unsized.py    results whose shape depends on the data: to be awaited
    underway.py   what a stored model is to give of values elsewhere: to be awaited
    origin.py     who made a tensor that is here: whoever wrote the call, or torch itself
    patterns.py   tensors that tell no more than a size and a number or two: 0 1 2 ..., identities, causal masks
    arguments.py  how arguments travel: pointers by id, and what goes along of what is here
    awaited.py    the operations that give such results
    hints.py      what else to write where torch's own code looks at a value
    local_forms.py  what needs a pointer's value or memory here: waited for, or refused
    looked_up.py  x[i], where i is a number at a peer
    layouts.py    what pointers look like: one object for all that look alike
    repeated.py   calls that were dispatched before: what was found out about them
    recomputed.py random numbers in checkpoints: drawn once
    outs.py       `out=`: results written to tensors that are there
    dispatch.py   operations on pointers: queued at their peer, shapes known at once
    composites.py functions of torch's C++ that make tensors on the way, said in operations
    handing.py    an object handed from peer to peer
    fresh.py      memory for a value that is about to come
    fetching.py   values on their way here
    pointer.py    pointers: torch tensors whose data live at a peer
    several.py    several peers asked at once
    at_each.py    operations on multi-pointers: once for each peer
    multi.py      multi-pointers: one tensor for objects at several peers
    files/        tensors in files of each kind, read and written in pieces
    saving.py     objects into files
    crossing.py   gradients from peer to peer
    chains.py     pointers that a peer holds to objects at others
    sending.py    values on their way to a peer
    transfers.py  one object from peer to peer
    remote.py     one peer: g["alice"]
    hits.py       what a search found
    runs.py       what runs at peers: listed, ended
    searching.py  a search of all peers at once
    mesh.py       the grid without tensors: who is there, and what they say they have
    opening.py    what connect and local return, to be awaited
    found.py      objects of any kind where they are: changed, deleted, moved, copied
    stored_programs.py  the programs of stored plans and models, to be read
    putting.py    files into peers
    upkeep.py     the stores of this machine's peers: verify, compact
    stored.py     what stored models and plans have in common
    optimizers.py what optimisers keep for parameters
    moving.py     many tensors from peer to peer, together
    stored_models.py  models found by tag: a program and its weights
    modules.py    modules whose parameters are pointers
    multi_modules.py  modules at several peers
    replacing.py  tensors replaced in place
    hooks.py      grid.hook(): the calls of old tutorials on what is here
    flow.py       grid.repeat, scan, map, cond, while_loop: loops that plans keep as loops
    stored_constants.py  large constants of stored plans
    plans.py      @grid.plan, grid.load: functions that run where the data are
    given.py      what the arguments of a plan mean: queries, or themselves
    world.py      what queries found, and whether it is still so
    jails.py      @grid.jail: functions whose source runs where the data are
    parts.py      one run of a plan: what its arguments mean there
    finishing.py  a function's result, of what its program gave
    jobs.py       what is to be run: a program and its inputs
    calls.py      what was asked to be run, and the job that it becomes
    placement.py  where a plan runs: decides
    explaining.py what a run would do
    reports.py    what a run took, node by node
    executing.py  programs to peers, each run one request
    run_results.py  what a run gives: pointers, made while the peer works
    at_hand.py    a stored plan on objects that are all at one peer
    running.py    a plan from its arguments to its result
    secure_results.py what a secure run gave and took
    secure_forecast.py what a secure run will take, from shapes alone
    secure_inputs.py the inputs of a secure run, as all are told of them
    secure_standing.py one secure session, and the shares that stay with it
    secure_waiting.py how long the asker waits for those who take part
    secure_asking.py one secure run, asked for
    secure_sessions.py which session a secure run belongs to, and what is known before
    chained.py    what is asked of a result before it is there
    secret/       secret tensors: torch operations on shares
    secure_teams.py how a plan is to run on shares, and by whom
    secure.py     plans on secret shares
    fixed.py      fixed precision and shares, as old tutorials have them
    mapping.py    a plan at each of several peers, and what comes of it combined
    started.py    a run that is watched
    from_records.py what records stand for: pointers, models, plans
    client.py     the grid: connect, peers, search, run
    local_grid.py peers as processes here, for demos and tests
    scripts.py    plans from a user's own Python file
    show.py       tables and values on the command line
    bars.py       progress bars beside them
    commands/     what its commands do
    story.py      how the demo tells what it does
    demo.py       the main job, explained as it goes
"""

import importlib
from typing import TYPE_CHECKING, Any

from protocol.errors import (
    Ambiguous,
    AmbiguousPeer,
    BadJail,
    CannotCapture,
    Denied,
    GridError,
    JailFailed,
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
    from grid.explaining import Explanation
    from grid.files.models import read_model
    from grid.flow import cond, map, repeat, scan, while_loop
    from grid.given import query, text
    from grid.hits import Hits
    from grid.hooks import hook, unhook
    from grid.jails import Jail, jail
    from grid.local_grid import local
    from grid.mesh import PeerInfo
    from grid.modules import RemoteModule
    from grid.multi import MultiPointer, combine
    from grid.multi_modules import MultiModule
    from grid.plans import Plan, RemotePlan, load, plan
    from grid.pointer import Pointer
    from grid.remote import RemotePeer
    from grid.secret.modules import SecretModule
    from grid.secret.sharing import share
    from grid.secret.tensor import SecretTensor
    from grid.stored_models import RemoteModel

__version__ = "0.1.0"

__all__ = [
    "Ambiguous",
    "AmbiguousPeer",
    "BadJail",
    "CannotCapture",
    "Denied",
    "Explanation",
    "Grid",
    "GridError",
    "Hits",
    "Jail",
    "JailFailed",
    "MultiModule",
    "MultiPointer",
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
    "SecretModule",
    "SecretTensor",
    "TooLarge",
    "UnknownPeer",
    "Unreachable",
    "WorkerLost",
    "combine",
    "cond",
    "connect",
    "hook",
    "jail",
    "load",
    "local",
    "map",
    "plan",
    "query",
    "read_model",
    "repeat",
    "scan",
    "share",
    "text",
    "unhook",
    "while_loop",
]

# Importing torch takes more than a second, and commands that only look do without: names are found when first used.
_HOMES = {
    "Grid": "grid.client",
    "connect": "grid.client",
    "cond": "grid.flow",
    "map": "grid.flow",
    "repeat": "grid.flow",
    "scan": "grid.flow",
    "while_loop": "grid.flow",
    "Hits": "grid.hits",
    "Explanation": "grid.explaining",
    "query": "grid.given",
    "text": "grid.given",
    "hook": "grid.hooks",
    "unhook": "grid.hooks",
    "Jail": "grid.jails",
    "jail": "grid.jails",
    "local": "grid.local_grid",
    "PeerInfo": "grid.mesh",
    "RemoteModule": "grid.modules",
    "MultiPointer": "grid.multi",
    "combine": "grid.multi",
    "MultiModule": "grid.multi_modules",
    "Plan": "grid.plans",
    "RemotePlan": "grid.plans",
    "load": "grid.plans",
    "plan": "grid.plans",
    "read_model": "grid.files.models",
    "Pointer": "grid.pointer",
    "RemotePeer": "grid.remote",
    "SecretModule": "grid.secret.modules",
    "SecretTensor": "grid.secret.tensor",
    "share": "grid.secret.sharing",
    "RemoteModel": "grid.stored_models",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        from grid.hints import for_name_of_grid

        hint = for_name_of_grid(name)
        raise AttributeError(f"module 'grid' has no attribute {name!r}{hint and f': {hint}'}", name=name)
    value = globals()[name] = getattr(importlib.import_module(home), name)
    return value
