"""What a run of a program gives: pointers, in the function's own structure.

A program that ran before gave results of some dtypes and shapes, and mostly gives the like again. So pointers are made
while the peer works, and thrown away where its answer says otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from compute.dtypes import DTYPE_OF
from compute.values import decode
from grid.handle import Handle
from grid.pointer import Pointer
from peer.calls import Response
from protocol.errors import BadProgram, BadTensor
from protocol.tensors import TensorHeader

if TYPE_CHECKING:
    from grid.remote import RemotePeer


@dataclass(frozen=True, slots=True)
class Looks:
    """What the results of a run are: as the peer `said` it, and read."""

    said: Any
    headers: Sequence[TensorHeader]


class Results:
    """Of one run at `home`, under the ids `outs`. `looks` are those of a run of the same program before."""

    def __init__(
        self, home: RemotePeer, outs: Sequence[bytes], record: dict[str, Any] | None, looks: Looks | None
    ) -> None:
        self.looks = looks
        self._home = home
        self._outs = outs
        self._record = record
        self._made: list[Pointer] = []

    def expect(self) -> None:
        """Make pointers to what is looked for: the run was asked for."""
        if self.looks is not None and len(self.looks.headers) == len(self._outs):
            self._made = self._pointers(self.looks.headers)

    def read(self, answer: Response) -> list[Pointer]:
        """The pointers, by what the peer answers. Values that came along are kept.

        Raises:
            BadTensor: the answer makes no sense.
        """
        said = answer.result["results"]
        if self.looks is None or said != self.looks.said or not self._are_good():
            headers = [TensorHeader.from_wire(header) for header in said]
            if len(headers) != len(self._outs):
                raise BadTensor(
                    f"{self._home.name} gave {len(headers)} results of a program that has {len(self._outs)}"
                )
            self.looks = Looks(said, headers)
            self._made = self._pointers(headers)
        for pointer in self._made:
            pointer._handle.owns = True
        if answer.result.get("values"):
            self._keep_values(answer, self.looks.headers)
        return self._made

    def _are_good(self) -> bool:
        """Whether pointers were made, and the peer has not forgotten since what this client had there."""
        return bool(self._made) and self._made[0]._handle.era == self._home.outbox.era

    def _pointers(self, headers: Sequence[TensorHeader]) -> list[Pointer]:
        """They own nothing yet: it may be that there will be no results."""
        return [
            Pointer.of(Handle(self._home, out, owns=False, record=self._record), DTYPE_OF[header.dtype], header.shape)
            for out, header in zip(self._outs, headers, strict=True)
        ]

    def _keep_values(self, answer: Response, headers: Sequence[TensorHeader]) -> None:
        payload, at = memoryview(answer.payload), 0
        for number in answer.result["values"]:
            if type(number) is not int or not 0 <= number < len(headers):
                raise BadTensor(f"{self._home.name} gave the value of a result that the program has not")
            header = headers[number]
            data = bytes(payload[at : at + header.nbytes])
            header.check_payload(len(data))
            self._home.came.keep(self._outs[number], header, data)
            at += len(data)


def rebuilt(template: Any, made: Iterator[Pointer]) -> Any:
    """The function's own result structure, with pointers in it."""
    if isinstance(template, list):
        return [rebuilt(item, made) for item in template]
    if type(template) is dict or isinstance(template, Mapping):
        if "tuple" in template:
            return tuple(rebuilt(item, made) for item in template["tuple"])
        if "map" in template:
            entries = dict(template["map"])
            for key in sorted(entries):
                item = entries[key]
                # A value, as most are, without another call: a training step gives many.
                is_value = type(item) is dict and "node" in item
                entries[key] = next(made) if is_value else rebuilt(item, made)
            return entries
        is_value = "node" in template or "constant" in template
        return next(made) if is_value else decode(template, _no_tensor)
    return template


def _no_tensor(id: bytes) -> Any:
    raise BadProgram("a program's outputs name no objects")
