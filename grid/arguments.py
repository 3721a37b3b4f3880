"""How the arguments of an operation travel: pointers by their ids; of local tensors only what belongs to the call.

A tensor that is here is data, and whether data may leave this machine is for their owner to say, with `send`. It goes
along with a call, up to limits.INLINE_PAYLOAD, where it is none:

    a number         of no dimensions, or of one element, expanded or not
    where            what says where, how many or from what state, by its parameter: indices, masks, a first state
    nothing          what follows from its shape alone: zeros (and minus infinities: a mask that is added), 0 1 2 and
                     so on times a number, an identity or a triangle of one number and the rest of another (patterns.py)
    ones             one number everywhere, in a backward pass: what it begins with (`grad_outputs`)
    torch's own      what torch's library made on its way to the operation (grid/origin.py): nobody could have sent it
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import torch

from compute.bounds import Result
from compute.table import Entry
from compute.values import encode, encode_call, header_of, inline_tensor, tensor_bytes
from grid.handle import Handle
from grid.ids import fresh_id
from grid.origin import is_made_by_torch
from grid.patterns import alike, band, is_comparable, is_one_number, is_ramp
from protocol import limits
from protocol.errors import NotCollocated

if TYPE_CHECKING:
    from grid.remote import RemotePeer

GOES_ALONG: Final = frozenset(
    {
        *("index", "indices", "mask", "condition", "hx", "attn_mask", "repeats", "boundaries", "test_elements"),
        *("offsets", "bins", "sorted_sequence", "sorter", "input_lengths", "target_lengths"),
    }
)
"""Parameters of which a local tensor goes along with the call."""

_RANKS: Final = frozenset({("aten.masked_fill.Scalar", "self")})
"""What torch.quantile(pointer, q) makes of a local q: where in the sorted values it looks."""

_NOTHING: Final[Mapping[int, Any]] = {}

Wire = tuple[list[Any], dict[str, Any]]


def _is_no_data(entry: Entry, name: str, tensor: torch.Tensor) -> bool:
    """Whether a tensor that is here goes along as this argument: see above."""
    if _is_number(tensor) or name in GOES_ALONG or (entry.name, name) in _RANKS:
        return True
    if torch._C._current_graph_task_id() >= 0 and is_one_number(tensor):
        return True
    return _tells_nothing(tensor.detach()) or is_made_by_torch(tensor)


def _with_memory(tensor: torch.Tensor) -> torch.Tensor:
    """Itself; for the zeros without memory that forward mode goes by, zeros that can be read."""
    return torch.zeros(tensor.shape, dtype=tensor.dtype) if tensor._is_zerotensor() else tensor


def _is_number(tensor: torch.Tensor) -> bool:
    """One element, or one that was expanded."""
    return all(size == 1 or stride == 0 for size, stride in zip(tensor.shape, tensor.stride(), strict=True))


def _tells_nothing(tensor: torch.Tensor) -> bool:
    if is_comparable(tensor) and bool(((tensor == 0) | (tensor == float("-inf"))).all()):
        return True
    return is_ramp(tensor) or band(tensor) is not None


def _is_here(tensor: torch.Tensor, home: str) -> str:
    """What is said of a tensor that would have to be at that peer."""
    if any(isinstance(each, torch.nn.Parameter) for each in (tensor, tensor._base)):
        return (
            f"a parameter, {list(tensor.shape)}, is here and the others are at {home}: send it there first, with its "
            f"module (net = await g[{home!r}].send(net)) or alone (y = await g[{home!r}].send(y)), or get the others "
            "(await x.get(); of a state dict: await g.fetch(state))"
        )
    is_made = " (torch.istft makes such a window itself: send one, and give it that)" if _is_window(tensor) else ""
    return (
        f"one tensor, {list(tensor.shape)}, is here and the others are at {home}: send it there first "
        f"(y = await g[{home!r}].send(y); a small one without waiting: y = x.new_tensor(y)), or get the others "
        f"(await x.get()){is_made}"
    )


def _is_window(tensor: torch.Tensor) -> bool:
    return tensor.dim() == 3 and tensor.shape[:2] == (1, 1) and bool((tensor == 1).all())


class Arguments:
    """Writes arguments for one peer; `kinds` are the classes of tensors that are there.

    Keep it until the operation is queued: what was put at the peer for the call goes with it.
    """

    __slots__ = ("_along", "_held", "_home", "_kinds")

    def __init__(self, kinds: tuple[type[torch.Tensor], ...], home: RemotePeer) -> None:
        self._kinds = kinds
        self._home = home
        self._along: Mapping[int, Any] = _NOTHING  # by id(tensor): how it travels
        self._held: tuple[Handle, ...] = ()  # of what was put at the peer for this call

    def write(self, entry: Entry, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Wire:
        """The call as wire values.

        Raises:
            NotCollocated: a local tensor of data is among them.
            BadRequest: a value that cannot travel, or a pointer whose object is gone.
        """
        try:
            return encode_call(args, kwargs, self._reference)
        except NotCollocated:
            self._find_along(entry, args, kwargs)
            if not self._along:
                raise
        return encode_call(args, kwargs, self._reference)

    def _reference(self, tensor: torch.Tensor) -> Any:
        if isinstance(tensor, self._kinds):
            handle: Handle = tensor._handle  # type: ignore[attr-defined]
            handle.check()
            return handle.id
        if tensor.dim() == 0:
            return inline_tensor(_with_memory(tensor).detach())
        if id(tensor) in self._along:
            return self._along[id(tensor)]
        raise NotCollocated(_is_here(tensor, self._home.name))

    def _find_along(self, entry: Entry, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        call = entry.named(args, kwargs)
        along: dict[int, Any] = {}
        for name, value in call.items():
            for tensor in value if isinstance(value, list | tuple) else (value,):
                if not isinstance(tensor, torch.Tensor) or isinstance(tensor, self._kinds) or not tensor.dim():
                    continue
                filled = _with_memory(tensor)
                if _is_no_data(entry, name, filled):
                    along[id(tensor)] = self._written(filled.detach())
        self._along = along

    def _written(self, tensor: torch.Tensor) -> Any:
        header = header_of(tensor)
        if header.nbytes <= limits.MAX_CONSTANT:
            return inline_tensor(tensor)
        first = tensor.flatten()[:1].reshape(())
        if is_one_number(tensor):  # the zeros that a recurrent layer begins with, of any size
            return self._post(
                "aten.full.default", [list(tensor.shape), first.item()], {"dtype": {"dtype": header.dtype}}
            )
        if header.nbytes <= limits.INLINE_PAYLOAD:
            handle = self._made()
            self._home.put_soon(handle, {"kind": "tensor", **header.to_wire()}, bytes(tensor_bytes(tensor)))
            return handle.id
        # The same for each sample: once is enough.
        if len(tensor) > 1 and is_comparable(tensor) and bool(alike(tensor, tensor[:1]).all()):
            return self._post("aten.expand.default", [self._written(tensor[:1].contiguous()), list(tensor.shape)], {})
        pattern = band(tensor)
        if pattern is not None and pattern.is_plain:
            square = pattern.make(tensor.dtype, self._post)
            return self._post("aten.expand.default", [square, list(tensor.shape)], {})
        raise NotCollocated(
            f"a tensor of {header.nbytes} bytes is here, and at most {limits.INLINE_PAYLOAD} go along with "
            f"a call: send it there first (i = await g[{self._home.name!r}].send(i))"
        )

    def _post(self, name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> bytes:
        """Queues an operation that makes something there for the call; its id."""
        handle = self._made()
        wire = [value if type(value) is bytes else encode(value, self._reference) for value in args]
        self._home.outbox.post([name, wire, kwargs, [handle.id]], (handle,))
        return handle.id

    def _made(self) -> Handle:
        handle = Handle(self._home, fresh_id(), owns=True)
        self._held = (*self._held, handle)
        return handle


def with_local_masks(name: str, args: Sequence[Any], remote: tuple[type, ...]) -> Sequence[Any]:
    """An indexing call in which masks that are here are positions: then the shape of the result is known here."""
    if name not in _BY_INDEX or not isinstance(args[1], list | tuple):
        return args
    if not any(_is_local_mask(index, remote) for index in args[1]):
        return args
    indices: list[Any] = []
    for index in args[1]:
        indices += index.nonzero().unbind(1) if _is_local_mask(index, remote) else (index,)
    return [args[0], indices, *args[2:]]


def known_result(name: str, call: Mapping[str, Any], remote: tuple[type, ...]) -> Result | None:
    """What an operation gives whose result's shape depends on data, where these are arguments that are here."""
    given: Any = call.get("self")
    if name == "aten.one_hot.default" and call["num_classes"] >= 0:
        return Result.contiguous(torch.int64, (*given.shape, call["num_classes"]))
    if name == "aten.masked_select.default" and not isinstance(call["mask"], remote):
        shape = torch.broadcast_shapes(given.shape, call["mask"].shape)  # type: ignore[no-untyped-call]
        return Result.contiguous(given.dtype, (int(call["mask"].expand(shape).sum()),))
    return None


_BY_INDEX: Final = frozenset({"aten.index.Tensor", "aten._unsafe_index.Tensor"})


def _is_local_mask(index: Any, remote: tuple[type, ...]) -> bool:
    is_mask = isinstance(index, torch.Tensor) and index.dtype in (torch.bool, torch.uint8)
    return is_mask and not isinstance(index, remote) and index.dim() > 0
