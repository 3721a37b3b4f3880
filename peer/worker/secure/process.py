"""The process's whole life: one run after the other, until something goes wrong or nobody needs it any more."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NoReturn

import torch

from compute.cost import ALLOWED
from compute.values import tensor_bytes
from mpc.dealer import Supply
from mpc.masks import SEED as SEED_BYTES
from mpc.masks import Masks, fresh_seed
from mpc.party import Party
from mpc.replicated import pieces_of, prepare
from mpc.script import Script
from mpc.secret import Secret
from mpc.standing import fixing
from peer.worker.channel import BlockingChannel
from peer.worker.faults import as_error
from peer.worker.memory import keep_freed
from peer.worker.sandbox import Settings
from peer.worker.secure import checked, protocols, results
from peer.worker.secure.dealing import NOTHING, Begun, Dealing, Fixes, Receiving, Take, from_stock
from peer.worker.secure.kept import Kept, Known, check_stock, taken_by
from peer.worker.secure.mail import Gone, Mail
from peer.worker.secure.part import SEED, Blame, Part
from peer.worker.secure.rounds import Rounds
from peer.worker.secure.sharing import share_inputs, shares
from protocol import limits
from protocol.errors import BadRequest, GridError, PartyFailed

_TRIO = 3

Own = Mapping[int, torch.Tensor]
"""This peer's own share of its own inputs, by input."""
Told = tuple[dict[str, Any], list[torch.Tensor]]
"""What a run cost and a description of what came out, and that."""


def serve(sock: socket.socket, settings: Settings) -> NoReturn:
    """The process's whole life, behind its walls."""
    mail = Mail(BlockingChannel(sock, send_limit=limits.WORKER_REPLY, receive_limit=limits.WORKER_MESSAGE))
    torch.set_num_threads(settings.threads)
    keep_freed()
    ALLOWED.limit(settings.memory, settings.seconds, float(settings.threads))
    try:
        with torch.no_grad():
            Process(mail).serve()
    except Blame as blame:
        assert mail.part is not None
        name = mail.part.names[blame.index]
        error: GridError = PartyFailed(f"{name} {blame.why}", peer=name)
        mail.say(["lost" if blame.is_lost else "failed", error.to_fault(), mail.part.ids[blame.index]])
    except Gone as gone:
        mail.say(["lost", PartyFailed("a process of the session is gone").to_fault(), str(gone)])
    except (BrokenPipeError, ConnectionResetError):
        pass
    except BaseException as problem:
        mail.say(["failed", as_error(problem, None).to_fault(), None])
    _ended(sock)


def _ended(sock: socket.socket) -> NoReturn:
    """Our end is the peer's to make: what was sent is read by then. Lines to others are open until then, so that they
    hear first why it is over."""
    while sock.recv(1 << 16):
        pass
    os._exit(0)


class Process:
    """Does one run after the other."""

    def __init__(self, mail: Mail) -> None:
        self._mail = mail
        self._kept = Kept()

    def serve(self) -> None:
        while True:
            what = self._mail.job()
            if "drop" in what:
                self._kept.drop(what["drop"])
                continue
            part = Part.of(what)
            self._mail.begin(part)
            told, tensors = self._run(part)
            self._mail.end()
            self._mail.objects.drop(list(self._mail.objects.tensors))
            results.tell(self._mail, told, tensors)

    def _run(self, part: Part) -> Told:
        if part.is_checked:
            return checked.run(part, self._mail, self._kept)
        told: dict[str, Any] = {"offline": 0.0, "online": 0.0, "rounds": 0, "sent": 0, "dealt": 0, "outputs": []}
        tensors: list[torch.Tensor] = []
        begun = self._begin(part) if part.is_party else None
        own = share_inputs(part, self._mail)
        if part.index == part.dealer:  # behind its shares: the parties cannot use much of it up without them
            told |= self._deal(part)
        if begun is not None:
            made, tensors = self._ahead(part, own, begun) if part.ahead else self._compute(part, own, begun)
            told |= made
        elif part.index == part.receiver:
            told["received"], tensors = results.received(part, self._mail, None)
        return told, tensors

    # --- the dealer ---------------------------------------------------------------------------------------

    def _deal(self, part: Part) -> dict[str, Any]:
        began = time.perf_counter()
        known = self._kept.program(part, self._mail)
        dealing, dealt = Dealing(part, self._mail, self._kept), 0
        if places := protocols.to_fix(part, self._kept):
            dealt += dealing.fix(places)
        script = protocols.script_to_run(part, self._kept, known, self._mail)
        check_stock(part.ahead * script.dealt)
        for _ in range(part.ahead or 1):
            dealt += dealing.deal(script)
        return {"offline": time.perf_counter() - began, "dealt": dealt}

    # --- a party ------------------------------------------------------------------------------------------

    def _begin(self, part: Part) -> Begun:
        """A script that this party has not seen in this session is waited for at once: so that nothing is shared with
        whom it is out of step with. Later the same process deals the same, and what is shared need not wait."""
        began = time.perf_counter()
        known, receiving = self._kept.program(part, self._mail), Receiving(part, self._mail)
        fixes = self._fixes(part)
        is_new = taken_by(part, self._kept) not in self._kept.scripts
        script = protocols.script_to_run(part, self._kept, known, self._mail)
        if is_new and part.dealer is not None:
            receiving.begin([script] if fixes.script is None else [fixes.script, script])
        return Begun(known, script, receiving, time.perf_counter() - began, fixes)

    def _fixes(self, part: Part) -> Fixes:
        places = protocols.to_fix(part, self._kept)
        if not places:
            return NOTHING
        if part.batch and not part.ahead:
            raise BadRequest("this was dealt ahead for inputs whose masks are open: prepare the plan anew")
        before = self._kept.place([part.inputs[at].kept_as for at in places])
        return Fixes(places, before, protocols.script_to_fix(part, places))

    def _ahead(self, part: Part, own: Own, begun: Begun) -> Told:
        """What is dealt for runs to come is kept, and so are shares of inputs and their masks."""
        began, receiving, rounds = time.perf_counter(), begun.receiving, Rounds(part, self._mail)
        supply = self._to_fix(part, begun, rounds)
        self._inputs(part, own, begun.fixes, supply, rounds)
        takes = self._takes(part, begun)
        for item in range(part.ahead):
            self._kept.put(part.batch, takes, item, receiving.stocked(begun.script, self._kept.room))
        receiving.all_stocked()
        seconds = begun.seconds + time.perf_counter() - began
        return {"offline": seconds, "rounds": rounds.number, "sent": self._mail.sent}, []

    def _compute(self, part: Part, own: Own, begun: Begun) -> Told:
        began, receiving, rounds = time.perf_counter(), begun.receiving, Rounds(part, self._mail)
        to_fix = self._to_fix(part, begun, rounds)
        supply = self._supply(part, begun, rounds)
        offline, sent, before = begun.seconds + time.perf_counter() - began, self._mail.sent, rounds.number
        began, waited = time.perf_counter(), receiving.waited
        secrets = self._inputs(part, own, begun.fixes, to_fix, rounds)
        party = Party(part.index, part.parties, supply, part.precision)
        known = begun.known
        outputs = rounds.drive(protocols.whole(part, known, party, secrets))
        receiving.end()
        made, tensors = self._result(part, known, outputs)
        waited = receiving.waited - waited
        told = made | {
            "offline": offline + waited,
            "online": time.perf_counter() - began - waited,
            "rounds": rounds.number - before,
            "sent": self._mail.sent - sent,
            "dealt": sent,  # where they make what others have dealt for them
        }
        return told, tensors

    def _to_fix(self, part: Part, begun: Begun, rounds: Rounds) -> Take | None:
        """What is needed to open masks in this run, where any are to be opened."""
        script = begun.fixes.script
        if script is None:
            return None
        if part.dealer is not None:
            return begun.receiving.supply(script)
        seeds = self._seeds(part, 0)
        self._kept.pieces |= pieces_of(part.index, seeds, script, begun.fixes.before)
        supply: Take = rounds.drive(prepare(part.index, seeds, script))
        return supply

    def _inputs(self, part: Part, own: Own, fixes: Fixes, supply: Take | None, rounds: Rounds) -> list[Secret]:
        """This party's shares of all secret inputs; what is to be kept of them is kept, what is to be fixed is."""
        secrets = shares(part, self._mail, own, self._kept)
        if supply is not None:
            party = Party(part.index, part.parties, supply, part.precision)
            made = rounds.drive(fixing(party, [secrets[at] for at in fixes.places], fixes.before))
            fixed = {part.inputs[at].kept_as: secret for at, secret in zip(fixes.places, made, strict=True)}
            for at, each in enumerate(part.inputs):
                secrets[at] = fixed.get(each.kept_as, secrets[at])
        for at, (each, secret) in enumerate(zip(part.inputs, secrets, strict=True)):
            if each.keep or at in fixes.places:
                self._kept.keep(each.kept_as, secret)
            if not each.is_fixed and secret.fixed is not None:
                secrets[at] = replace(secret, fixed=None)
        return secrets

    def _takes(self, part: Part, begun: Begun) -> tuple[object, ...]:
        """What decides whether what was dealt ahead is for a run."""
        return begun.script.digest, *taken_by(part, self._kept)

    def _supply(self, part: Part, begun: Begun, rounds: Rounds) -> Take:
        """Where the run's correlations come from. From here on all that is slow is online."""
        if part.batch:
            return from_stock(self._kept.used(part.batch, self._takes(part, begun), part.item))
        if part.dealer is not None:
            return begun.receiving.supply(begun.script)
        return self._alone(part, begun.script, rounds)

    def _alone(self, part: Part, script: Script, rounds: Rounds) -> Take:
        """Three parties without a dealer make what the run takes."""
        made = prepare(part.index, self._seeds(part, 1), script, self._kept.pieces)
        supply: Take = rounds.drive(made)
        return supply

    def _seeds(self, part: Part, number: int) -> tuple[bytes, bytes]:
        """Those that this one of three has in common with the one before it, which it draws, and the one after it."""
        seed = fresh_seed()
        self._mail.tell([(part.index - 1) % _TRIO], SEED, number, seed)
        return seed, bytes(self._mail.take((part.index + 1) % _TRIO, SEED, number, SEED_BYTES))

    def _result(self, part: Part, known: Known, outputs: Any) -> Told:
        listed, tensors = results.kept_and_told(part, self._kept, known, outputs)
        if part.receiver is None:
            return {"outputs": listed}, tensors
        if part.receiver == part.index:
            received, values = results.received(part, self._mail, (listed, tensors))
            return {"outputs": listed, "received": received}, values
        results.give(part, self._mail, listed, tensors)
        return {"outputs": listed}, []


def warm() -> None:
    """In the zygote: what such processes run, run once, so that nothing has to be imported behind the walls."""
    masks = Masks(bytes(SEED_BYTES), 0).draw((4,), torch.int64)
    tensor_bytes(masks)
    assert isinstance(Supply(bytes(SEED_BYTES)), Supply)
