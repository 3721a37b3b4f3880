"""Which seed a worker gets."""

from __future__ import annotations

import pytest

from peer.seeds import Seeds, check_seed
from protocol import limits
from protocol.errors import BadRequest

NONE: frozenset[str] = frozenset()


def test_each_worker_begins_with_the_seed_and_one_that_starts_again_with_another() -> None:
    seeds = Seeds()
    assert seeds.of_worker("me", NONE) is None
    seeds.set("me", 7)
    private = frozenset({"you"})
    first = [seeds.of_worker("me", NONE), seeds.of_worker("me", private)]
    again = [seeds.of_worker("me", NONE), seeds.of_worker("me", NONE)]
    assert first == [7, 7] and len({7, *again}) == 3
    assert seeds.of_worker("other", NONE) is None
    seeds.set("me", 7)
    assert [seeds.of_worker("me", NONE) for _ in range(3)] == [7, *again]


def test_seeds_are_kept_for_a_bounded_number_of_principals() -> None:
    seeds = Seeds()
    for number in range(limits.MAX_SESSIONS + 1):
        seeds.set(str(number), number)
    assert seeds.of_worker("0", NONE) is None and seeds.of_worker(str(limits.MAX_SESSIONS), NONE) is not None


@pytest.mark.parametrize(
    ("args", "kwargs", "outs"),
    [([], {}, []), ([-1], {}, []), ([1 << 63], {}, []), ([True], {}, []), ([1.0], {}, []), ([1], {"a": 1}, []),
     ([1], {}, [bytes(16)])],
)  # fmt: skip
def test_anything_else_is_no_seed(args: list[object], kwargs: dict[str, object], outs: list[object]) -> None:
    assert check_seed([5], {}, []) == 5
    with pytest.raises(BadRequest, match="2\\*\\*63"):
        check_seed(args, kwargs, outs)
