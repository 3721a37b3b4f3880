"""How a query runs: where it starts, and that nothing a stranger wrote becomes SQL."""

import pytest

from protocol.errors import BadTag, QueryError
from search import EVERYTHING, NOTHING, compile_query, matches, parse_query
from search.compile import TagCounts
from search.terms import Field, Word

COUNTS = TagCounts({"rare": (7, 10), "common": (8, 100_000), "middle": (9, 1_000)}, {"few/": 3, "many/": 50_000})


def compiled(text, counts=COUNTS):
    return compile_query(parse_query(text), counts, 100, "alice", "a" * 52)


def plan(db, text):
    sql, values = compiled(text)
    return [row[3] for row in db.execute("EXPLAIN QUERY PLAN " + sql, values)]


@pytest.mark.parametrize("text", ["#rare #common #middle", "#common #middle #rare", "#common (#middle #rare)"])
def test_tags_are_joined_rarest_first_however_they_are_written(db, text):
    sql, values = compiled(text)
    assert sql.count("CROSS JOIN") == 3
    assert values == (7, 9, 8, 100)
    assert plan(db, text) == [
        "SEARCH t0 USING PRIMARY KEY (tag_id=?)",
        "SEARCH t1 USING PRIMARY KEY (tag_id=? AND object_id=?)",
        "SEARCH t2 USING PRIMARY KEY (tag_id=? AND object_id=?)",
        "SEARCH o USING INTEGER PRIMARY KEY (rowid=?)",
    ]


def test_a_tag_twice_is_joined_once():
    assert compiled("#rare #RARE")[0].count("object_tags") == 1


def test_a_tag_that_no_object_has_ends_the_search():
    assert compiled("#absent #common") == (compile_query(NOTHING, COUNTS, 1)[0], ())
    assert compiled("#absent | #rare") == compiled("#rare")
    assert compiled("-#absent #rare") == compiled("#rare")


@pytest.mark.parametrize(
    "text",
    [
        "#few/* #common",
        "(#rare | #middle) #common",
        "id:abcdef #common",
        "#few/*",
        "#rare | id:ab",
        "(#rare kind:model) | #middle",
    ],
)
def test_what_names_few_objects_is_looked_up_first(db, text):
    steps = plan(db, text)
    assert steps[0] == "SEARCH o USING INTEGER PRIMARY KEY (rowid=?)"
    assert not any(step.startswith("SCAN") for step in steps)


@pytest.mark.parametrize("text", ["#rare #many/*", "#rare (#common | #middle)", "#middle id:a", "#rare kind:tensor x"])
def test_a_rarer_tag_is_the_better_start(db, text):
    assert plan(db, text)[0] == "SEARCH t0 USING PRIMARY KEY (tag_id=?)"


@pytest.mark.parametrize("text", ["", "-#common", "kind:tensor", "x", "#rare | kind:model"])
def test_what_no_index_knows_is_scanned_newest_first_without_sorting(db, text):
    assert plan(db, text) == ["SCAN o"]


HOSTILE = [
    "'",
    '"',
    "';--",
    "' OR '1'='1",
    '") OR 1 --',
    "?",
    ":a",
    "@a",
    "$a",
    "%",
    "_",
    "*",
    "[a-z]",
    "\\",
    "x'00'",
    "NULL",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_text_is_a_parameter_and_never_sql(db, index, make_record, text):
    index.insert(db, make_record(description="innocent", name="x"))
    bearer = make_record(description=f"<{text}>", name=text)
    index.insert(db, bearer)
    for query, harmless in (
        (Word(text), Word("harmless")),
        (Field("name", ":", text), Field("name", ":", "harmless")),
    ):
        assert compile_query(query, TagCounts(), 10)[0] == compile_query(harmless, TagCounts(), 10)[0]
        found = index.find(db, query).records
        assert found == [record for record in index.find(db, EVERYTHING).records if matches(query, record)]
        assert bearer["id"] in [record["id"] for record in found]


@pytest.mark.parametrize("text", HOSTILE[:-1])
def test_a_hostile_tag_goes_no_further_than_the_grammar(db, index, make_record, text):
    record = make_record("a")
    index.insert(db, record)
    if not set(text) <= set("_:a"):
        with pytest.raises(BadTag):
            index.set_tags(db, record["id"], [text])
    try:
        found = index.find(db, f"#{text}").records
    except QueryError:
        found = []
    assert found == [] or text == "*"
    assert index.statistics(db).objects == 1


def test_like_and_glob_signs_in_words_stand_for_themselves(db, index, make_record):
    plain, signs = make_record(description="abc"), make_record(description="a%c a_c a*c")
    index.insert(db, plain)
    index.insert(db, signs)
    for word in ("a%c", "a_c", '"a*c"'):
        assert [record["id"] for record in index.find(db, word).records] == [signs["id"]]


def test_the_beginning_of_one_tag_is_not_found_inside_another(db, index, make_record):
    index.insert(db, make_record("x/radiology/y", "b"))
    for query in ("#radiology/* | #q", "-#x/radiology", "#y* | kind:model", "-#b*"):
        expected = [r for r in index.find(db, EVERYTHING).records if matches(parse_query(query), r)]
        assert index.find(db, query).records == expected
