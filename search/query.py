"""The query grammar: text in, canonical tree of terms out (search/terms.py), or an error at a column.

    query   = [ or ]                            empty: everything
    or      = and { "|" and }
    and     = not { not }                       side by side
    not     = ( "-" | "!" ) not | term
    term    = "(" or ")" | "*" | tag | field | word | phrase
    tag     = "#" tag-text [ "*" ]              "*" : any tag that begins so
    field   = name operator value               operator = ":" "=" "==" "!=" "<" "<=" ">" ">="
    value   = run | phrase                      white space may stand around the operator
    word    = run                               without : = < > * and not beginning with - ! #
    phrase  = '"' { character | '\\"' | '\\\\' } '"'
    run     = characters other than white space ( ) | "

Recursive descent, one method a rule. Length, number of terms and nesting are limited (protocol/limits.py).
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final, NoReturn

from protocol import limits
from protocol.errors import BadTag, QueryError
from search.fields import FIELDS, hint_for
from search.tags import parse_prefix, parse_tag
from search.terms import EVERYTHING, RESERVED, Field, Query, Tag, TagPrefix, Word, all_of, any_of, negate
from search.text import first_control, fold

_SPACE: Final = re.compile(r"\s*")
_RUN: Final = re.compile(r"[^\s()|\"]+")
_PHRASE: Final = re.compile(r'"((?:[^"\\]|\\.)*)"', re.DOTALL)
_ESCAPE: Final = re.compile(r"\\([\"\\])")
_OPERATOR: Final = re.compile(r"!=|<=|>=|==|[:=<>]")
_SPACED_OPERATOR: Final = re.compile(r"\s+(!=|<=|>=|==|[:=<>])")
_STRAY: Final = "')' closes a parenthesis that was never opened"
_EQUALS: Final = (":", "=", "==", "!=")


def parse_query(text: str) -> Query:
    """The canonical tree of a query. `parse_query(str(query)) == query` for every query it gives.

    Raises:
        QueryError: the text is not a query. `fields`: query (the text, unprintable characters replaced one
            for one, cut where too long), column (index from 0 of the character that is wrong).
    """
    if not isinstance(text, str):
        raise QueryError(f"a query is text, not {type(text).__name__}", query="", column=0)
    if len(text) > limits.MAX_QUERY:
        raise _too_long(text, len(text))
    return _parse(text)


@lru_cache(maxsize=256)  # the same few queries come again and again, and their trees are immutable
def _parse(text: str) -> Query:
    query = _Parser(text).parse()
    # Printing adds blanks and quotes, so that a long query may print as one that would be refused.
    if 2 * len(text) > limits.MAX_QUERY and len(str(query)) > limits.MAX_QUERY:
        raise _too_long(text, len(str(query)))
    return query


def _too_long(text: str, length: int) -> QueryError:
    shown = _printable(text[:60])
    return QueryError(
        f"the query has {length} characters; at most {limits.MAX_QUERY}", query=f"{shown}...", column=len(shown)
    )


def _printable(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else " " if c.isspace() else "\N{REPLACEMENT CHARACTER}" for c in text)


class _Parser:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.depth = 0
        self.terms = 0

    def parse(self) -> Query:
        control = first_control(self.text)
        if control is not None:
            self._fail(f"the character {self.text[control]!a} cannot be in a query", control)
        self._skip_space()
        if not self._peek():
            return EVERYTHING
        query = self._or()
        if self._peek():
            self._fail(_STRAY)
        return query

    # --- what is between terms ------------------------------------------------------------------------
    def _or(self) -> Query:
        parts = [self._and()]
        while self._peek() == "|":
            bar = self.at
            self._advance()
            if self._peek() in ("", "|", ")"):
                self._fail("'|' needs a term on each side; a single one means OR", bar)
            parts.append(self._and())
        return any_of(parts)

    def _and(self) -> Query:
        if self._peek() == "|":
            self._fail("'|' needs a term before it")
        if self._peek() == ")":
            self._fail(_STRAY)
        parts = [self._not()]
        while self._peek() not in ("", "|", ")"):
            parts.append(self._not())
        return all_of(parts)

    def _not(self) -> Query:
        sign = self._peek()
        if sign not in ("-", "!") or self.text.startswith("!=", self.at):
            return self._term()
        start = self.at
        self._enter(start)
        self._advance()
        if self._peek() in ("", "|", ")"):
            self._fail(f"'{sign}' needs a term after it, the one to leave out", start)
        query = negate(self._not())
        self.depth -= 1
        return query

    # --- terms ----------------------------------------------------------------------------------------
    def _term(self) -> Query:
        first = self._peek()
        if first == "(":
            return self._group()
        self.terms += 1
        if self.terms > limits.MAX_QUERY_TERMS:
            self._fail(f"more than {limits.MAX_QUERY_TERMS} terms; a query has at most {limits.MAX_QUERY_TERMS}")
        if first == '"':
            return self._phrase_term()
        query = self._tag() if first == "#" else self._word()
        self._skip_space()
        return query

    def _group(self) -> Query:
        start = self.at
        self._enter(start)
        self._advance()
        if self._peek() == ")":
            self._fail("there is nothing between these parentheses", start)
        if not self._peek():
            self._fail("'(' is never closed; put a ')' where it ends", start)
        query = self._or()
        if not self._peek():
            self._fail("'(' is never closed; put a ')' where it ends", start)
        self.depth -= 1
        self._advance()
        return query

    def _tag(self) -> Query:
        start = self.at
        text = self._run()
        try:
            return TagPrefix(parse_prefix(text[:-1])) if text.endswith("*") else Tag(parse_tag(text))
        except BadTag as error:
            self._fail(error.message, start + int(error.fields["position"]))

    def _phrase_term(self) -> Query:
        start = self.at
        text = self._phrase()
        self._skip_space()
        if not fold(text):
            self._fail("there is nothing to search for between these quotes", start)
        return Word(text)

    def _word(self) -> Query:
        start = self.at
        run = self._run()
        operator = _OPERATOR.search(run)
        if operator is not None:
            self.at = start + operator.end()
            return self._field(run[: operator.start()], operator.group(), start)
        spaced = _SPACED_OPERATOR.match(self.text, self.at)
        if spaced is not None and run.lower() in FIELDS:
            self.at = spaced.end()
            return self._field(run, spaced.group(1), start)
        if run == "*":
            return EVERYTHING
        self._check_word(run, start)
        return Word(run)

    def _check_word(self, run: str, start: int) -> None:
        if run in RESERVED or not run.strip("&"):
            instead = {"OR": "write | for OR", "NOT": "write - for NOT"}.get(run, "terms side by side already mean AND")
            self._fail(f'{instead}; to search for this very word put it in quotes: "{run}"', start)
        if "*" in run:
            self._fail(
                "a word matches anywhere in a text, so it needs no '*'; quotes search for a '*'", self._star(start)
            )
        if not fold(run):
            self._fail("there is nothing to search for in this word", start)

    def _star(self, start: int) -> int:
        return self.text.index("*", start)

    def _field(self, name: str, operator: str, start: int) -> Query:
        """The comparison whose name begins at `start`; the parser stands behind its operator."""
        rule = FIELDS.get(name.lower())
        if not name:
            self._fail(f"'{operator}' needs a field before it: {', '.join(FIELDS)}", start)
        if rule is None:
            self._fail(f"there is no field {name[:40]!a}; {hint_for(name.lower())}", start)
        kept = ":" if operator in _EQUALS else operator
        if kept not in rule.operators:
            self._fail(f"{name.lower()} has no order; it takes : = and !=", self.at - len(operator))
        self._skip_space()
        value_at = self.at
        if self._peek() in ("", "(", ")", "|"):
            self._fail(f"{name.lower()}{operator} needs a value", value_at)
        text = self._phrase() if self._peek() == '"' else self._run()
        try:
            query = Field(name.lower(), kept, rule.read(text))
        except ValueError as error:
            self._fail(str(error), value_at)
        return negate(query) if operator == "!=" else query

    # --- characters -----------------------------------------------------------------------------------
    def _peek(self) -> str:
        return self.text[self.at : self.at + 1]

    def _advance(self) -> None:
        self.at += 1
        self._skip_space()

    def _skip_space(self) -> None:
        found = _SPACE.match(self.text, self.at)
        self.at = found.end() if found else self.at

    def _run(self) -> str:
        found = _RUN.match(self.text, self.at)
        assert found is not None, "called only where a run begins"
        self.at = found.end()
        return found.group()

    def _phrase(self) -> str:
        found = _PHRASE.match(self.text, self.at)
        if found is None:
            self._fail("this quote is never closed; put a '\"' where the text ends")
        self.at = found.end()
        return _ESCAPE.sub(r"\1", found.group(1))

    def _enter(self, column: int) -> None:
        self.depth += 1
        if self.depth > limits.MAX_QUERY_DEPTH:
            self._fail(f"nested more than {limits.MAX_QUERY_DEPTH} deep; simplify the query", column)

    def _fail(self, message: str, column: int | None = None) -> NoReturn:
        raise QueryError(message, query=_printable(self.text), column=self.at if column is None else column) from None
