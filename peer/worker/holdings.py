"""What the peer knows a worker to have: values by id, files by number, programs. Decides; does not talk to it.

It is known from what the worker was told, and a worker cannot change it: what it answers is checked against this.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from peer.worker.answers import Given, Source
from protocol import limits
from protocol.tensors import TensorHeader


class Holdings:
    """Values are `provided` by the peer or `promised` as results, and there until they are `forgotten`."""

    def __init__(self) -> None:
        self._values: set[bytes] = set()
        self.holds: Callable[[bytes], bool] = self._values.__contains__
        """Whether it was provided, or promised as a result, and not forgotten since."""
        self.promised: Callable[[Iterable[bytes]], None] = self._values.update
        """These are results of what it was asked."""
        self._given: dict[bytes, TensorHeader] = {}  # those of them that were provided
        self._again: set[bytes] = set()  # and of those, the ones that can be provided again as they are
        self._sources: dict[int, Source] = {}  # files that it has, by number
        self._number_of: dict[bytes, int] = {}
        self._last_number = 0
        self._programs: OrderedDict[bytes, None] = OrderedDict()
        self.has_program: Callable[[bytes], bool] = self._programs.__contains__
        """Whether it has this program already, so that the id is enough."""
        self.made = Given(None, self._sources)
        """What an answer about a result may refer to."""

    def __contains__(self, object_id: bytes) -> bool:
        return object_id in self._values

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    @property
    def has_results(self) -> bool:
        """Whether it has anything that cannot be provided again as it is."""
        return len(self._values) != len(self._again)

    # --- values -------------------------------------------------------------------------------------------

    def provided(self, object_id: bytes, header: TensorHeader, *, again: bool) -> None:
        """`again`: it can be provided once more, as it is."""
        self._values.add(object_id)
        self._given[object_id] = header
        if again:
            self._again.add(object_id)

    def has_made(self, object_id: bytes) -> bool:
        """Whether it is there as a result."""
        return object_id in self._values and object_id not in self._given

    def can_again(self, object_id: bytes) -> bool:
        return object_id in self._again

    def given(self, object_id: bytes, in_memory: bool) -> Given:
        """What an answer about this id may refer to."""
        return Given(self._given.get(object_id), self._sources, in_memory)

    def forget(self, ids: Iterable[bytes]) -> list[bytes]:
        """Those of the ids that it has had."""
        known = list(filter(self.holds, ids))
        self._values.difference_update(known)
        self._again.difference_update(known)
        for object_id in known:
            self._given.pop(object_id, None)
            self._sources.pop(self._number_of.pop(object_id, 0), None)
        return known

    def clear(self) -> None:
        self._values.clear()
        self._given.clear()
        self._sources.clear()
        self._number_of.clear()
        self._again.clear()

    # --- files and programs -------------------------------------------------------------------------------

    def numbered(self, object_id: bytes, nbytes: int, origin: Any) -> int:
        """The number of the file that is provided under this id."""
        # Numbers are never used again: an answer may cross with the dropping of what it refers to.
        self._last_number += 1
        self._sources[self._last_number] = Source(nbytes, origin)
        self._number_of[object_id] = self._last_number
        return self._last_number

    def ran(self, program_id: bytes) -> bytes | None:
        """It has this program now; the id of one that it is to forget for it."""
        self._programs[program_id] = None
        self._programs.move_to_end(program_id)
        if len(self._programs) <= limits.WORKER_PROGRAMS:
            return None
        return self._programs.popitem(last=False)[0]
