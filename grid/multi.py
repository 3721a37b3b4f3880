"""Multi-pointers: one torch.Tensor that stands for an object at each of several peers.

Every torch function, method and property asked of one is asked once for each peer, of that peer's pointers, above
autograd (`__torch_function__`); so each peer has a history and gradients of its own, and shapes may differ from peer to
peer. What reaches it from below autograd (torch.func) goes the same way. Method:
https://pytorch.org/docs/stable/notes/extending.html, "Extending torch Python API".
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import torch

from grid.at_each import AtEach, by_peer
from grid.handing import check_peer
from grid.pointer import Pointer
from grid.several import ask_all, check_apart, names_of, raise_failures, settled
from protocol.errors import BadRequest, NotCollocated

if TYPE_CHECKING:
    from grid.remote import RemotePeer


class _Removables:
    """What `register_hook` gives for several tensors."""

    def __init__(self, handles: list[Any]) -> None:
        self._handles = handles

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()


class MultiPointer(torch.Tensor):
    """A tensor at each of several peers. Made by `grid.combine`, by `x.send(alice, bob)`, and by operations on it.

    Operations on it run at each peer, on what is there; two of them meet peer by peer. What torch says of it (shape,
    dtype, requires_grad) is said where it is the same at all peers. Awaited:

        get(), get(sum_results=True)      the values, in the order of the peers, or their sum; each peer gives its up
        fetch(), fetch(sum_results=True)  the same, and nothing changes there
        move(peer), copy(peer)            all to one peer: the pointers there, in the same order
        tag, untag, describe, delete      at each peer

    Where some peers fail, the error names them, and the others keep what they have: it is in `children`.
    """

    _children: tuple[Pointer, ...]

    @staticmethod
    def of(children: Sequence[Pointer]) -> MultiPointer:
        """See `combine`; these are pointers at different peers."""
        first = children[0]
        made: MultiPointer = torch.Tensor._make_wrapper_subclass(
            MultiPointer, first.shape, strides=first.stride(), dtype=first.dtype, device=first.device
        )
        made._children = tuple(children)
        return made

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return at_each(function, args, kwargs or {})

    __torch_dispatch__ = __torch_function__  # type: ignore[assignment]

    # --- what it is ---------------------------------------------------------------------------------------

    @property
    def children(self) -> tuple[Pointer, ...]:
        """Its pointers, one for each peer."""
        return self._children

    @property
    def location(self) -> tuple[RemotePeer, ...]:
        """The peers, in the order of `children`."""
        return tuple(child.location for child in self._children)

    def at(self, peer: RemotePeer) -> Pointer:
        """The pointer at that peer; NotCollocated where it has none there."""
        child = by_peer(self).get(peer.id)
        if child is None:
            raise NotCollocated(f"{self!r} has nothing at {peer.name}")
        return child

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]  # torch passes tensor_contents
        return f"MultiPointer({', '.join(map(repr, self._children))})"

    def __format__(self, spec: str) -> str:
        return repr(self)

    def __hash__(self) -> int:
        return id(self)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.unbind(0))  # rows, as of any tensor: its pointers are `children`

    def __deepcopy__(self, memo: dict[int, Any]) -> MultiPointer:
        if id(self) not in memo:
            made = MultiPointer.of([child.__deepcopy__(memo) for child in self._children])  # type: ignore[misc]
            memo[id(self)] = as_parameter(made) if isinstance(self, torch.nn.Parameter) else made
        return memo[id(self)]  # type: ignore[no-any-return]

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        self._children[0].__reduce_ex__(protocol)
        raise AssertionError("a pointer was pickled")

    def register_hook(self, hook: Callable[..., Any]) -> _Removables:
        """The hook is called for each peer, with the gradient there. `remove()` of what is returned removes all."""
        return _Removables([child.register_hook(hook) for child in self._children])  # type: ignore[no-untyped-call]

    # --- awaited ------------------------------------------------------------------------------------------

    async def get(self, sum_results: bool = False) -> Any:
        """The values in the order of the peers, or with `sum_results` their sum; peers give up what this owns.

        Of chains: what they point to. Nothing is given up anywhere before all values are here.

        Raises:
            Denied, NotFound, LinkError: as `Pointer.get`; the error names the peers that failed.
            BadRequest: a sum of values whose shapes differ.
        """
        values = await self._ask("get()", lambda child: _value(child))
        result = add_up(values) if sum_results else values
        await self.let_go()
        return result

    async def let_go(self) -> None:
        """What `get` does when it has the values."""
        await self._ask("get()", _let_go)

    async def fetch(self, sum_results: bool = False) -> Any:
        """The values in the order of the peers, or with `sum_results` their sum; nothing changes there."""
        values = await self._ask("fetch()", lambda child: child.fetch())
        return add_up(values) if sum_results else values

    async def move(self, peer: RemotePeer) -> list[Pointer]:
        """Send the data of all directly to one peer, for example to be averaged there; the pointers there.

        Where some fail, the others are at `peer` already, and `children` has the pointers to all as they are then.
        """
        before = self._children
        moved = await settled([child.move(peer) for child in before])
        self._children = tuple(
            old if isinstance(new, BaseException) else new for old, new in zip(before, moved, strict=True)
        )
        rest = f"the others are at {peer.name} now, see `children`"
        raise_failures(f"move() to {peer.name}", [child.location.name for child in before], moved, rest)
        return list(self._children)

    async def copy(self, peer: RemotePeer) -> list[Pointer]:
        """Send copies of all directly to one peer; the pointers there."""
        return await self._ask(f"copy() to {peer.name}", lambda child: child.copy(peer))

    async def send(self, *_: Any, **__: Any) -> NoReturn:
        raise BadRequest(
            f"{self!r} is at {names_of(self._children)} already: send one of its `children`, or move() all"
        )

    async def tag(self, *tags: str) -> MultiPointer:
        """Add tags at each peer: published there by the first one."""
        await self._ask("tag()", lambda child: child.tag(*tags))
        return self

    async def untag(self, *tags: str) -> MultiPointer:
        """Take tags away at each peer."""
        await self._ask("untag()", lambda child: child.untag(*tags))
        return self

    async def describe(self, text: str) -> MultiPointer:
        """Set the description at each peer."""
        await self._ask("describe()", lambda child: child.describe(text))
        return self

    async def delete(self) -> None:
        """Remove the object from each peer. Where some fail it is gone from the others."""
        await self._ask("delete()", lambda child: child.delete())

    async def _ask(self, doing: str, call: Callable[[Pointer], Awaitable[Any]]) -> list[Any]:
        names = [child.location.name for child in self._children]
        return await ask_all(doing, names, [call(child) for child in self._children])


at_each = AtEach(MultiPointer)


def combine(*pointers: Any) -> Any:
    """A multi-pointer over these pointers, one for each peer: operations on it run at all of them.

    Pointers, other multi-pointers, or lists of them. Nothing is asked of anybody: what is done to the multi-pointer is
    done to these very pointers. Of modules (each sent to another peer) a module whose parameters are multi-pointers.

    Raises:
        BadRequest: nothing to combine, tensors that are here, or two at the same peer.
    """
    given = _flat(pointers)
    if given and all(isinstance(one, torch.nn.Module) for one in given):
        from grid.multi_modules import combine_modules

        return combine_modules(given)
    children: list[Pointer] = []
    for one in given:
        if not isinstance(one, Pointer | MultiPointer):
            raise BadRequest(f"combine takes pointers, not {type(one).__name__}: send it to a peer first")
        children += one.children if isinstance(one, MultiPointer) else [one]
    check_apart([child.location for child in children])
    return MultiPointer.of(children)


async def send_to_all(value: Any, peers: Sequence[RemotePeer], tags: Sequence[str] | str, description: str) -> Any:
    """Send it to each of the peers (one: as `peer.send`), and combine what comes of it."""
    for peer in peers or (None,):
        check_peer(peer, "send()")
    check_apart(peers)
    if len(peers) == 1:
        return await peers[0].send(value, tags, description)
    rest = "the others have published theirs" if tags else "nothing of it stays at the others"
    answers = await settled([peer.send(value, tags, description) for peer in peers])
    raise_failures("send()", [peer.name for peer in peers], answers, rest)
    return combine(answers)


def as_parameter(multi: MultiPointer) -> MultiPointer:
    """The same, for torch a parameter; its pointers are the parameters that optimisers change."""
    multi._is_param = True  # what nn.Parameter asks of tensors of other classes
    return multi


# --- values -----------------------------------------------------------------------------------------------


async def _value(child: Pointer) -> torch.Tensor:
    target = child._handle.target
    if target is None:
        return await child.fetch()
    child._handle.check()
    return target


async def _let_go(child: Pointer) -> None:
    if child._handle.target is not None:
        await child._give_up("get() gave back what it pointed to")
    elif child._handle.owns:
        await child._give_up("get() took it: use the tensor that it returned; fetch() leaves it there")


def _flat(values: Sequence[Any]) -> list[Any]:
    found: list[Any] = []
    for value in values:
        if isinstance(value, Sequence) and not isinstance(value, str | torch.nn.Module):
            found += _flat(value)
        else:
            found.append(value)
    return found


def add_up(values: Sequence[torch.Tensor]) -> Any:
    """Their sum; BadRequest where their shapes differ, which torch would stretch."""
    shapes = [list(value.shape) for value in values]
    if any(shape != shapes[0] for shape in shapes):
        raise BadRequest(f"values of the shapes {', '.join(map(str, shapes))} have no sum: get() without sum_results")
    return sum(values)
