"""Sizes in sentences, and held to their limits: by the helper itself, and by every call of it in the repository."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from protocol import limits
from protocol.errors import TooLarge
from protocol.sizes import beyond, check_limit, shown

_ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("nbytes", "words"),
    [
        (0, "0 bytes"),
        (1023, "1023 bytes"),
        (1024, "1 KiB"),
        (1536, "1.5 KiB"),
        (1000 * 1024, "1.0 MiB"),
        (8 << 30, "8 GiB"),
    ],
)
def test_bytes_as_people_read_them(nbytes: int, words: str) -> None:
    assert shown(nbytes) == words


def test_what_is_within_its_limit_passes() -> None:
    check_limit("MAX_TAGS", limits.MAX_TAGS, "never said: {nothing}")


def test_what_is_beyond_names_limit_size_and_what_is_allowed() -> None:
    with pytest.raises(TooLarge) as caught:
        check_limit("MAX_TAGS", limits.MAX_TAGS + 1, "{what} has {size} tags; at most {allowed}", what="{it}")
    assert str(caught.value) == f"{{it}} has {limits.MAX_TAGS + 1} tags; at most {limits.MAX_TAGS}"
    assert caught.value.fields == {"limit": "MAX_TAGS", "size": limits.MAX_TAGS + 1, "allowed": limits.MAX_TAGS}


def test_a_limit_of_this_place_goes_before_the_named_one() -> None:
    check_limit("MAX_TAGS", limits.MAX_TAGS + 1, "never said", allowed=limits.MAX_TAGS + 1)
    with pytest.raises(TooLarge, match="2 of 1"):
        check_limit("MAX_TAGS", 2, "{size} of {allowed}", allowed=1)


def test_no_size_is_too_large_to_be_told_of() -> None:
    error = beyond(
        "MAX_RESULT", 1 << 70, "{operation} gives {size:bytes}; at most {allowed:bytes}", operation="aten.mul"
    )
    assert str(error).startswith("aten.mul gives 1024 EiB; at most 8 GiB")
    assert error.fields["size"] == limits.MAX_ID
    assert error.operation == "aten.mul"


def test_every_limit_that_a_check_names_exists() -> None:
    calls = list(_calls())
    assert len(calls) > 40
    for where, call, _ in calls:
        limit = call.args[0]
        has_its_own = any(each.arg == "allowed" for each in call.keywords)
        if isinstance(limit, ast.Constant) and not has_its_own:
            assert hasattr(limits, str(limit.value)), where


def test_every_sentence_that_a_check_has_can_be_said() -> None:
    said = 0
    for where, call, texts in _calls():
        sentence = _text(call.args[2], call.lineno, texts)
        if sentence is not None:
            words = {str(each.arg): 1 for each in call.keywords if each.arg not in ("allowed", None)}
            try:
                beyond("MAX_TAGS", 1, sentence, **words)  # type: ignore[arg-type]
            except (KeyError, IndexError, ValueError) as error:
                raise AssertionError(f"{where}: {sentence!r}: {error!r}") from None
            said += 1
    assert said > 40


Texts = dict[str, list[tuple[int, ast.expr]]]  # by name, the lines where something is assigned to it


def _calls() -> Iterator[tuple[str, ast.Call, Texts]]:
    for folder in ("protocol", "search", "compute", "mpc", "peer", "grid"):
        for path in sorted((_ROOT / folder).rglob("*.py")):
            nodes = [] if path.name == "sizes.py" else list(ast.walk(ast.parse(path.read_text())))
            texts: Texts = {}
            for node in nodes:
                target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
                if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(target, ast.Name) and node.value:
                    texts.setdefault(target.id, []).append((node.lineno, node.value))
            for node in nodes:
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                    if node.func.id in ("check_limit", "beyond"):
                        yield f"{path.relative_to(_ROOT)}:{node.lineno}", node, texts


def _text(value: ast.expr, line: int, texts: Texts) -> str | None:
    """What a sentence is, where that can be read: a literal, what was assigned last before it, or these added up."""
    if isinstance(value, ast.Constant):
        return str(value.value)
    if isinstance(value, ast.Name):
        before = sorted((made for made in texts.get(value.id, ()) if made[0] <= line), key=lambda made: made[0])
        return _text(before[-1][1], before[-1][0], texts) if before else None
    if isinstance(value, ast.BinOp):
        left, right = _text(value.left, line, texts), _text(value.right, line, texts)
        return None if left is None or right is None else left + right
    return None
