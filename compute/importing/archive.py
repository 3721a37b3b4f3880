"""A zip archive of a stranger's: members by name, each within limits, as parts of the file where they are not packed.

Paths in it are names and nothing else: nothing is ever written where they point.
"""

from __future__ import annotations

import encodings.cp437  # noqa: F401  # of names in archives that do not say what they are in; zipfile asks for it late
import io
import json
import zipfile
from typing import Any, Final

from protocol import limits
from protocol.errors import BadFile
from protocol.sizes import check_limit

_MOST_MEMBERS: Final = 100_000
_LOCAL_HEADER: Final = 30  # bytes before a member's name and extra field; their lengths are its last four


class _File(io.RawIOBase):
    """The bytes of a file, to be read by zipfile."""

    def __init__(self, data: memoryview) -> None:
        super().__init__()
        self._data = data
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = 0) -> int:
        base = (0, self._at, len(self._data))[whence]
        if base + offset < 0:
            raise OSError("before the beginning of the file")
        self._at = base + offset
        return self._at

    def readinto(self, target: Any) -> int:
        piece = self._data[self._at : self._at + len(target)]
        target[: len(piece)] = piece
        self._at += len(piece)
        return len(piece)


class Archive:
    """The members of an archive, without the folder that all of them are in.

    Raises:
        BadFile: it is no archive, or a member appears twice. TooLarge: more members than any honest file has.
    """

    def __init__(self, data: memoryview) -> None:
        self._data = data
        try:
            self._archive = zipfile.ZipFile(io.BufferedReader(_File(data)))
        except Exception as error:  # zipfile meets strangers' files with whatever comes up
            raise BadFile(f"it is not a zip archive: {str(error)[:200] or type(error).__name__}") from None
        found = self._archive.infolist()
        check_limit("members", len(found), "an archive of {size} members; at most {allowed}", allowed=_MOST_MEMBERS)
        roots = {member.filename.partition("/")[0] for member in found}
        self.root = f"{roots.pop()}/" if len(roots) == 1 and all("/" in member.filename for member in found) else ""
        self._members = {member.filename[len(self.root) :]: member for member in found}
        if len(self._members) != len(found):
            raise BadFile("an archive with two members of one name")

    def __contains__(self, name: object) -> bool:
        return name in self._members

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._members)

    @property
    def nbytes(self) -> int:
        """What all members are together when they are unpacked, as they say themselves."""
        return sum(member.file_size for member in self._members.values())

    def read(self, name: str, most: int) -> memoryview:
        """A member: where it is packed a copy, and else the part of the file.

        Raises:
            BadFile: there is none, or it is not what the archive says. TooLarge: more than `most` bytes.
        """
        member = self._members.get(name)
        if member is None:
            raise BadFile(f"there is no {name[:100]!r} in it")
        sentence = "{name!r} in it has {size} bytes; at most {allowed} are read"
        check_limit("MAX_EXPANSION", member.file_size, sentence, allowed=most, name=name[:100])
        if member.flag_bits & 1:
            raise BadFile(f"{name[:100]!r} in it is encrypted")
        if member.compress_type == zipfile.ZIP_STORED:
            return self._part(member)
        try:
            with self._archive.open(member) as packed:
                data = packed.read(most + 1)
        except Exception as error:
            raise BadFile(f"{name[:100]!r} in it is damaged: {str(error)[:200] or type(error).__name__}") from None
        if len(data) != member.file_size:
            raise BadFile(f"{name[:100]!r} in it is not as long as the archive says")
        return memoryview(data)

    def json(self, name: str) -> Any:
        """A member of JSON; its names twice in one map, and numbers that are none, are refused."""
        data = self.read(name, limits.MAX_FILE_HEADER * 4)
        try:
            return json.loads(bytes(data), object_pairs_hook=_map, parse_constant=_no_constant)
        except (ValueError, RecursionError) as error:
            raise BadFile(f"{name[:100]!r} in it is not JSON: {str(error)[:200]}") from None

    def _part(self, member: zipfile.ZipInfo) -> memoryview:
        at = member.header_offset
        local = bytes(self._data[at : at + _LOCAL_HEADER]) if at >= 0 else b""
        if len(local) < _LOCAL_HEADER or local[:4] != b"PK\x03\x04":
            raise BadFile(f"{member.filename[:100]!r} in it is not where the archive says")
        start = at + _LOCAL_HEADER + int.from_bytes(local[26:28], "little") + int.from_bytes(local[28:30], "little")
        part = self._data[start : start + member.file_size]
        if len(part) != member.file_size or member.compress_size != member.file_size:
            raise BadFile(f"{member.filename[:100]!r} in it is cut off")
        return part


def _map(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name twice in one map")
    return found


def _no_constant(text: str) -> float:
    return float(text)  # NaN and Infinity are honest arguments of operations
