"""The price of MACs: two linear layers, a truncation, checks and a reveal, against the same in the usual mode."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable
from typing import Any, Final

from benchmarks.harness import Figure
from mpc.arithmetic import FixedMask, multiply
from mpc.authenticated import Authenticated, Tagged
from mpc.bilinear import MatrixProduct
from mpc.comparison import truncate
from mpc.party import Party
from mpc.ring import PRECISION
from mpc.rounds import Protocol, message, opened
from mpc.script import script_of
from mpc.together import Ledger, LocalDealer

_PARTIES: Final = 2
_ROWS, _WIDE, _NARROW = 64, 256, 64


def _with_macs(party: Party) -> Protocol[Any]:
    own = Authenticated(party)
    x, one, two = own.mask((_ROWS, _WIDE)), own.mask((_WIDE, _NARROW)), own.mask((_NARROW, _NARROW))
    made: Tagged = yield from own.multiply(MatrixProduct(), x, one)
    made = yield from own.truncate(made, PRECISION)
    return (yield from own.reveal((yield from own.multiply(MatrixProduct(), made, two))))


def _without_macs(party: Party) -> Protocol[Any]:
    shapes = (_ROWS, _WIDE), (_WIDE, _NARROW), (_NARROW, _NARROW)
    x, one, two = (party.take(FixedMask(shape)).free[0] for shape in shapes)
    made = yield from multiply(party, MatrixProduct(), x, one)
    made = yield from truncate(party, made, PRECISION)
    return (yield from multiply(party, MatrixProduct(), made, two))


def price(repeats: int) -> Figure:
    """Both in one process, so that what is compared is computation and bytes, dealing left out."""

    def seconds(protocol: Callable[[Party], Protocol[Any]]) -> tuple[float, Ledger]:
        ledger = Ledger()
        dealer = LocalDealer(_PARTIES, ledger)
        script = script_of(protocol, _PARTIES)
        for number, correlation in enumerate(script.correlations):
            dealer.supply(1)(number, correlation)
        runs = [protocol(Party(rank, _PARTIES, dealer.supply(rank))) for rank in range(_PARTIES)]
        began = time.process_time()
        asked = [next(each) for each in runs]
        with contextlib.suppress(StopIteration):
            while True:
                sent = [b"".join(message(each)) for each in asked]
                ledger.rounds, ledger.nbytes = ledger.rounds + 1, ledger.nbytes + asked[0].nbytes
                asked = [
                    each.send(opened(own, [sent[1 - at]]))
                    for at, (each, own) in enumerate(zip(runs, asked, strict=True))
                ]
        return time.process_time() - began, ledger

    both = [(seconds(_with_macs), seconds(_without_macs)) for _ in range(repeats)]
    ours, usual = (1e3 * statistics.median(pair[at][0] for pair in both) for at in range(2))
    one, other = both[-1][0][1], both[-1][1][1]
    fields = {"rounds": one.rounds, "bytes_per_party": one.nbytes}
    shown = f"{one.rounds} rounds and {one.nbytes} bytes, against {other.rounds} and {other.nbytes}"
    return Figure(
        "malicious_linear", "two linear layers with MACs, all parties' CPU", "ms", ours, {"usual": usual}, shown, fields
    )
