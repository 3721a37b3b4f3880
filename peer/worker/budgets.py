"""What principals may take of this machine, and what they have taken. Decides; does not talk to workers.

Memory is what the workers say that they hold: each is told how much is left to it (`allowed`), which it keeps to before
an operation runs. The kernel's own limits stand behind that, for a worker that lies. Processor time is what the peer
reads from the clocks of its workers: a bucket of seconds that fills at the rate of the owner's choice.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from protocol import limits
from protocol.errors import TooLarge
from protocol.sizes import check_limit, shown


@dataclass(frozen=True, slots=True)
class PrincipalStatistics:
    """What one principal has at this peer, and what it has taken since it was first seen.

    Attributes:
        workers: processes that it has now.
        held: bytes of memory that they hold.
        cpu: seconds of processors that its operations took.
        kills: workers of it that were killed for what they took.
    """

    principal: str
    workers: int
    held: int
    cpu: float
    kills: int

    def to_wire(self) -> dict[str, Any]:
        """As `status` tells it (SPEC.md)."""
        fields = {"workers": self.workers, "held": self.held, "cpu": self.cpu, "kills": self.kills}
        return {"id": self.principal, **fields}


@dataclass(slots=True)
class _Account:
    held: dict[object, int] = field(default_factory=dict)  # by worker
    cpu: float = 0.0
    kills: int = 0
    out: int = 0  # bytes of values that its workers gave out, and that are on their way still
    values: int = 0  # how many those are
    debt: float = 0.0  # seconds taken out of the bucket, as of `since`
    since: float = 0.0


class Budgets:
    """The books of all principals.

    Args:
        memory: bytes for all workers of one principal together; None: no bound.
        cpu: cores that one principal may keep busy in the long run; None: no bound.
        burst: seconds that it may take before that counts.
    """

    def __init__(self, memory: int | None = None, cpu: float | None = None, burst: float = limits.CPU_BURST) -> None:
        self._memory = memory
        self._cpu = cpu
        self._burst = burst
        self._accounts: OrderedDict[str, _Account] = OrderedDict()
        self._values = 0  # on their way, of all principals

    # --- memory -------------------------------------------------------------------------------------------

    def began(self, principal: str, worker: object) -> None:
        account = self._accounts.setdefault(principal, _Account())
        self._accounts.move_to_end(principal)
        account.held[worker] = 0
        self._forget()

    def ended(self, principal: str, worker: object) -> None:
        account = self._accounts.get(principal)
        if account is not None:
            account.held.pop(worker, None)

    def holds(self, principal: str, worker: object, nbytes: int) -> None:
        """The worker's own word."""
        account = self._accounts.get(principal)
        if account is not None and worker in account.held:
            account.held[worker] = max(0, nbytes)

    def allowed(self, principal: str, worker: object) -> int | None:
        """What this worker may hold, beside what the principal's others hold. None: there is no bound."""
        account = self._accounts.get(principal)
        if self._memory is None or account is None:
            return self._memory
        others = sum(nbytes for other, nbytes in account.held.items() if other is not worker)
        return max(0, self._memory - others)

    def goes_out(self, principal: str, nbytes: int) -> None:
        """A value that is on its way, in memory of the peer's, until `came_out`. TooLarge where those of one principal
        would take more than it may have: they are nobody's any more who is told what is left."""
        account = self._accounts.get(principal)
        if account is None:
            return
        sentence = "{size} values of yours would be on their way, at most {allowed} are: get one after the other"
        check_limit("OUTGOING_EACH", account.values + 1, sentence)
        sentence = "this peer sends {allowed} values at once, and all of them are on their way: get yours again later"
        check_limit("OUTGOING", self._values + 1, sentence)
        if self._memory is not None and account.out and account.out + nbytes > self._memory:
            raise TooLarge(
                f"values of yours that are on their way take {shown(account.out)} of this peer's memory: with this "
                f"one, of {shown(nbytes)}, it would be more than the {shown(self._memory)} that you may have. Get one "
                "after the other, or have the peer's owner raise --worker-memory",
                limit="worker_memory",
                size=account.out + nbytes,
                allowed=self._memory,
            )
        account.out += nbytes
        account.values += 1
        self._values += 1

    def came_out(self, principal: str, nbytes: int) -> None:
        account = self._accounts.get(principal)
        if account is not None and account.values:
            account.out = max(0, account.out - nbytes)
            account.values -= 1
            self._values -= 1

    def is_far_over(self, nbytes: int) -> bool:
        """Whether a principal's workers, weighed by the system, have so much that they did not keep to the rules."""
        return self._memory is not None and nbytes > self._memory + self._memory // limits.MEMORY_SLACK

    # --- processors ---------------------------------------------------------------------------------------

    def took(self, principal: str, seconds: float, now: float) -> None:
        account = self._accounts.get(principal)
        if account is not None and seconds > 0:
            account.debt = self._debt(account, now) + seconds
            account.since = now
            account.cpu += seconds

    def wait(self, principal: str, now: float) -> int:
        """Seconds until this principal may compute again; 0: it may."""
        account = self._accounts.get(principal)
        if self._cpu is None or account is None:
            return 0
        debt = self._debt(account, now)
        if debt < self._burst:
            return 0
        # Some room at once, or the next operation would be refused after a few milliseconds again.
        return max(1, math.ceil((debt - self._burst * 0.9) / self._cpu))

    def check(self, principal: str, now: float) -> None:
        """TooLarge, with how long to wait, for a principal that has taken more than its share."""
        wait = self.wait(principal, now)
        if wait:
            raise TooLarge(
                f"your operations took more of this peer's processors than your share of {self._share}, and are more "
                f"than {self._burst:g} s ahead of it: ask again in {wait} s, or have the peer's owner raise "
                "--worker-cpu or --worker-burst",
                limit="worker_cpu",
                size=math.ceil(self._debt(self._accounts[principal], now)),
                allowed=math.ceil(self._burst),
                wait=wait,
            )

    @property
    def _share(self) -> str:
        cores = self._cpu or 0.0
        return f"{cores:g} of a core" if cores < 1 else "one core" if cores == 1 else f"{cores:g} cores"

    def _debt(self, account: _Account, now: float) -> float:
        return max(0.0, account.debt - (now - account.since) * (self._cpu or 0.0))

    # --- the books ----------------------------------------------------------------------------------------

    def killed(self, principal: str) -> None:
        """A worker of it had to be killed for what it took."""
        account = self._accounts.get(principal)
        if account is not None:
            account.kills += 1

    def statistics(self) -> tuple[PrincipalStatistics, ...]:
        return tuple(
            PrincipalStatistics(name, len(account.held), sum(account.held.values()), account.cpu, account.kills)
            for name, account in self._accounts.items()
        )

    def _forget(self) -> None:
        """The longest unseen of those that have no worker go. One in debt goes last: to be forgotten is no way out."""
        for choice in (self._idle(in_debt=False), self._idle(in_debt=True)):
            for name in choice:
                if len(self._accounts) <= limits.KNOWN_PRINCIPALS:
                    return
                del self._accounts[name]

    def _idle(self, in_debt: bool) -> Iterable[str]:
        return [
            name
            for name, account in self._accounts.items()
            if not account.held and not account.values and (account.debt >= self._burst) == in_debt
        ]
