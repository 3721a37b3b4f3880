"""How the command line shows things: tables, records, sizes, values. No command is decided here."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from peer.store.sqlite_errors import RESTORE
from protocol.errors import BadRequest

if TYPE_CHECKING:
    from grid.hits import Hits
    from grid.mesh import PeerInfo
    from grid.searching import Records

_PIPE_WIDTH = 1_000  # columns where no terminal says how many: a script's table is not cut
_MAX_LISTED = 20  # commands that are spelled out
_MAX_PRINTED = 10_000  # elements of a value that are printed as JSON

# --- where it goes ----------------------------------------------------------------------------------------


def out() -> Console:
    """For results. Colour and wrapping only on a terminal; NO_COLOR is honoured."""
    return Console(width=None if sys.stdout.isatty() else _PIPE_WIDTH, highlight=False)


def json_out(value: Any) -> None:
    """One JSON value on standard output."""
    print(json.dumps(value, ensure_ascii=False), flush=True)


# --- words ------------------------------------------------------------------------------------------------


def size(nbytes: int | None) -> str:
    """Bytes for people: 512 B, 1.5 kB, 47.0 MB."""
    if nbytes is None:
        return "?"
    amount = float(nbytes)
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if amount < 1000 or unit == "TB":
            return f"{amount:.0f} B" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1000
    raise AssertionError


def duration(seconds: float) -> str:
    """Seconds for people: 42 s, 5 min, 3 h, 2 d."""
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def tags(record: Mapping[str, Any]) -> list[str]:
    return [f"#{tag}" for tag in record.get("tags") or ()]


def plain(value: Any) -> Any:
    """Something off the wire as JSON has it: bytes as hex digits, tags with '#'."""
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, Mapping):
        made = {str(key): plain(inside) for key, inside in value.items()}
        return {**made, "tags": tags(value)} if isinstance(value.get("tags"), list | tuple) else made
    if isinstance(value, list | tuple):
        return [plain(inside) for inside in value]
    return value


def clean(value: object) -> str:
    """Text of strangers, safe on a terminal: what would move the cursor or turn text around is written out."""
    return "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in str(value))


def clean_lines(text: str) -> str:
    """The same of several lines."""
    return "\n".join(clean(line) for line in text.splitlines())


def named(record: Mapping[str, Any]) -> str:
    """An object in a sentence."""
    shape = "" if record.get("shape") is None else f" {record['dtype']} {list(record['shape'])}"
    nbytes = "" if record.get("nbytes") is None else f", {size(record['nbytes'])}"
    return f"{record['kind']} {record['id'].hex()[:12]}{shape}{nbytes}"


# --- tables -----------------------------------------------------------------------------------------------


def table(*columns: str, rows: Iterable[Sequence[object]]) -> Table:
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        is_number = column in ("size", "objects", "temporaries", "sessions", "workers", "sent", "received")
        made.add_column(column, justify="right" if is_number else "left", overflow="fold")
    for row in rows:
        made.add_row(*(escape(clean(cell)) for cell in row))
    return made


def peers_table(infos: Iterable[PeerInfo]) -> Table:
    return table(
        "name",
        "id",
        "state",
        "address",
        "objects",
        "size",
        rows=(
            (peer.name, peer.id[:12], peer.state, " ".join(peer.urls), _or_unknown(peer.objects), size(peer.bytes))
            for peer in infos
        ),
    )


def peers_json(infos: Iterable[PeerInfo]) -> list[dict[str, Any]]:
    return [plain(asdict(peer)) for peer in infos]


def hits_table(records: Sequence[Mapping[str, Any]]) -> Table:
    """The column of names is there where one of them has a name."""
    columns = ["peer", "id", "kind", "name", "dtype", "shape", "size", "tags", "description"]
    if not any(record.get("name") for record in records):
        columns.remove("name")
    cells = map(_hit_cells, records)
    return table(*columns, rows=([row[column] for column in columns] for row in cells))


def _hit_cells(record: Mapping[str, Any]) -> dict[str, object]:
    shape = record.get("shape")
    return {
        "peer": record["peer"],
        "id": record["id"].hex()[:12],
        "kind": record["kind"] + (" (private)" if record.get("private") else ""),
        "name": record.get("name") or "",
        "dtype": record.get("dtype") or "",
        "shape": "" if shape is None else list(shape),
        "size": size(record.get("nbytes")),
        "tags": " ".join(tags(record)),
        "description": record.get("description") or "",
    }


def print_hits(hits: Hits | Records) -> None:
    """The table of what was found, and below it who did not answer and why."""
    console = out()
    if len(hits):
        console.print(hits_table(hits.records))
    else:
        console.print(f"nothing matches {escape(hits.query)}" if hits.query else "nothing is published here")
    for name, reason in hits.unreachable.items():
        console.print(f"no answer from {escape(clean(name))}: {escape(clean(reason))}", soft_wrap=True)
    for name in hits.truncated:
        console.print(f"{escape(clean(name))} has more than it shows here: narrow the query")
    for name, count in hits.damaged.items():
        shown = escape(clean(name))
        console.print(f"{shown} has {count} more that cannot be read: run 'grid verify {shown}'", soft_wrap=True)


def hits_json(hits: Hits | Records) -> dict[str, Any]:
    return {
        "query": hits.query,
        "objects": [plain(record) for record in hits.records],
        "unreachable": hits.unreachable,
        "truncated": hits.truncated,
        "damaged": hits.damaged,
    }


def print_fields(fields: Mapping[str, Any]) -> None:
    """One thing, a line for each of its fields; empty ones are left out."""
    grid = Table.grid(padding=(0, 2))
    for name, value in fields.items():
        if value not in (None, "", []):
            shown = " ".join(map(str, value)) if isinstance(value, list) and name != "shape" else value
            grid.add_row(escape(name), escape(clean(shown)))
    out().print(grid)


def record_fields(record: Mapping[str, Any]) -> dict[str, Any]:
    """What `grid show` says of an object, in its order."""
    shown = plain(record)
    order = ("peer", "id", "kind", "name", "tags", "description", "dtype", "shape")
    fields = {key: shown.get(key) for key in order}
    fields["size"] = size(record.get("nbytes"))
    fields["owner"] = record.get("owner")
    if record.get("private"):
        fields["private"] = "its value goes to nobody without the leave of " + ", ".join(record.get("labels") or ())
    if record.get("target"):
        fields["points to"] = f"{shown['target']['name']} {shown['target']['object']}"
    return fields


def status_table(statuses: Iterable[Mapping[str, Any]]) -> Table:
    return table(
        "name",
        "version",
        "up for",
        "objects",
        "size",
        "temporaries",
        "sessions",
        "workers",
        rows=(
            (
                status["name"],
                status["version"],
                duration(status["uptime"]),
                status["objects"],
                size(status["bytes"]),
                status["temporaries"],
                status["sessions"],
                status["workers"],
            )
            for status in statuses
        ),
    )


def print_unprotected(statuses: Iterable[Mapping[str, Any]]) -> None:
    """Of peers whose workers the system does not confine, or not with all that there is."""
    for status in statuses:
        said = status.get("sandbox", "confined")
        if said != "confined":
            line = f"workers of {clean(status['name'])} are protected by: {clean(said)}"
            out().print(escape(line), style="bold red" if said.startswith("NONE") else "", soft_wrap=True)


def principals_table(principals: Iterable[Mapping[str, Any]]) -> Table:
    return table(
        "computes",
        "workers",
        "memory",
        "processor time",
        "killed",
        rows=(
            (each["id"][:12], each["workers"], size(each["held"]), duration(each["cpu"]), each["kills"])
            for each in principals
        ),
    )


def traffic_table(traffic: Iterable[Mapping[str, Any]]) -> Table:
    return table(
        "with",
        "as",
        "sent",
        "received",
        rows=((end["name"], end["role"], size(end["payload_sent"]), size(end["payload_received"])) for end in traffic),
    )


def print_verified(report: Mapping[str, Any]) -> None:
    """What a check of a peer's store found."""
    console, peer = out(), clean(report["peer"])
    damaged, database = report["damaged"], report["database"]
    found = "all whole" if not damaged and not database else f"{len(damaged)} damaged"
    counted = f"{_count(report['objects'], 'object')} in {_count(report['blobs'], 'file')}"
    checked = f"{counted}, {size(report['bytes'])}"
    console.print(escape(f"{peer}: {checked}: {found}"), soft_wrap=True)
    if damaged:
        columns = ("id", "name", "tags", "what is wrong")
        rows = ((one["id"].hex()[:12], one["name"] or "", " ".join(tags(one)), one["what"]) for one in damaged)
        console.print(table(*columns, rows=rows))
        _print_mending(console, peer, [one["id"].hex() for one in damaged])
    for text in database:
        console.print(escape(f"{peer}: the database: {clean(text)}"), soft_wrap=True)
    if database and RESTORE not in database[-1]:
        console.print(escape(f"{peer}: the database: end the peer, {RESTORE}"), soft_wrap=True)


def _print_mending(console: Console, peer: str, ids: Sequence[str]) -> None:
    lines = [
        f"None of it is given out. Put the same contents at {peer} again ('grid put FILE --to {peer} --tag ...'), or "
        f"copy them there from a peer that has them whole ('grid copy REF {peer}'). Then remove what is damaged:",
        *(f"  grid rm {peer}:{id}" for id in ids[:_MAX_LISTED]),
    ]
    if len(ids) > _MAX_LISTED:
        lines.append(f"  and so on, as 'grid verify {peer} --json' has them all")
    for line in lines:
        console.print(escape(line), soft_wrap=True)


def print_compacted(report: Mapping[str, Any]) -> None:
    """What was freed."""
    anew = ", written anew" if report["is_rewritten"] else ""
    files = f"{_count(report['files'], 'file')} that nothing needs, {size(report['file_bytes'])}"
    line = f"{clean(report['peer'])}: freed {files}; database smaller by {size(report['database_bytes'])}{anew}"
    out().print(escape(line), soft_wrap=True)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _or_unknown(value: object) -> object:
    return "?" if value is None else value


# --- values -----------------------------------------------------------------------------------------------


def value_json(value: Any) -> Any:
    """A result as JSON: tensors as {dtype, shape, value}, structures of them likewise.

    Raises:
        BadRequest: too large to print.
    """
    import torch  # here alone: tables of what was found need none

    if isinstance(value, torch.Tensor):
        if value.numel() > _MAX_PRINTED:
            raise BadRequest(f"a tensor of {value.numel()} elements is too large to print: write it with -o FILE")
        listed = value.tolist() if not value.is_complex() else torch.view_as_real(value).tolist()
        dtype = str(value.dtype).removeprefix("torch.")
        return {"dtype": dtype, "shape": list(value.shape), "value": value_json(listed)}
    if isinstance(value, torch.nn.Module):
        return value_json(dict(value.state_dict()))
    if isinstance(value, Mapping):
        return {str(key): value_json(inside) for key, inside in value.items()}
    if isinstance(value, list | tuple):
        return [value_json(inside) for inside in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # JSON has no word for these; text that Python's float() and others read back
    return value


def print_value(value: Any) -> None:
    """A result for people: a number as it is, a tensor as torch shows it; of several each with its name."""
    for line in _value_lines(value, ""):
        print(line)


def _value_lines(value: Any, name: str) -> list[str]:
    import torch

    if isinstance(value, Mapping) and value:
        return [
            line for key, item in value.items() for line in _value_lines(item, f"{name}.{key}" if name else str(key))
        ]
    if isinstance(value, list | tuple) and any(
        isinstance(item, torch.Tensor | Mapping | list | tuple) for item in value
    ):
        return [
            line for at, item in enumerate(value) for line in _value_lines(item, f"{name}.{at}" if name else str(at))
        ]
    text = _scalar(value) if isinstance(value, torch.Tensor) and value.dim() == 0 else str(value)
    if not name:
        return [text]
    first, *others = text.splitlines() or [""]
    return [f"{clean(name)}: {first}", *(" " * (len(clean(name)) + 2) + line for line in others)]


def _scalar(value: Any) -> str:
    """A number with as many digits as its dtype has: 0.118, and not what float32 makes of it."""
    import torch

    number = value.item()
    digits = {torch.float32: 7, torch.float16: 4, torch.bfloat16: 3}.get(value.dtype)
    return str(number) if digits is None or not math.isfinite(number) else repr(float(f"{number:.{digits}g}"))
