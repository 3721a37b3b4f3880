"""docs/queries.md is true: its examples parse, its mistakes are the ones shown, its tables are complete."""

import re
from pathlib import Path

import pytest

from protocol import limits
from protocol.errors import QueryError
from search import parse_query, query
from search.fields import FIELDS

MANUAL = (Path(__file__).parents[2] / "docs" / "queries.md").read_text(encoding="utf-8")


def blocks(kind):
    return re.findall(rf"^```{kind}\n(.*?)^```$", MANUAL, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("text", [line for block in blocks("query") for line in block.splitlines()])
def test_an_example_parses_and_prints_as_itself(text):
    parsed = parse_query(text)
    assert parse_query(str(parsed)) == parsed


@pytest.mark.parametrize("block", blocks("error"))
def test_a_mistake_is_answered_as_shown(block):
    with pytest.raises(QueryError) as caught:
        parse_query(block.splitlines()[1][2:])
    assert f"{caught.value}\n" == block


def test_the_queries_in_the_first_table_parse():
    first_table = MANUAL.split("## At a glance")[1].split("NOT binds")[0]
    rows = re.findall(r"^\| (`.*?) \| ", first_table, re.MULTILINE)
    examples = [text.replace("\\|", "|") for row in rows for text in re.findall(r"`(.+?)`(?: or|$)", row)]
    assert len(examples) == 11
    for text in examples:
        parse_query(text)


def test_every_field_is_in_the_table_with_its_operators():
    rows = dict(re.findall(r"^\| `(\w+)` \| .* \| (.*?) \|$", MANUAL.split("## Fields")[1], re.MULTILINE))
    assert rows.keys() == FIELDS.keys()
    for name, rule in FIELDS.items():
        assert (rows[name] == "all") == rule.is_ordered


def test_the_grammar_is_the_one_in_the_code():
    in_manual = [line.split() for line in MANUAL.split("## Grammar")[1].split("\n") if " = " in line]
    in_code = [line.split() for line in query.__doc__.split("\n") if " = " in line]
    assert in_manual == in_code != []


def test_the_limits_are_those_of_the_code():
    for limit in (limits.MAX_QUERY, limits.MAX_QUERY_TERMS, limits.MAX_QUERY_DEPTH, limits.MAX_HITS, limits.MAX_TAGS):
        assert f"{limit:,} " in MANUAL
