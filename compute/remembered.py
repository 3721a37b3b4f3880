"""Captures that are not made again: of functions that hang on nothing but their arguments, for arguments alike.

A capture takes milliseconds, and a wrong one would be silently wrong. So it is remembered only where all that it can
go by was read (closed.py, alike.py, torch's settings), and read the same once it was over.
"""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from typing import Any

from compute.alike import Arguments
from compute.capture import LOADED, Captured, Named, Returned, capture
from compute.closed import NotClosed, Reader, surroundings
from compute.given import Given
from protocol import limits
from protocol.errors import CannotCapture


class Captures:
    """Those of this process.

    Args:
        trusted: functions and classes that only compute, beside those of Python and torch.
        unwrapped: what an object in a function is to be read as (a function, a text), or the object.
    """

    def __init__(self, trusted: tuple[Any, ...], unwrapped: Callable[[Any], Any]) -> None:
        self._trusted = {id(value): value for value in trusted}
        self._unwrapped = unwrapped
        self._found: OrderedDict[Hashable, Captured | CannotCapture] = OrderedDict()

    def capture(
        self,
        function: Callable[..., Any] | None,
        called: Callable[..., Any],
        arguments: Mapping[str, Any],
        loads: Mapping[str, Any],
        dynamic: bool | Mapping[str, Any] | None,
    ) -> Captured:
        """As compute.capture. `function` is the user's own, which `called` calls; None: `called` calls but a module
        among the arguments."""
        key = self._key(function, arguments, loads, dynamic)
        found = self._found.get(key) if key is not None else None
        if found is None:
            try:
                found = capture(called, arguments, loads, dynamic)
            except CannotCapture as error:
                if "load" in error.fields:
                    self._keep(key, error, self._key(function, arguments, loads, dynamic))
                raise
            self._keep(key, _alone(found), self._key(function, arguments, loads, dynamic))
            return found
        self._found.move_to_end(key)
        if isinstance(found, CannotCapture):  # what is loaded is to be found first
            raise found.again()
        given = Given(arguments, loads, LOADED)
        return dataclasses.replace(found, given=given.tensors, returned=_returned(found.returned, given))

    def _key(self, function: Callable[..., Any] | None, *more: Any) -> Hashable | None:
        around = surroundings()
        if around is None:
            return None
        reader = Reader(self._trusted, self._unwrapped)
        arguments, loads, dynamic = more
        try:
            read = reader.function(function) if function is not None else None
            alike = Arguments(reader)
            key = (
                read,
                alike.read(dict(arguments)),
                alike.read(dict(loads)),
                alike.read(dynamic),
                alike.ties(),
                around,
            )
            hash(key)
        except (NotClosed, TypeError, RecursionError):
            return None
        return key

    def _keep(self, before: Hashable | None, found: Captured | CannotCapture | None, after: Hashable | None) -> None:
        if before is None or before != after or found is None:
            return
        self._found[before] = found
        while len(self._found) > limits.MAX_CAPTURES:
            self._found.popitem(last=False)


def _alone(captured: Captured) -> Captured | None:
    """Without its arguments, which are not to stay alive; None where it is about more than those."""
    if captured.constants:  # no reading has let one through, and none is to be kept
        return None
    try:
        returned = _mapped(captured.returned, _place)
    except NotClosed:
        return None
    return dataclasses.replace(captured, given={}, returned=returned)


def _place(returned: Returned) -> Returned:
    """What is returned, by where it stands among the arguments."""
    if returned.path is None:
        raise NotClosed
    return Returned(None, returned.path)


def _returned(template: Any, given: Given) -> Any:
    """The template with the modules and optimisers of these arguments."""
    by_path: dict[str | None, Any] = {found.path: found.module for found in given.modules}
    by_path.update({found.path: found.optimizer for found in given.optimizers})
    return _mapped(template, lambda one: one if one.path is None else Returned(by_path[one.path], one.path))


def _mapped(template: Any, change: Callable[[Returned], Returned]) -> Any:
    if isinstance(template, Returned):
        return change(template)
    if isinstance(template, Named):
        return Named(template.kind, _mapped(template.items, change))
    if isinstance(template, dict):
        return {key: _mapped(item, change) for key, item in template.items()}
    if isinstance(template, list | tuple):
        items = [_mapped(item, change) for item in template]
        return tuple(items) if isinstance(template, tuple) else items
    return template
