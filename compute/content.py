"""Inputs that name contents: large constants, and parameters that a program shares with others. Torch-free.

A program may say of an input which contents it has (`Input.content`): the name of an object's contents, which is the
BLAKE3 of the file that they are stored in (docs/decisions/0006). Who asks for a run gives values for the other inputs
alone. Who runs it, or places it, binds to this input the id of a published object that has these contents: at a peer,
`describe` with `content` says which object that is (SPEC.md), and only where the asker may take its value, so that a
program is no way to find out whether somebody has some file. Where nobody has it, NotFound says its name in
`fields["content"]`, and it can be brought there (`put` or `move`) before the program is run again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from compute.program_parts import Input
from protocol.errors import BadRequest, NotFound

T = TypeVar("T")


def free(inputs: Sequence[Input]) -> tuple[Input, ...]:
    """Those for which a value is given with each run."""
    return tuple(given for given in inputs if given.content is None)


def bind(inputs: Sequence[Input], given: Sequence[T], find: Callable[[str], T | None]) -> list[T]:
    """A value for every input, in order: what was given for the free ones, and what `find` has of the others.

    Raises:
        BadRequest: more or fewer values than there are free inputs.
        NotFound: contents that `find` does not have, named in `fields["content"]`.
    """
    wanted = free(inputs)
    if len(given) != len(wanted):
        names = ", ".join(one.name for one in wanted[:20])
        raise BadRequest(f"the program takes {len(wanted)} inputs ({names}), but {len(given)} were given")
    values = iter(given)
    return [next(values) if one.content is None else _found(one, one.content, find) for one in inputs]


def _found(one: Input, content: str, find: Callable[[str], T | None]) -> T:
    found = find(content)
    if found is None:
        raise NotFound(
            f"input {one.name!r} has the contents {content}, which no object here has: put or move one that has them "
            "here, and run it again",
            content=content,
        )
    return found
