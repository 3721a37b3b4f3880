"""Programs from text, as program_text.py writes it or somebody by hand. Torch-free."""

from __future__ import annotations

import base64
import json
import re
import struct
from collections.abc import Callable
from typing import Any, Final

from compute.program_parts import Body, Input, Node
from compute.program_wire import Parts
from compute.wire import MAX_VALUE_DEPTH, shown
from protocol.errors import BadProgram
from protocol.sizes import check_limit

_WORDS: Final = {"None": None, "True": True, "False": False}
_TOKEN: Final = re.compile(
    r"""\s+|\#.*
    |(?P<text>"(?:[^"\\]|\\.)*")
    |(?P<value>%[0-9]{1,9})|(?P<constant>@[0-9]{1,9})|(?P<body>&[0-9]{1,9})
    |(?P<number>-?(?:inf|nan(?::[0-9a-f]{16})?)(?![A-Za-z0-9_.])|-?[0-9]+(?:\.[0-9]+)?(?:e[+-]?[0-9]+)?)
    |(?P<word>[A-Za-z_][A-Za-z0-9_.]*)
    |(?P<mark>[()\[\]{}:,=?])""",
    re.VERBOSE,
)
_MOST_DIGITS: Final = 400  # of a number: the longest float has fewer


def from_text(text: str) -> Parts:
    """What the text says; whether that is a program is for Program to check. BadProgram names the line."""
    check_limit("MAX_PROGRAM_TEXT", len(text), "a program's text of {size} characters; at most {allowed}")
    constants: list[Any] = []
    blocks: list[_Block] = []
    for number, line in enumerate(text.splitlines(), 1):
        try:
            tokens = _Tokens(line)
            if not tokens.is_done():
                _read_line(tokens, constants, blocks)
                tokens.end()
        except _Wrong as wrong:
            raise BadProgram(f"line {number}: {wrong}") from None
    return _parts(constants, blocks)


class _Wrong(Exception):
    """What is wrong with a line."""


class _Block:
    """A body, or the program itself, while it is read."""

    def __init__(self) -> None:
        self.inputs: list[Input] = []
        self.nodes: list[Node] = []
        self.outputs: Any = None
        self.is_done = False


def _parts(constants: list[Any], blocks: list[_Block]) -> Parts:
    if not blocks or not all(block.is_done for block in blocks):
        raise BadProgram("a text that ends before `return`: it has bodies, then `program`, and a return in each")
    last = blocks.pop()
    bodies = [Body(tuple(block.inputs), tuple(block.nodes), block.outputs) for block in blocks]
    return Parts(tuple(last.inputs), tuple(last.nodes), last.outputs, tuple(constants), tuple(bodies))


def _read_line(tokens: _Tokens, constants: list[Any], blocks: list[_Block]) -> None:
    kind, first = tokens.next()
    if kind == "constant":
        _check_number(first, len(constants))
        tokens.mark("=")
        constants.append(_read_constant(tokens))
    elif first == "body" and not (blocks and not blocks[-1].is_done):
        _check_number(tokens.of("body"), len(blocks))
        blocks.append(_Block())
    elif first == "program" and not (blocks and not blocks[-1].is_done):
        blocks.append(_Block())
    elif not blocks or blocks[-1].is_done:
        raise _Wrong(f"{shown(first)} where a constant, a body or the program begins")
    elif kind == "value":
        _check_number(first, len(blocks[-1].inputs) + len(blocks[-1].nodes))
        tokens.mark("=")
        _read_assigned(tokens, blocks[-1])
    elif first == "return":
        blocks[-1].outputs, blocks[-1].is_done = _read_value(tokens, 0), True
    else:
        raise _Wrong(f"{shown(first)} is neither `%number = ...` nor `return`")


def _check_number(token: str, expected: int) -> None:
    if token[1:] != str(expected):
        raise _Wrong(f"{token} where {token[0]}{expected} is next")


def _read_constant(tokens: _Tokens) -> dict[str, Any]:
    dtype, shape = tokens.of("word"), _read_value(tokens, 0)
    try:
        data = base64.b64decode(_text(tokens.of("text")), validate=True)
    except ValueError:
        raise _Wrong("the data of a constant are not base64") from None
    return {"data": data, "dtype": dtype, "shape": shape}


def _read_assigned(tokens: _Tokens, block: _Block) -> None:
    name = tokens.of("word")
    if name != "input":
        args, kwargs = _read_call(tokens)
        block.nodes.append(Node(name, args, kwargs))
        return
    if block.nodes:
        raise _Wrong("an input after an operation; inputs come first")
    called, dtype, shape, content = tokens.name(), None, None, None
    if tokens.skip(":"):
        dtype = tokens.of("word")
        if tokens.skip("["):
            shape = tuple(_read_until(tokens, "]", _read_dim))
    if tokens.skip("content"):
        content = _text(tokens.of("text"))
    block.inputs.append(Input(called, None if dtype == "any" else dtype, shape, content))


def _read_dim(tokens: _Tokens) -> Any:
    kind, token = tokens.next()
    if kind == "number":
        return _number(token)
    return None if token == "?" else token


def _read_call(tokens: _Tokens) -> tuple[list[Any], dict[str, Any]]:
    args: list[Any] = []
    kwargs: dict[str, Any] = {}

    def argument(tokens: _Tokens) -> None:
        if not tokens.is_named():
            if kwargs:
                raise _Wrong("an argument without a name after one with a name")
            args.append(_read_value(tokens, 0))
            return
        name = tokens.name()
        tokens.mark("=")
        if name in kwargs:
            raise _Wrong(f"two arguments of the name {shown(name)}")
        kwargs[name] = _read_value(tokens, 0)

    tokens.mark("(")
    _read_until(tokens, ")", argument)
    return args, kwargs


def _read_until(tokens: _Tokens, end: str, item: Callable[[_Tokens], Any]) -> list[Any]:
    found: list[Any] = []
    while not tokens.skip(end):
        found.append(item(tokens))
        if not tokens.skip(","):
            tokens.mark(end)
            break
    return found


def _read_value(tokens: _Tokens, depth: int) -> Any:
    if depth > 2 * MAX_VALUE_DEPTH:
        raise _Wrong(f"values nest more than {MAX_VALUE_DEPTH} deep")
    kind, token = tokens.next()
    if kind == "text":
        return _text(token)
    if kind == "number":
        return _number(token)
    if kind == "value":
        return _read_reference(tokens, int(token[1:]))
    if kind in ("constant", "body"):
        return {kind: int(token[1:])}
    if kind == "word":
        return _read_word(tokens, token)
    return _read_nested(tokens, token, depth)


def _read_reference(tokens: _Tokens, number: int) -> dict[str, Any]:
    if not tokens.skip("["):
        return {"node": number}
    item = _number(tokens.of("number"))
    tokens.mark("]")
    return {"node": number, "item": item}


def _read_word(tokens: _Tokens, word: str) -> Any:
    if word in _WORDS:
        return _WORDS[word]
    if word == "complex":
        tokens.mark("(")
        return {"complex": _read_until(tokens, ")", lambda tokens: _number(tokens.of("number")))}
    kind, _, name = word.partition(".")
    if kind in ("dtype", "memory_format"):
        return {kind: name}
    raise _Wrong(f"{shown(word)} is no value")


def _read_nested(tokens: _Tokens, mark: str, depth: int) -> Any:
    def inner(tokens: _Tokens) -> Any:
        return _read_value(tokens, depth + 1)

    if mark == "[":
        return _read_until(tokens, "]", inner)
    if mark == "(":
        return {"tuple": _read_until(tokens, ")", inner)}
    if mark != "{":
        raise _Wrong(f"{shown(mark)} where a value belongs")
    entries: dict[str, Any] = {}

    def entry(tokens: _Tokens) -> None:
        name = tokens.name()
        tokens.mark(":")
        if name in entries:
            raise _Wrong(f"two entries of the name {shown(name)}")
        entries[name] = inner(tokens)

    _read_until(tokens, "}", entry)
    return {"map": entries}


def _number(token: str) -> Any:
    if len(token) > _MOST_DIGITS:
        raise _Wrong(f"a number of {len(token)} characters")
    if token.startswith("nan:"):
        (value,) = struct.unpack(">d", bytes.fromhex(token[4:]))
        if value == value:
            raise _Wrong(f"{token} is a number")
        return value
    return float(token) if any(mark in token for mark in ".enf") else int(token)


def _text(token: str) -> str:
    try:
        return str(json.loads(token))
    except ValueError:
        raise _Wrong(f"{shown(token)} is no text as JSON writes it") from None


class _Tokens:
    """The words of one line, one after the other."""

    def __init__(self, line: str) -> None:
        self._found: list[tuple[str, str]] = []
        self._at = 0
        at = 0
        while at < len(line):
            match = _TOKEN.match(line, at)
            if match is None:
                raise _Wrong(f"nothing begins with {shown(line[at : at + 20])}")
            if match.lastgroup is not None:
                self._found.append((match.lastgroup, match[0]))
            at = match.end()

    def is_done(self) -> bool:
        return self._at >= len(self._found)

    def end(self) -> None:
        if not self.is_done():
            raise _Wrong(f"{shown(self._found[self._at][1])} behind what should be the end of the line")

    def next(self) -> tuple[str, str]:
        if self.is_done():
            raise _Wrong("the line ends too early")
        self._at += 1
        return self._found[self._at - 1]

    def of(self, kind: str) -> str:
        found, token = self.next()
        if found != kind:
            raise _Wrong(f"{shown(token)} where a {kind} belongs")
        return token

    def mark(self, token: str) -> None:
        if not self.skip(token):
            raise _Wrong(f"{token!r} is missing")

    def skip(self, token: str) -> bool:
        """Whether this stands next; it is left behind then."""
        is_next = not self.is_done() and self._found[self._at][1] == token
        self._at += is_next
        return is_next

    def name(self) -> str:
        kind, token = self.next()
        if kind not in ("word", "text"):
            raise _Wrong(f"{shown(token)} where a name belongs")
        return token if kind == "word" else _text(token)

    def is_named(self) -> bool:
        """Whether a name with = behind it stands next."""
        after = self._at + 1
        is_name = after < len(self._found) and self._found[self._at][0] in ("word", "text")
        return is_name and self._found[after] == ("mark", "=")
