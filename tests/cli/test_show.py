"""What the command line prints: safe on a terminal, whole in a pipe, and JSON that others can read."""

from __future__ import annotations

import json
import time

import pytest
import torch

from grid import bars, show
from grid.hits import Hits
from peer.resuming import Wait
from protocol.errors import BadRequest

RECORD = {
    "id": bytes(range(16)),
    "kind": "tensor",
    "peer": "alice",
    "dtype": "float32",
    "shape": [2, 3],
    "nbytes": 24,
    "tags": ["digits", "test"],
    "description": "rows [red]and[/red] \x1b[2J columns",
    "owner": "a" * 52,
    "private": True,
    "labels": ["a" * 52],
}


class Hit:
    record = RECORD


@pytest.mark.parametrize(
    ("nbytes", "text"), [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (47_040_016, "47.0 MB"), (None, "?")]
)
def test_sizes_are_for_people(nbytes: int | None, text: str) -> None:
    assert show.size(nbytes) == text


@pytest.mark.parametrize(("seconds", "text"), [(1.4, "1 s"), (119, "119 s"), (180, "3 min"), (200_000, "2 d")])
def test_durations_are_for_people(seconds: float, text: str) -> None:
    assert show.duration(seconds) == text


def test_a_table_shows_what_a_stranger_wrote_and_does_what_it_says_nowhere(capsys: pytest.CaptureFixture[str]) -> None:
    show.print_hits(Hits("#digits", [Hit()], {"bob": "gone\x07"}, ["carol"]))  # type: ignore[list-item]
    printed = capsys.readouterr().out
    assert "rows [red]and[/red] \\x1b[2J columns" in printed
    assert "\x1b" not in printed
    assert "000102030405" in printed
    assert "#digits #test" in printed
    assert "tensor (private)" in printed
    assert "no answer from bob: gone\\x07" in printed
    assert "carol has more" in printed


def test_a_table_is_not_cut_where_no_terminal_bounds_it(capsys: pytest.CaptureFixture[str]) -> None:
    wide = {**RECORD, "description": "x" * 500}
    show.out().print(show.hits_table([wide]))
    assert "x" * 500 in capsys.readouterr().out


def test_nothing_found_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    show.print_hits(Hits("#a [b]", [], {}))
    assert capsys.readouterr().out == "nothing matches #a [b]\n"


def test_a_record_is_json_with_hex_ids_and_shown_tags() -> None:
    shown = json.loads(json.dumps(show.plain({**RECORD, "target": {"object": b"\1\2", "peer": "b"}})))
    assert shown["id"] == "000102030405060708090a0b0c0d0e0f"
    assert shown["tags"] == ["#digits", "#test"]
    assert shown["target"] == {"object": "0102", "peer": "b"}


def test_fields_leave_out_what_is_not_known(capsys: pytest.CaptureFixture[str]) -> None:
    show.print_fields(show.record_fields(RECORD))
    printed = capsys.readouterr().out
    assert "shape        [2, 3]" in printed
    assert "name " not in printed
    assert "without the leave of" in printed


def test_values_are_json_with_their_dtype() -> None:
    assert show.value_json(torch.tensor([[1, 2]])) == {"dtype": "int64", "shape": [1, 2], "value": [[1, 2]]}
    assert show.value_json(torch.tensor(float("nan"))) == {"dtype": "float32", "shape": [], "value": "nan"}
    assert show.value_json([torch.tensor(True), {"a": 1}]) == [
        {"dtype": "bool", "shape": [], "value": True},
        {"a": 1},
    ]
    assert show.value_json(torch.tensor([1 + 2j]))["value"] == [[1.0, 2.0]]
    with pytest.raises(BadRequest, match="-o FILE"):
        show.value_json(torch.zeros(10_001))


def test_a_number_is_printed_as_one(capsys: pytest.CaptureFixture[str]) -> None:
    show.print_value(torch.tensor(0.5))
    assert capsys.readouterr().out == "0.5\n"


def test_who_is_waited_for_is_said_with_the_seconds() -> None:
    wait = Wait("b\x1bob", 100.0, 60.0)
    assert bars.wait_text(wait, 112.3) == "waiting for b\\x1bob, 12 s of 60"
    assert bars.wait_text(wait, 170.0).endswith(", 60 s of 60")


def test_the_bar_says_so_while_nothing_moves(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")

    def drawn() -> str:
        bar._bars.refresh()
        return capsys.readouterr().err

    with bars.progress("x to bob", "waiting for its disk") as bar:
        bar(10, 100)
        assert "x to bob" in drawn()
        bar.waiting(Wait("bob", time.monotonic(), 60.0))
        assert "waiting for bob, 0 s of 60" in drawn()
        bar.waiting(None)
        assert "waiting" not in drawn()
        bar.waiting(Wait("bob", time.monotonic(), 60.0))
        bar(100, 100)
        last = drawn()
        assert "waiting for its disk" in last and "waiting for bob" not in last


def test_progress_is_silent_where_nobody_looks(capsys: pytest.CaptureFixture[str]) -> None:
    with bars.progress("x") as step:
        step(1, 2)
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", "")
