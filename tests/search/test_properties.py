"""Claims about every query and every object, tried on random ones."""

import sqlite3
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from protocol.errors import QueryError
from protocol.tensors import ITEMSIZE
from search import Index, all_of, any_of, matches, migrate, negate, parse_query
from search.fields import KINDS
from search.terms import EVERYTHING, And, Field, Not, Or, Tag, TagPrefix, Word
from search.text import first_control, fold

COMMON: dict[str, Any] = {"deadline": None, "database": None}
ALICE, BOB = "a" * 52, "bob3" * 13

# --- what objects and queries are made of: few values, so that they meet -----------------------------------
tags = st.sampled_from(["a", "b", "a/b", "a/c", "ab", "mnist:v1", "x-ray", "0", "a.b_c"])
prefixes = st.sampled_from(["", "a", "a/", "x", "m", "zz", "a/b"])
scripts = ["Straße", "STRASSE", "café", "cafe\u0301", "İ", "ı", "\ufdfa", "手書き", "\u00a0a", "\u0301"]
signs = ["%", "_", "'", '"', "\\", "*", "a*", "-x", "#a", "AND", "1:2"]
phrases = st.sampled_from(["a", "Digits", "DIGITS", "hand written", "hand\nwritten", *scripts, *signs])
free_text = st.text(max_size=6).filter(lambda text: first_control(text) is None)
words = (phrases | free_text).filter(lambda text: bool(fold(text)))
owners = st.sampled_from([ALICE, BOB, "ab" * 26])
sizes = st.sampled_from([0, 1, 7, 999, 1000, 1024, 1536, 10**9, 1 << 40])
dims = st.sampled_from([0, 1, 2, 7, 10, 28, 1000])
shapes = st.lists(dims, max_size=3)
starts = st.sampled_from([0, 1_767_225_600, 1_767_225_660, 1_769_904_000])
dates = st.sampled_from(
    ["1970", "2026", "2026-01", "2026-02", "2026-01-01", "2026-01-02", "2026-01-01T00:00", "2026-01-01T00:01:00"]
)
ids = st.binary(min_size=2, max_size=2).map(lambda start: start + bytes(14)) | st.binary(min_size=16, max_size=16)


@st.composite
def records(draw):
    kind = draw(st.sampled_from(KINDS))
    is_plain = kind == "tensor" or draw(st.booleans())
    return {
        "id": draw(ids),
        "kind": kind,
        "name": draw(st.none() | words),
        "owner": draw(owners),
        "tags": draw(st.lists(tags, unique=True, max_size=4)),
        "description": " ".join(draw(st.lists(words, max_size=3))),
        "dtype": draw(st.sampled_from(sorted(ITEMSIZE))) if is_plain else None,
        "shape": draw(shapes) if is_plain else None,
        "nbytes": draw(sizes),
        "private": draw(st.booleans()),
        "labels": draw(st.lists(owners, max_size=2)),
        "created": draw(starts) + draw(st.sampled_from([0.0, 0.25, 59.999, 86_399.5, 86_400.0])),
        "published": True,
    }


def text_fields(name):
    return (words | words.map(lambda text: text + "*") | st.just("*")).map(lambda text: Field(name, ":", text))


equals = st.just(":")


def parsed(name, values, operators=equals):
    return st.builds(lambda operator, value: parse_query(f"{name}{operator}{value}"), operators, values)


orders = st.sampled_from([":", "<", "<=", ">", ">="])
any_dims = st.lists(st.just("*") | dims.map(str), min_size=1, max_size=3).map("x".join)
terms = st.one_of(
    st.just(EVERYTHING),
    tags.map(Tag),
    tags.map(Tag),
    prefixes.map(TagPrefix),
    words.map(Word),
    text_fields("name"),
    st.sampled_from(["alice", "al*", "bob", "*", ALICE[:10], BOB]).map(lambda text: Field("peer", ":", text)),
    parsed("kind", st.sampled_from([*KINDS, "t*", "*", "p*"])),
    parsed("dtype", st.sampled_from([*ITEMSIZE, "float*", "*", "int*"])),
    parsed("shape", any_dims | st.just("scalar")),
    parsed("private", st.sampled_from(["yes", "no"])),
    parsed("owner", st.sampled_from(["a", "ab", "bob3", ALICE])),
    parsed("id", st.text("0123456789abcdef", min_size=1, max_size=4)),
    parsed("rows", dims, orders),
    parsed("size", sizes, orders),
    parsed("created", dates, orders),
)
queries = st.recursive(
    terms,
    lambda inner: st.one_of(
        inner.map(negate),
        st.lists(inner, min_size=2, max_size=4).map(all_of),
        st.lists(inner, min_size=2, max_size=4).map(any_of),
    ),
    max_leaves=10,
)


# --- claims -----------------------------------------------------------------------------------------------
@settings(max_examples=400, **COMMON)
@given(
    objects=st.lists(records(), max_size=8, unique_by=lambda r: r["id"]),
    asked=st.lists(queries, min_size=1, max_size=6),
)
def test_the_index_finds_exactly_what_the_reference_says(objects, asked):
    db = sqlite3.connect(":memory:", isolation_level=None)
    migrate(db)
    index = Index("alice", ALICE)
    for record in objects:
        index.insert(db, record)
    for query in asked:
        expected = [record["id"] for record in reversed(objects) if matches(query, record, "alice", ALICE)]
        assert [record["id"] for record in index.find(db, query).records] == expected, str(query)
        cut = index.find(db, query, limit=2)
        assert [record["id"] for record in cut.records] == expected[:2]
        assert cut.truncated == (len(expected) > 2)
    db.close()


changes = st.lists(
    st.one_of(
        st.tuples(st.just("insert"), records()),
        st.tuples(st.just("delete"), st.integers(0, 5)),
        st.tuples(st.just("tags"), st.integers(0, 5), st.lists(tags, unique=True, max_size=4)),
        st.tuples(st.just("describe"), st.integers(0, 5), words),
    ),
    max_size=20,
)


@settings(max_examples=150, **COMMON)
@given(steps=changes)
def test_tables_and_counts_stay_right_through_any_changes(steps):
    db = sqlite3.connect(":memory:", isolation_level=None)
    migrate(db)
    index, model = Index("alice", ALICE), {}
    for step, *arguments in steps:
        if step == "insert":
            if arguments[0]["id"] not in model:
                index.insert(db, arguments[0])
                model[arguments[0]["id"]] = dict(arguments[0])
        elif model:
            id = sorted(model)[arguments[0] % len(model)]
            if step == "delete":
                assert index.delete(db, id) is not None
                del model[id]
            elif step == "tags":
                model[id]["tags"] = list(index.set_tags(db, id, arguments[1]))
            else:
                index.describe(db, id, arguments[1])
                model[id]["description"] = arguments[1]
    _check_tables(db, index, model)
    db.close()


def _check_tables(db, index, model):
    holder = {"peer": "alice", "peer_id": ALICE}
    assert {id: index.get(db, id) for id in model} == {id: record | holder for id, record in model.items()}
    carried = [tag for record in model.values() for tag in record["tags"]]
    assert dict(db.execute("SELECT name, n FROM tags").fetchall()) == {tag: carried.count(tag) for tag in set(carried)}
    pairs = db.execute(
        "SELECT o.uid, t.name FROM object_tags x JOIN tags t ON t.id = x.tag_id JOIN objects o ON o.id = x.object_id"
    ).fetchall()
    assert sorted(pairs) == sorted((id, tag) for id, record in model.items() for tag in record["tags"])
    assert db.execute("SELECT count(*) FROM object_tags").fetchone()[0] == len(carried)
    totals = index.statistics(db)
    assert (totals.objects, totals.bytes) == (len(model), sum(record["nbytes"] for record in model.values()))
    for record in model.values():
        text = record["description"]
        if fold(text):
            assert record["id"] in [found["id"] for found in index.find(db, Word(text)).records]


@settings(max_examples=500, **COMMON)
@given(query=queries)
def test_a_query_prints_as_text_that_reads_as_the_same_query(query):
    again = parse_query(str(query))
    assert again == query
    assert str(again) == str(query)


SIGNS = [
    *'()|"\\-!#*:=<> \t\n',
    "!=",
    ">=",
    "#a",
    "#a/",
    "kind",
    "rows",
    "size",
    "tensor",
    "5",
    "x",
    "é",
    "\0",
    "\ud800",
    "AND",
]


@settings(max_examples=500, **COMMON)
@given(text=st.lists(st.sampled_from(SIGNS), max_size=20).map("".join) | st.text(max_size=30))
@example(text="(" * 2000)
@example(text="-" * 2000)
@example(text='"' + "\\" * 2001)
def test_any_text_is_a_query_or_an_error_at_a_column_of_it(text):
    try:
        query = parse_query(text)
    except QueryError as error:
        assert 0 <= error.column <= len(error.fields["query"]) <= len(text)
        assert error.fields["query"].isprintable()
    else:
        assert parse_query(str(query)) == query


@settings(max_examples=200, **COMMON)
@given(query=queries, record=records())
def test_the_algebra_of_queries_is_that_of_truth(query, record):
    answer = matches(query, record, "alice", ALICE)
    assert matches(negate(query), record, "alice", ALICE) is not answer
    assert matches(all_of([query, negate(query)]), record, "alice", ALICE) is False
    assert matches(any_of([query, negate(query)]), record, "alice", ALICE) is True


@settings(max_examples=200, **COMMON)
@given(query=queries)
def test_trees_are_canonical(query):
    def check(node):
        if isinstance(node, And | Or):
            assert len(node.parts) > 1
            for part in node.parts:
                assert type(part) is not type(node)
                check(part)
        elif isinstance(node, Not):
            assert not isinstance(node.part, Not)
            check(node.part)

    check(query)
