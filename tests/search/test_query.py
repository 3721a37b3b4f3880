import pytest

from protocol import limits
from protocol.errors import QueryError
from search import EVERYTHING, NOTHING, all_of, any_of, negate, parse_query
from search.terms import And, Field, Not, Or, Tag, TagPrefix, Word

A, B, C = Tag("a"), Tag("b"), Tag("c")


def is_kind(kind):
    return Field("kind", ":", kind)


@pytest.mark.parametrize(
    ("text", "query"),
    [
        ("", EVERYTHING),
        ("  \t\n ", EVERYTHING),
        ("*", EVERYTHING),
        ("* #a", A),
        ("* | #a", EVERYTHING),
        ("-*", NOTHING),
        ("#a", A),
        ("#A", A),
        ("#a/b-c.d:e_1", Tag("a/b-c.d:e_1")),
        ("#radiology/*", TagPrefix("radiology/")),
        ("#rad*", TagPrefix("rad")),
        ("#*", TagPrefix("")),
        ("#a #b", And((A, B))),
        ("#a(#b)", And((A, B))),
        ("#a | #b", Or((A, B))),
        ("#a|#b", Or((A, B))),
        ("-#a", Not(A)),
        ("!#a", Not(A)),
        ("- #a", Not(A)),
        ("-!#a", A),
        ("#a #b | #c", Or((And((A, B)), C))),
        ("#a (#b | #c)", And((A, Or((B, C))))),
        ("-#a #b", And((Not(A), B))),
        ("-(#a #b)", Not(And((A, B)))),
        ("-(#a | -#b)", Not(Or((A, Not(B))))),
        ("((#a))", A),
        ("#a (#b #c)", And((A, B, C))),
        ("#a | (#b | #c)", Or((A, B, C))),
        ("x-ray", Word("x-ray")),
        ("wow!", Word("wow!")),
        ("C#", Word("C#")),
        ("AT&T", Word("AT&T")),
        ("and or not", And((Word("and"), Word("or"), Word("not")))),
        ("rows", Word("rows")),
        ('"rows" #a', And((Word("rows"), A))),
        ('"a  b"', Word("a  b")),
        ('"#a | b"', Word("#a | b")),
        (r'"say \"hi\" \\ \n"', Word('say "hi" \\ \\n')),
        ('a"b"', And((Word("a"), Word("b")))),
        ("手書き数字", Word("手書き数字")),
        ("kind:tensor", is_kind("tensor")),
        ("KIND=Tensor", is_kind("tensor")),
        ("kind==tensor", is_kind("tensor")),
        ("kind : tensor", is_kind("tensor")),
        ('kind:"tensor"', is_kind("tensor")),
        ("kind!=tensor", Not(is_kind("tensor"))),
        ("-kind!=tensor", is_kind("tensor")),
        ("kind:tensor|kind:model", Or((is_kind("tensor"), is_kind("model")))),
        ("rows>=1000", Field("rows", ">=", 1000)),
        ("rows >= 1000", Field("rows", ">=", 1000)),
        ("rows\t<\n5 #a", And((Field("rows", "<", 5), A))),
        ("rows!=5", Not(Field("rows", ":", 5))),
        ("size<1GB", Field("size", "<", 10**9)),
        ("shape:*x784", Field("shape", ":", (None, 784))),
        ("private:yes", Field("private", ":", True)),
        ("id:00FF", Field("id", ":", "00ff")),
        ('name:"layer 1"', Field("name", ":", "layer 1")),
        ("name:a=b:c", Field("name", ":", "a=b:c")),
        ("name:layer*", Field("name", ":", "layer*")),
        ("peer:-x", Field("peer", ":", "-x")),
    ],
)
def test_reads(text, query):
    assert parse_query(text) == query
    assert parse_query(str(query)) == query


@pytest.mark.parametrize(
    ("text", "column", "message"),
    [
        ("(#a", 0, "never closed"),
        ("#a (", 3, "never closed"),
        ("#a ((#b)", 3, "never closed"),
        ("#a)", 2, "never opened"),
        ("#a ) #b", 3, "never opened"),
        (")", 0, "never opened"),
        ("#a ()", 3, "nothing between"),
        ("| #a", 0, "before it"),
        ("(| #a)", 1, "before it"),
        ("#a |", 3, "each side"),
        ("#a | )", 3, "each side"),
        ("#a || #b", 3, "a single one means OR"),
        ("-", 0, "needs a term after it"),
        ("#a - | #b", 3, "needs a term after it"),
        ("(#a !)", 4, "needs a term after it"),
        ("#a #é", 4, "cannot hold"),
        ("#", 1, "empty"),
        ("#a #b%c", 5, "cannot hold '%'"),
        ("#a, #b", 2, "cannot hold ','"),
        ("#a#b", 2, "cannot hold '#'"),
        ("#a//b", 3, "empty part"),
        ("#/a*", 1, "empty part"),
        ("#a/*b", 3, "cannot hold '\\*'"),
        ("x #" + "a" * 65, 67, "65 characters"),
        ('#a "open', 3, "quote is never closed"),
        (r'"open\"', 0, "quote is never closed"),
        ('""', 0, "nothing to search for"),
        ('#a " "', 3, "nothing to search for"),
        ("knd:tensor", 0, "did you mean kind"),
        ("#a  tag:b", 4, "#like-this"),
        ("http://example.org", 0, "quotes"),
        ("12:30", 0, "no field '12'"),
        (":x", 0, "needs a field before it"),
        ("foo >= 3", 4, "'>=' needs a field before it"),
        ("!=5", 0, "needs a field before it"),
        ("kind:", 5, "needs a value"),
        ("kind: | #a", 6, "needs a value"),
        ("(rows>)", 6, "needs a value"),
        ("kind:tensr", 5, "did you mean tensor"),
        ("kind<tensor", 4, "no order"),
        ("#a kind >= tensor", 8, "no order"),
        ("dtype:int", 6, "is not a dtype"),
        ("size<1.5XB", 5, "is not a size"),
        ("rows>=many", 6, "whole number"),
        ("created>yesterday", 8, "is not a date"),
        ("created>2026-02-30", 8, "day is out of range"),
        ("shape:10,784", 6, "is not a shape"),
        ('name:" "', 5, "text is missing"),
        ('name:"open', 5, "quote is never closed"),
        ("private:maybe", 8, "yes nor no"),
        ("id:xyz", 3, "is not an id"),
        ("#a AND #b", 3, "already mean AND"),
        ("#a OR #b", 3, "write | for OR"),
        ("NOT #a", 0, "write - for NOT"),
        ("#a && #b", 3, "already mean AND"),
        ("mnist*", 5, "needs no '\\*'"),
        ("a\0b", 1, "cannot be in a query"),
        ("#a \x1b[2J", 3, "cannot be in a query"),
        ("\ud800", 0, "cannot be in a query"),
    ],
)
def test_points_at_the_column_of_a_mistake(text, column, message):
    with pytest.raises(QueryError, match=message) as caught:
        parse_query(text)
    assert caught.value.column == column


def test_the_error_draws_the_query_with_a_caret_below():
    with pytest.raises(QueryError) as caught:
        parse_query("#a knd:x")
    assert str(caught.value).splitlines()[1:] == ["  #a knd:x", "     ^"]


def test_the_error_shows_unprintable_characters_as_one_other_each():
    with pytest.raises(QueryError) as caught:
        parse_query("\x1b\u202e\n#a")
    assert caught.value.fields["query"] == "\ufffd\ufffd #a"


@pytest.mark.parametrize("value", [None, 7, b"#a", ["#a"]])
def test_what_is_not_text_is_not_a_query(value):
    with pytest.raises(QueryError, match="a query is text"):
        parse_query(value)


def test_a_query_too_long_is_refused_unread_and_shown_in_part():
    with pytest.raises(QueryError, match="10000000 characters") as caught:
        parse_query("(" * 10_000_000)
    assert len(str(caught.value)) < 400
    assert parse_query("#a" + " " * (limits.MAX_QUERY - 2)) == A


def test_a_query_that_would_print_too_long_is_refused_so_that_it_can_be_sent_on():
    text = "|".join(["name:" + "x" * 26] * 64)
    assert len(text) == limits.MAX_QUERY - 1
    with pytest.raises(QueryError, match="characters; at most"):
        parse_query(text)


def test_the_number_of_terms_is_limited():
    assert len(parse_query("#a | " * 63 + "#b").parts) == limits.MAX_QUERY_TERMS
    with pytest.raises(QueryError, match="more than 64 terms") as caught:
        parse_query("#a " * 65)
    assert caught.value.column == 3 * 64


@pytest.mark.parametrize("opening", ["(", "-", "!", "(-"])
def test_nesting_is_limited(opening):
    depth = limits.MAX_QUERY_DEPTH // len(opening)
    parse_query(opening * depth + "#a" + ")" * (opening.count("(") * depth))
    with pytest.raises(QueryError, match="nested more than 32 deep") as caught:
        parse_query(opening * 1000 + "#a")
    assert caught.value.column == limits.MAX_QUERY_DEPTH


@pytest.mark.parametrize("term", ["(#a)", "-#a", "(-(#a | #b))"])
def test_terms_beside_one_another_do_not_nest(term):
    parse_query(" ".join([term] * limits.MAX_QUERY_DEPTH))


def test_combining_keeps_queries_flat_and_drops_constants():
    assert all_of([]) == EVERYTHING
    assert any_of([]) == NOTHING
    assert all_of([A]) == A
    assert all_of([all_of([A, B]), EVERYTHING, C]) == And((A, B, C))
    assert all_of([A, NOTHING]) == NOTHING
    assert any_of([any_of([A, B]), NOTHING, C]) == Or((A, B, C))
    assert any_of([A, EVERYTHING]) == EVERYTHING
    assert negate(negate(A)) == A


@pytest.mark.parametrize(
    "build",
    [
        lambda: And((A,)),
        lambda: And([A, B]),  # type: ignore[arg-type]
        lambda: And((A, And((B, C)))),
        lambda: Or((A, EVERYTHING)),
        lambda: Or((A, NOTHING)),
        lambda: Not(Not(A)),
        lambda: Tag("A"),
        lambda: Tag("#a"),
        lambda: TagPrefix("/"),
        lambda: Word(" "),
        lambda: Word("a\0"),
        lambda: Field("kid", ":", "x"),
        lambda: Field("kind", "<", "tensor"),
        lambda: Field("rows", "!=", 5),
        lambda: Field("rows", ":", -5),
        lambda: Field("kind", ":", "Tensor"),
    ],
)
def test_a_term_that_would_not_print_as_itself_cannot_be_built(build):
    with pytest.raises(ValueError):
        build()


def test_printing_is_canonical():
    assert str(parse_query(' ( KIND = "tensor" ) !#A|size<=1000kb "x" ')) == "kind:tensor -#a | size<=1MB x"
