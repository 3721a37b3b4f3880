"""What the body of a loop reaches from outside is looked at, and that of libraries as far as there is room."""

from __future__ import annotations

import os
from types import FunctionType

import pytest

from compute.counting import numbers
from protocol.errors import CannotCapture

MUCH = 300_000


def test_what_only_an_installed_library_reaches_is_no_reason_to_refuse() -> None:
    file = os.path.join(os.sep, "site-packages", "library.py")
    helper = FunctionType(compile("everything", file, "eval"), {"everything": [7, [[] for _ in range(MUCH)]]})
    state = {"epoch": 3}

    def body() -> object:
        return helper(), state

    found = numbers(body)
    assert found["state['epoch']"] == 3
    assert found["everything[0]"] == 7, "as far as there is room"


def test_what_the_users_own_code_reaches_is() -> None:
    everything = [[] for _ in range(MUCH)]  # type: ignore[var-annotated]

    def body() -> object:
        return everything

    with pytest.raises(CannotCapture, match="reaches more than 300,000 values"):
        numbers(body)
