"""Values that came along with an answer, before anybody asked for them."""

from __future__ import annotations

from peer.lasting import Lasting
from protocol.tensors import TensorHeader

Value = tuple[TensorHeader, bytes]


class Came:
    """Those of one peer, by object. They are right until it is asked anything else, which might change them."""

    def __init__(self, link: Lasting) -> None:
        self._link = link
        self._values: dict[bytes, Value] = {}
        self._asked = 0  # what had been asked when they came

    def keep(self, id: bytes, header: TensorHeader, data: bytes) -> None:
        """The answer that has just come says so."""
        if self._link.asked != self._asked:
            self._values.clear()
            self._asked = self._link.asked
        self._values[id] = header, data

    def value(self, id: bytes) -> Value | None:
        """The value, if it is here and right."""
        if self._values and self._link.asked != self._asked:
            self._values.clear()
        return self._values.get(id)
