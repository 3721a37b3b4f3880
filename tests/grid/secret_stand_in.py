"""A team in this process: secret tensors without peers, all parties in step."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch

from grid.secret.team import Secrets
from grid.secret.tensor import SecretTensor
from grid.secret.values import Local
from grid.secure_sessions import Team
from mpc.correlations import Correlation, Dealt
from mpc.interpreter import run
from mpc.lowering import Lowered
from mpc.party import Party
from mpc.ring import PRECISION, decode, encode
from mpc.rounds import Protocol
from mpc.secret import Secret
from mpc.staying import as_given, staying
from mpc.together import run_together, shares_of


@dataclass(eq=False)
class Shares:
    """What parties keep: one Secret each."""

    engine: Together
    parties: list[Secret]

    def __post_init__(self) -> None:
        self.engine.kept += 1

    def __del__(self) -> None:
        self.engine.kept -= 1


class Together:
    """The parties. `kept`: how many tensors they have; `programs`: what ran; `rounds`: in all."""

    def __init__(self, count: int, precision: int) -> None:
        self.count, self.precision = count, precision
        self.kept = self.rounds = 0
        self.programs: list[Lowered] = []
        self.revealed = 0

    async def run(self, lowered: Lowered, inputs: Sequence[Any], keep: Sequence[bool], to: Any) -> list[Any]:
        await asyncio.sleep(0)
        self.programs.append(lowered)
        given: list[list[Any]] = [[] for _ in range(self.count)]
        for at, value in enumerate(inputs):
            parts: Sequence[Secret]
            if isinstance(value, Shares):
                parts = value.parties
            else:
                bits = lowered.bits(at, value.dtype)
                words = shares_of(encode(value, bits), self.count)
                parts = [as_given(share, bits, value.dtype, self.precision) for share in words]
            for party, part in zip(given, parts, strict=True):
                party.append(part)

        def protocol(party: Party, *own: Any) -> Protocol[Any]:
            party.precision = self.precision
            made = run(party, lowered.program, [*own, *lowered.public])
            return (yield from staying(party, made, lowered.program.outputs, keep))

        results, ledger = run_together(protocol, given)
        self.rounds += ledger.rounds
        outputs: list[Any] = []
        for is_kept, found in zip(keep, zip(*results, strict=True), strict=True):
            if is_kept:
                outputs.append(Shares(self, list(found)))
                continue
            self.revealed += 1
            opened = torch.stack([each.share for each in found]).sum(0)
            outputs.append(decode(opened, found[0].bits, found[0].dtype))
        return outputs


def team(*names: str, provider: str = "carol") -> Any:
    """Peers with names alone."""
    made: list[Any] = [SimpleNamespace(name=name, id=name) for name in (*names, provider)]
    return Team(tuple(made[:-1]), made[-1])


def secrets(count: int = 2, precision: int = PRECISION) -> Secrets:
    """To be called where a loop runs."""
    names = ["alice", "bob", "dave", "erin", "frank"][:count]
    return Secrets(team(*names), precision, Together(count, precision), asyncio.get_running_loop())


def secret(of: Secrets, value: torch.Tensor, requires_grad: bool = False) -> SecretTensor:
    made = SecretTensor.new_of(of, Local(value.detach().clone()), value)
    return made.requires_grad_(requires_grad)  # type: ignore[return-value]


__all__ = ["Correlation", "Dealt", "Shares", "Together", "secret", "secrets", "team"]
