"""What a program names by its contents (compute/content.py), bound to the objects here that have them.

A published object that the asker may take, whoever sent it; or a temporary of the asker's own that was brought for this
run, whose bytes are compared with the name first. Private contents of others are as if they were not here: a guess is
not confirmed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from compute.content import bind
from compute.program import Input
from peer.elsewhere import TensorName
from peer.execution import Execution
from peer.objects import Objects, Temporary
from peer.spans import StoredSpan, release
from protocol.errors import BadRequest, Denied, NotFound


def at_hand(objects: Objects, asker: str, inputs: Sequence[Input], given: Sequence[bytes]) -> list[bytes] | None:
    """The id of an object for every input, where those that are named were found lately; else None."""
    try:
        return bind(inputs, given, lambda content: objects.content_at_hand(asker, content))
    except (BadRequest, NotFound):
        return None


async def bound(
    execution: Execution,
    objects: Objects,
    asker: str,
    inputs: Sequence[Input],
    given: Sequence[bytes],
    brought: Mapping[str, bytes],
) -> list[bytes]:
    """The id of an object for every input. In the asker's lane.

    Args:
        given: ids for the inputs that name nothing.
        brought: by content name the ids of temporaries of which the asker says that they have these contents.

    Raises:
        NotFound: contents that are not here, named in `fields["content"]`.
        BadRequest: other contents than the name says. Denied: what was brought is private to others.
    """
    found: dict[str, bytes] = {}
    for content in {each.content for each in inputs if each.content is not None}:
        try:
            found[content] = (await objects.by_content(asker, content, "tensor")).id
        except NotFound:
            if content in brought:
                found[content] = await _compared(execution, asker, brought[content], content)
    return bind(inputs, given, found.get)


async def _compared(execution: Execution, asker: str, id: bytes, content: str) -> bytes:
    (held,) = (await execution.inputs(asker, [id])).values()
    if held.labels - {asker}:
        raise Denied("what is private to others is not compared with a name of contents", owners=sorted(held.labels))
    if not isinstance(held, Temporary) or held.target is not None:
        raise BadRequest("what is brought for a program that names its contents is a temporary tensor")
    header, value = await execution.snapshot(held, in_memory=True)
    assert not isinstance(value, StoredSpan)
    try:
        name = TensorName(header)
        with memoryview(value) if isinstance(value, bytes) else value.view() as data:
            await asyncio.to_thread(name.update, data)
    finally:
        release(value)
    if name.value != content:
        raise BadRequest(f"what was brought has the contents {name.value}, and the program names {content}")
    return id
