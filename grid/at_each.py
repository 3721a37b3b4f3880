"""Operations on multi-pointers: asked once for each peer of that peer's pointers, and the results brought together."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NoReturn

import torch

from grid.blocking import IN_A_THREAD
from grid.operators import refuse_all
from grid.pointer import Pointer
from grid.several import ask_all, names_of
from protocol.errors import BadRequest, GridError, NeedsAwait, NotCollocated

if TYPE_CHECKING:
    from grid.multi import MultiPointer
    from grid.remote import RemotePeer

_PLAIN: Final = (bool, int, float, complex, str, bytes, torch.Size, torch.dtype, torch.device, torch.layout)


class AtEach:
    """What becomes of an operation; `kind` is the class of multi-pointers. Called as `at_each(function, args, kwargs)`.

    Raises:
        NotCollocated: they are over different peers, or a pointer to one peer only is among the arguments.
        BadRequest: the result is a plain value, and not the same at all peers.
        What the operation raises for one peer: it names it, and was done at those before it.
    """

    def __init__(self, kind: type[MultiPointer]) -> None:
        self._kind = kind

    def __call__(self, function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        multis = self._multis(args, kwargs)
        peers = by_peer(multis[0])
        function = _overridden().get(function, function)
        results = []
        for id, child in peers.items():
            there = functools.partial(self._there, id)
            try:
                results.append(function(*_map(args, there), **{name: _map(kwargs[name], there) for name in kwargs}))
            except GridError as error:
                error.peer = error.peer or child.location.name
                raise
            except Exception as error:
                error.add_note(f"This is of the pointer at {child.location.name}.")
                raise
        return self.together(results, [child.location for child in peers.values()], multis)

    def _multis(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[MultiPointer]:
        """Those among the arguments, all over the same peers."""
        found: list[MultiPointer] = []
        single: list[Pointer] = []

        def look(value: Any) -> None:
            if isinstance(value, self._kind):
                found.append(value)
            elif isinstance(value, Pointer):
                single.append(value)

        _map((*args, *kwargs.values()), look)
        first = names_of(found[0].children)
        if single:
            raise NotCollocated(
                f"{single[0]!r} is at {single[0].location.name} alone, the multi-pointer at {first}: grid.combine "
                "pointers at all of these peers first"
            )
        for other in found[1:]:
            if by_peer(other).keys() != by_peer(found[0]).keys():
                raise NotCollocated(
                    f"one multi-pointer is at {first}, the other at {names_of(other.children)}: both must be at the "
                    "same peers (grid.combine makes one of any pointers, .at(peer) gives the pointer at one)"
                )
        return found

    def _there(self, id: str, value: Any) -> Any:
        """What an argument is at the peer of that id."""
        if isinstance(value, self._kind):
            return by_peer(value)[id]
        return value.at(id) if isinstance(value, Pending) else value

    def together(self, results: list[Any], peers: Sequence[RemotePeer], multis: Sequence[MultiPointer]) -> Any:
        """One result of what each peer's call gave; one of `multis` where that was changed in place."""
        first = results[0]
        if all(isinstance(result, Pointer) for result in results):
            for multi in multis:
                if all(child is result for child, result in zip(multi.children, results, strict=True)):
                    return multi
            return self._kind.of(results)
        if all(inspect.isawaitable(result) for result in results):
            return Pending(self, results, peers, multis)
        if isinstance(first, list | tuple) and not isinstance(first, torch.Size):
            _check_same(peers, [len(result) for result in results], "the number of results")
            return _rebuilt(first, [self.together(list(each), peers, multis) for each in zip(*results, strict=True)])
        if isinstance(first, _PLAIN) or None in results:
            _check_same(peers, results, "what was asked for")
            return first
        return results


class Pending:
    """What an operation gives whose result's shape depends on the data at each peer: `multi = await pending`.

    It can be an index before that, as the results at each peer can (grid/unsized.py), and all else says what to write.
    """

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> NoReturn:
        found: list[Pending] = []
        _map((*args, *(kwargs or {}).values()), lambda value: found.append(value) if isinstance(value, cls) else None)
        found[0]._needs_await(f"{getattr(function, '__name__', function)}()")

    def __init__(
        self, at_each: AtEach, results: list[Any], peers: Sequence[RemotePeer], multis: Sequence[MultiPointer]
    ) -> None:
        self._at_each = at_each
        self._results = results
        self._peers = peers
        self._multis = multis

    def __repr__(self) -> str:
        return f"Pending({', '.join(peer.name for peer in self._peers)}: to be awaited)"

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("_") or not hasattr(torch.Tensor, name):
            raise AttributeError(f"what is to be awaited has no {name!r}", name=name, obj=self)
        self._needs_await(f".{name}")

    def _needs_await(self, call: str) -> NoReturn:
        raise NeedsAwait(
            f"{call} of what this gives at {' and '.join(peer.name for peer in self._peers)}: its shape depends on the "
            f"data there. Await it first, like rows = await x[mask], {IN_A_THREAD}"
        )

    def at(self, id: str) -> Any:
        """What it is at the peer of that id."""
        return self._results[[peer.id for peer in self._peers].index(id)]

    def __await__(self) -> Generator[Any, None, Any]:
        return self._resolved().__await__()

    async def _resolved(self) -> Any:
        values = await ask_all("this", [peer.name for peer in self._peers], self._results)
        return self._at_each.together(values, self._peers, self._multis)

    async def get(self, sum_results: bool = False) -> Any:
        return await (await self).get(sum_results)

    async def fetch(self, sum_results: bool = False) -> Any:
        return await (await self).fetch(sum_results)


def _refusing(name: str) -> Any:
    def refuse(self: Pending, *_: Any, **__: Any) -> NoReturn:
        self._needs_await(name)

    return refuse


refuse_all(Pending, _refusing)


def by_peer(multi: MultiPointer) -> dict[str, Pointer]:
    """Its pointers by the ids of their peers."""
    found = {child.location.id: child for child in multi.children}
    if len(found) < len(multi.children):
        raise BadRequest(
            f"after a move() several pointers of this multi-pointer are at one peer now ({names_of(multi.children)}): "
            "go on with what move() returned, or with `children`"
        )
    return found


def _check_same(peers: Sequence[RemotePeer], values: Sequence[Any], what: str) -> None:
    if any(value is not values[0] and value != values[0] for value in values):
        each = ", ".join(f"{_shown(value)} at {peer.name}" for value, peer in zip(values, peers, strict=True))
        raise BadRequest(f"{what} differs from peer to peer: {each}. Ask each of `children`")


def _shown(value: Any) -> str:
    return str(list(value)) if isinstance(value, torch.Size) else repr(value)


_table: dict[Any, Any] = {}


def _overridden() -> dict[Any, Any]:
    """Functions of torch.Tensor which pointers have of their own: where torch names its own, theirs is meant."""
    if not _table:
        for kind in reversed(Pointer.__mro__[: Pointer.__mro__.index(torch.Tensor)]):
            for name, own in vars(kind).items():
                base = getattr(torch.Tensor, name, None)
                if isinstance(own, property) and base is not None:
                    _table[base.__get__] = own.fget
                    _table[base.__set__] = own.fset
                elif inspect.isfunction(own) and base is not None:
                    _table[base] = own
    return _table


def _map(value: Any, change: Callable[[Any], Any]) -> Any:
    if isinstance(value, torch.Size):
        return value
    if isinstance(value, list | tuple):
        return _rebuilt(value, [_map(item, change) for item in value])
    if isinstance(value, dict):
        return {key: _map(item, change) for key, item in value.items()}
    return change(value)


def _rebuilt(like: Any, items: list[Any]) -> Any:
    """The same kind of list or tuple, a named one too."""
    return type(like)(*items) if hasattr(like, "_fields") else type(like)(items)
