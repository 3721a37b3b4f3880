"""run."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from grid import bars, show
from grid.commands.files import show_value, show_written
from grid.commands.stopping import leaving
from grid.given import walk
from grid.hits import is_id_prefix
from protocol.errors import BadRequest, GridError

if TYPE_CHECKING:
    from grid.client import Grid

_FILE: Final = re.compile(r"\.py(:|$)")
_ID: Final = 8  # hex digits of what is taken for an id: fewer are more likely a word or a number
_SURE: Final = 12  # as many as tables show are one, though it may look like a number
_WORDS: Final = {"True": True, "False": False, "None": None}


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be done with the plan, and where the result goes."""

    is_explained: bool = False
    at_each: bool = False
    how: str | None = None
    out: Path | None = None
    overwrite: bool = False
    as_json: bool = False
    team: Mapping[str, Any] = field(default_factory=dict)  # what g.run is told of a run on shares
    tags: Sequence[str] = ()  # of what is revealed to a peer


def secure(parties: str | None, tags: Sequence[str] = (), **told: Any) -> dict[str, Any]:
    """What `g.run` is told of a run on shares; nothing where it is none. `told`: provider and so on, as it has them."""
    if bool(tags) != (told.get("reveal_to") is not None):
        raise BadRequest(
            "what is revealed to a peer stays there under tags: --reveal-to bob --tag '#result', one with the other"
        )
    told = {key: value for key, value in told.items() if value is not None and value is not False}
    if parties is None and not told:
        return {}
    return {"parties": [each.strip() for each in (parties or "").split(",") if each.strip()], **told}


async def run(g: Grid, reference: str, arguments: Sequence[str], wanted: Wanted) -> None:
    from grid import files

    if wanted.out is not None:
        if wanted.tags:
            raise BadRequest("what is revealed to a peer does not come here: leave out -o")
        files.check_target(wanted.out, wanted.overwrite)
    plan = _plan(reference)
    args, kwargs = parsed(arguments)
    if wanted.is_explained:
        with bars.waiting(f"{reference}: looking"):
            team = {key: value for key, value in wanted.team.items() if key != "patience"}
            told = await g.explain(plan, *args, **team, **kwargs)
        _show(told.to_json() if wanted.as_json else str(told), wanted.as_json)
        return
    with leaving(lambda: "the run was ended, and nothing of it stays"), bars.waiting(f"{reference} runs"):
        value, failure = await _result(g, plan, args, kwargs, wanted)
    if wanted.tags:
        await _show_there(value, wanted)
    elif wanted.out is not None:
        show_written(files.write(wanted.out, value, wanted.overwrite), wanted.as_json)
    else:
        show_value(value, wanted.as_json)
    if failure is not None:
        raise failure


async def _result(
    g: Grid, plan: Any, args: Sequence[Any], kwargs: dict[str, Any], wanted: Wanted
) -> tuple[Any, GridError | None]:
    """The values; and what some of several peers failed with, where others have a result."""
    from grid.scripts import results

    if wanted.team and (wanted.how is not None or wanted.at_each):
        raise BadRequest("--parties runs one plan on the shares of all of them: it goes without --map and --reduce")
    if wanted.how is not None:
        how: Any = _plan(wanted.how) if _FILE.search(wanted.how) else wanted.how
        return await results(await g.reduce(plan, *args, how=how, **kwargs)), None
    if not wanted.at_each:
        result = await g.run(plan, *args, **wanted.team, **kwargs)
        _tell(getattr(plan, "printed", ""))
        return await _value(result, wanted), None
    try:
        parts = await g.map(plan, *args, **kwargs)
        for name, part in parts.items():
            _tell(getattr(part, "printed", ""), f"{name}:\n")
        return await results(parts), None
    except GridError as error:
        if not error.results:
            raise
        return await results(dict(error.results)), error


async def _value(result: Any, wanted: Wanted) -> Any:
    """What a run gave, fetched; of one on shares it is here, and what it cost is said beside it."""
    from grid.scripts import results

    if not wanted.team:
        return await results(result)
    print(result.cost, file=sys.stderr)
    return result.value


async def _show_there(value: Any, wanted: Wanted) -> None:
    """What a peer has learned: published there, so that it is there when we are gone."""
    from grid.pointer import Pointer

    pointers = [item for _, item in walk(value) if isinstance(item, Pointer)]
    records = [(await each.tag(*wanted.tags))._handle.record or {} for each in pointers]
    if wanted.as_json:
        show.json_out(show.plain(records))
        return
    for pointer, record in zip(pointers, records, strict=True):
        print(f"{pointer.location.name} has {show.named(record)}")


def _tell(printed: str, title: str = "") -> None:
    """What a jail printed, beside the result."""
    if printed:
        print(show.clean_lines(f"{title}{printed.rstrip()}"), file=sys.stderr)


def _show(value: Any, as_json: bool) -> None:
    if as_json:
        show.json_out(show.plain(value))
    else:
        print(show.clean_lines(value))


def _plan(reference: str) -> Any:
    """A plan of a file; or what finds a stored plan or model, which is a query or an id."""
    from grid.given import as_query
    from grid.scripts import load_plan

    if not _FILE.search(reference):
        if as_query(reference) is not None:
            return reference
        if is_id_prefix(reference):
            return f"id:{reference}"
    return load_plan(reference)


def parsed(arguments: Sequence[str]) -> tuple[list[Any], dict[str, Any]]:
    """NAME=VALUE by name, others by position."""
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    for argument in arguments:
        name, equals, text = argument.partition("=")
        if not equals or not name.isidentifier():
            args.append(value(argument))
        elif name in kwargs:
            raise BadRequest(f"{name} is given twice")
        else:
            kwargs[name] = value(text)
    return args, kwargs


def value(text: str) -> Any:
    """What an argument on the command line is: JSON (3.5, true, [1, 2], "text"), an id, or a text, which is a query if
    it has a tag or a field (grid/given.py)."""
    from grid.given import text as plain

    if text in _WORDS:
        return _WORDS[text]
    if is_id_prefix(text) and len(text) >= _SURE:
        return f"id:{text}"
    try:
        found = json.loads(text)
    except ValueError:
        return f"id:{text}" if is_id_prefix(text) and len(text) >= _ID else text
    return plain(found) if isinstance(found, str) else found
