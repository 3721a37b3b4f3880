"""What a secure run gave and took: answers of those who took part, made values and costs of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from compute.dtypes import DTYPE_OF
from compute.values import tensor_from
from grid.secure_inputs import Masked
from mpc.ring import decode
from protocol.errors import PartyFailed
from protocol.tensors import TensorHeader

Answer = tuple[dict[str, Any], bytes]
"""What one peer said of a run, and its shares of what came out."""


@dataclass(frozen=True, slots=True)
class Phase:
    """What one half of a secure run took, by the parties' own clocks.

    Attributes:
        seconds: of the party that took longest; both halves together are all that a run took at the parties.
        rounds: how often the parties sent to each other and waited.
        nbytes: bytes that were sent in all, by everybody.
    """

    seconds: float
    rounds: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class SecureCost:
    """What a secure run cost: `offline` is dealing, which needs no data, as long as the parties wait for it (the rest
    goes on while they run); `online` all else, from the first share on."""

    offline: Phase
    online: Phase

    def to_json(self) -> dict[str, Any]:
        """The same as plain maps."""
        return asdict(self)

    def __str__(self) -> str:
        return "; ".join(
            f"{name} {phase.seconds * 1e3:.1f} ms, {phase.rounds} rounds, {phase.nbytes} bytes"
            for name, phase in (("online", self.online), ("offline", self.offline))
        )


@dataclass(frozen=True, slots=True)
class Stayed:
    """An output of which the parties keep shares: fractional bits, dtype, shape."""

    bits: int
    header: TensorHeader


@dataclass(frozen=True, slots=True)
class There:
    """An output that went to who receives it."""

    header: TensorHeader


def values(
    answers: Sequence[Answer], count: int, *, is_elsewhere: bool = False, masked: Masked | None = None
) -> list[Any]:
    """Of each of `count` outputs its value, or that it Stayed, or that it is There (`is_elsewhere`: what was revealed
    was so to another). `masked`: the run was checked, and all parties have to have said the same. PartyFailed: what the
    parties say makes no sense."""
    try:
        listed = answers[0][0]["outputs"]
        if any(result["outputs"] != listed for result, _ in answers[1:]):
            raise PartyFailed("the parties do not agree on what came out")
        if len(listed) != count:
            raise PartyFailed("the parties gave another number of results than the program has")
        if masked is not None and any(shares != answers[0][1] for _, shares in answers[1:]):
            raise PartyFailed("the run is over, without a result: the parties do not tell the same one")
        return list(_values(listed, [memoryview(shares) for _, shares in answers], is_elsewhere, masked))
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise PartyFailed(f"what the parties gave makes no sense: {type(error).__name__}") from None


def _values(
    listed: Sequence[Any], shares: Sequence[memoryview], is_elsewhere: bool, masked: Masked | None
) -> Iterator[Any]:
    at = secrets = 0
    for bits, dtype, shape, *stayed in listed:
        if bits == "plain":
            yield dtype
            continue
        if stayed:
            yield Stayed(int(bits), TensorHeader(dtype, tuple(shape)))
            continue
        if is_elsewhere:
            yield There(TensorHeader(dtype, tuple(shape)))
            continue
        header = TensorHeader("int64" if bits is not None else dtype, tuple(shape))
        end = at + header.nbytes
        parts = [tensor_from(header, bytearray(each[at:end])) for each in shares]
        at = end
        if masked is not None and bits is not None:
            yield masked.shown(parts[0], int(bits), DTYPE_OF[dtype], secrets)
            secrets += 1
            continue
        yield parts[0] if bits is None else decode(sum(parts[1:], parts[0]), bits, DTYPE_OF[dtype])


def cost(answers: Sequence[Answer], parties: int) -> SecureCost:
    """What the run took. PartyFailed as `values`."""
    try:
        told = [result for result, _ in answers]
        computed = told[:parties]
        whole = max(float(each["offline"]) + float(each["online"]) for each in computed)
        # While the parties run the dealer's own time goes beside theirs: what counts is what they wait for it.
        waited = max(
            float(each["offline"]) for each in (computed if any(each["online"] for each in computed) else told)
        )
        return SecureCost(
            Phase(waited, 0, sum(int(each["dealt"]) for each in told)),
            Phase(
                max(whole - waited, 0.0),
                max(int(each["rounds"]) for each in computed),
                sum(int(each["sent"]) for each in computed),
            ),
        )
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise PartyFailed(f"what the parties gave makes no sense: {type(error).__name__}") from None
