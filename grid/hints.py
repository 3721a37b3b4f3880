"""What else to write where torch's own code looks at a value that is at a peer: by which code that is.

Python code of the library is found among the frames of the call; of its C++ there are none, so that the operation says
what it may be.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from types import FrameType
from typing import Final

# By the module of the library, and the operation that its C++ asked for: what needs no look.
_BY_MODULE: Final = {
    "torch.distributions": "make the distribution without checks of values (validate_args=False)",
    "torch.nn.init": "initialise before the tensor goes there (trunc_normal_ draws until all numbers fit)",
    "torch.nn.utils.clip_grad": "clip without error_if_nonfinite",
}
# By the module of the library that brings tensors together which are at different peers: what it is about.
_APART: Final = {
    "torch.optim": "one optimiser for the parameters at each peer; one that was given a state and has made no step "
    "moves with its module if that is said, 'await net.move(peer, optimizer)'",
    "torch.nn.utils.clip_grad": "clip the parameters at each peer by themselves",
}
ITEM: Final = (
    "what torch's function takes as a number has to be one here, n = int(await n.get()) (F.one_hot: give num_classes; "
    "x[i, j] with a number i: i.view(1))"
)
EQUAL: Final = "(x == y).all() stays there; where torch's own code compares (torch.istft does), do without its check"


def for_library() -> str:
    """For the code of the library that called us, through whatever of ours: an end of "use ..."; empty where there is
    nothing to say."""
    return _hint(_BY_MODULE)


def for_library_apart() -> str:
    """For the code of the library that took together what is at different peers; empty if there is nothing to say."""
    return _hint(_APART)


def _hint(hints: Mapping[str, str]) -> str:
    for frame in _of_library():
        module = str(frame.f_globals.get("__name__"))
        for known, hint in hints.items():
            if module == known or module.startswith(f"{known}."):
                return hint
    return ""


def asker() -> str:
    """The function of the library that looks at a value; empty where whoever uses it does."""
    frame = next(_of_library(), None)
    return "" if frame is None else f"{frame.f_globals.get('__name__')}.{frame.f_code.co_name}"


def _of_library() -> Iterator[FrameType]:
    """The frames of torch's code that led here, the innermost first, up to those of whoever uses it."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        package = str(frame.f_globals.get("__name__")).partition(".")[0]
        if package == "torch":
            yield frame
        elif package not in ("grid", "compute"):
            return
        frame = frame.f_back


# What old programs ask of a pointer, and names that grid.hook() adds.
_OLD: Final = {
    "child": "there are no tensors in tensors here; what it points to is its id_at_location, at its location",
    "id": "the object's is id_at_location",
    "point_to_attr": "an attribute, such as x.grad, is a pointer of its own",
    "garbage_collect_data": "an object that is to outlive its pointers gets a tag (await x.tag('#kept'))",
    "is_wrapper": "there are no tensors in tensors here",
} | dict.fromkeys(
    ("get_", "move_", "send_", "fix_prec", "fix_precision", "float_prec", "float_precision"),
    "grid.hook() adds it",
)


_OLD_OF_GRID: Final = {
    "TorchHook": "grid.hook()",
    "VirtualWorker": "bob = g['bob'], of 'async with grid.local(\"alice\", \"bob\") as g'",
    "WebsocketClientWorker": "g = await grid.connect(url), and g['bob']",
    "search": "await g.search('#a #b'), where g = await grid.connect()",
    "combine_pointers": "grid.combine(p, q)",
    "func2plan": "@grid.plan",
    "FederatedDataLoader": "a list of pointers",
}
_OLD_OF_PEER: Final = {
    "search": "await g.search('#a peer:bob')",
    "clear_objects": "await bob.clear(), or grid.hook() adds it",
} | dict.fromkeys(("_objects", "objects_count", "objects_count_remote", "list_objects_remote"), "await bob.objects()")


_OLD_OF_SEND: Final = {
    "garbage_collect_data": "an object that is to outlive its pointers gets a tag: await x.tag('#kept').send(bob)",
    "inplace": "await x.send_(bob)",
    "no_wrap": "there are no tensors in tensors here",
    "user": "who asks is known by the key of the connection",
} | dict.fromkeys(
    ("local_autograd", "preinitialize_grad", "requires_grad"),
    "what requires a gradient here does so there, and autograd works on pointers as it does on tensors",
)


def for_argument_of_send(name: str) -> str:
    """For whoever gives `send` an argument that it has not: what to write. Empty where there is nothing to say."""
    return _OLD_OF_SEND.get(name, "")


def for_name(name: str) -> str:
    """For whoever asks a pointer for something that it has not; empty where there is nothing to say."""
    return _OLD.get(name, "")


def for_name_of_grid(name: str) -> str:
    """The same, of this package."""
    return _OLD_OF_GRID.get(name, "")


def for_name_of_peer(name: str) -> str:
    """The same, of a peer."""
    return _OLD_OF_PEER.get(name, "")
