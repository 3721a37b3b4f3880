"""How the demonstration ends: with 0 where every result was right, with 1 where one was not."""

from __future__ import annotations

import json
import sys

import pytest

from grid import demo
from grid.story import Story
from protocol.errors import SetupError


@pytest.fixture
def outcome(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """What the checks of a demonstration without peers come to."""
    results: list[bool] = []

    async def tell(story: Story, digits: object) -> None:
        for is_right in results:
            story.begin("A chapter [of] it")
            story.code("x[0]")
            story.check("one is one", is_right, "1")

    monkeypatch.setattr(demo, "_tell", tell)
    monkeypatch.setattr(demo.Digits, "load", lambda: None)
    return results


def test_a_wrong_result_ends_it_with_1(outcome: list[bool], capsys: pytest.CaptureFixture[str]) -> None:
    outcome += [True, False]
    assert demo.main() == 1
    printed = capsys.readouterr().out
    assert "WRONG one is one: 1" in printed
    assert "1 were WRONG" in printed
    assert ">>> x[0]" in printed
    assert "A chapter [of] it" in printed


def test_right_results_end_it_with_0(outcome: list[bool], capsys: pytest.CaptureFixture[str]) -> None:
    outcome += [True, True]
    assert demo.main() == 0
    assert "All 2 results are those of local torch" in capsys.readouterr().out


def test_the_figures_are_one_json_object_and_nothing_else(
    outcome: list[bool], capsys: pytest.CaptureFixture[str]
) -> None:
    outcome += [False]
    assert demo.main(as_json=True) == 1
    figures = json.loads(capsys.readouterr().out)
    assert figures["ok"] is False
    assert figures["checks"] == [{"what": "one is one", "ok": False, "found": "1"}]


def test_without_its_data_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(SetupError, match=r"pip install 'peergrid\[demo\]'"):
        demo.main()
