"""A party's rounds: what it opens goes to all other parties, and theirs come."""

from __future__ import annotations

from typing import Any

from mpc.rounds import Opened, Opening, Protocol, message, opened
from peer.worker.secure.mail import Mail
from peer.worker.secure.part import ROUND, Part
from protocol import limits
from protocol.errors import BadRequest


class Rounds:
    """All rounds of one run: `number` counts them."""

    def __init__(self, part: Part, mail: Mail) -> None:
        self._part = part
        self._mail = mail
        self.number = 0

    def drive(self, protocol: Protocol[Any]) -> Any:
        """What the protocol gives."""
        answer: Opened | None = None
        while True:
            try:
                asked = next(protocol) if answer is None else protocol.send(answer)
            except StopIteration as done:
                return done.value
            answer = self._round(asked)

    def _round(self, asked: Opening) -> Opened:
        others = self._part.others
        if asked.nbytes > limits.SECURE_MESSAGE:
            raise BadRequest(f"a round of {asked.nbytes} bytes: run the plan on smaller parts of the data")
        self._mail.expect(asked.nbytes)
        self._mail.tell(others, ROUND, self.number, *message(asked))
        came = self._mail.take_all([(rank, ROUND, self.number) for rank in others], asked.nbytes)
        self._mail.finish_sending()  # what was sent may be written to from here on
        self.number += 1
        self._mail.due.round, self._mail.due.asked = self.number, None
        return opened(asked, [memoryview(each) for each in came])
