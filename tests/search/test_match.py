import pytest

from search import EVERYTHING, NOTHING, matches, parse_query, peer_is, resolve_peer

ALICE, BOB = "a" * 52, "b" * 52


@pytest.mark.parametrize(
    ("query", "is_match"),
    [
        ("", True),
        ("-*", False),
        ("#digits", True),
        ("#digit", False),
        ("#digits #test", True),
        ("#digits #train", False),
        ("#train | #test", True),
        ("#digits -#train", True),
        ("#digits -#test", False),
        ("#radiology/*", True),
        ("#radiology/chest*", True),
        ("#radiology", False),
        ("#radiology/x*", False),
        ("#*", True),
        ("handwritten", True),
        ("WRITTEN", True),
        ('"digits from NIST"', True),
        ('"digits  from"', True),
        ("digits nist", True),
        ('"nist digits"', False),
        ("layer", True),
        ('"layer one hand"', False),  # not across name and description
        ("digits", True),  # from the description
        ("radiology", False),  # a tag is not text
        ("kind:tensor", True),
        ("kind:t*", True),
        ("kind!=tensor", False),
        ("kind:model", False),
        ('name:"Layer One"', True),
        ("name:layer", False),
        ("name:layer*", True),
        ("dtype:float32", True),
        ("dtype:float*", True),
        ("dtype:float64", False),
        ("shape:10x784", True),
        ("shape:*x784", True),
        ("shape:*x*", True),
        ("shape:*", False),
        ("shape:*x*x*", False),
        ("shape:scalar", False),
        ("rows:10", True),
        ("rows!=10", False),
        ("rows>10", False),
        ("rows>=10 rows<=10", True),
        ("rows<11", True),
        ("size:31360", True),
        ("size<31KB", False),
        ("size<31KiB", True),
        ("private:no", True),
        ("private:yes", False),
        ("owner:oo", True),
        ("owner:b", False),
        ("id:0f", True),
        ("id:0ff", True),
        ("id:f", False),
        ("created:2026-01-02", True),
        ("created:2026", True),
        ("created>2026-01-02", False),
        ("created>=2026-01-02", True),
        ("created<2026-01-02", False),
        ("created<=2026-01-02", True),
        ("created>2026-01-01", True),
        ("created:2026-01-02T00:00:05", True),
        ("created>2026-01-02T00:00:05", False),
        ("created<2026-01-02T00:00:06", True),
        ("peer:alice", True),
        ("-peer:alice", False),
        ("peer:bob", False),
        ("peer:aaaaaaaa", True),
    ],
)
def test_a_tensor_of_digits(make_record, query, is_match):
    record = make_record(
        "digits",
        "test",
        "radiology/chest",
        id=b"\x0f\xff" + bytes(14),
        name="Layer  one",
        description="Handwritten\ndigits from NIST",
        created=1_767_312_005.5,
    )
    assert matches(parse_query(query), record, "alice", ALICE) is is_match


@pytest.mark.parametrize(
    ("query", "is_match"),
    [
        ("dtype:float32", False),
        ("dtype!=float32", True),
        ("-dtype:float*", True),
        ("rows>=0", False),
        ("rows<5 | rows>=5", False),
        ("-rows>=0", True),
        ("shape:scalar", False),
        ("shape:*", False),
        ("name:*", False),
        ("name!=x", True),
        ("#*", False),
        ("-#*", True),
        ("x", False),
    ],
)
def test_a_field_that_is_not_there_satisfies_no_comparison(make_record, query, is_match):
    model = make_record(kind="model", dtype=None, shape=None)
    assert matches(parse_query(query), model) is is_match


def test_a_scalar_has_a_shape_and_no_rows(make_record):
    scalar = make_record(shape=[])
    assert matches(parse_query("shape:scalar -rows>=0"), scalar)


@pytest.mark.parametrize(
    ("value", "is_alice"),
    [
        ("alice", True),
        ("ALICE", True),
        ("al*", True),
        ("*", True),
        ("alic", False),
        ("bob", False),
        ("a" * 8, True),
        ("A" * 52, True),
        ("a" * 8 + "*", True),
        ("a" * 7, False),
        ("a" * 53, False),
    ],
)
def test_a_peer_is_meant_by_name_or_by_the_beginning_of_its_id(value, is_alice):
    assert peer_is(value, "alice", ALICE) is is_alice


@pytest.mark.parametrize(
    ("query", "for_alice", "for_bob"),
    [
        ("#a", "#a", "#a"),
        ("peer:alice", "*", "-*"),
        ("peer:alice #a", "#a", "-*"),
        ("-peer:alice #a", "-*", "#a"),
        ("peer!=alice", "-*", "*"),
        ("peer:alice | #a", "*", "#a"),
        ("peer:alice | peer:bob", "*", "*"),
        ("peer:alice peer:bob", "-*", "-*"),
        ("-(peer:alice #a)", "-#a", "*"),
        ("-(peer:alice | #a)", "-*", "-#a"),
        ("(peer:alice #a | peer:bob #b) #c", "#a #c", "#b #c"),
    ],
)
def test_peer_terms_are_answered_for_one_peer(query, for_alice, for_bob):
    assert str(resolve_peer(parse_query(query), "alice", ALICE)) == for_alice
    assert str(resolve_peer(parse_query(query), "bob", BOB)) == for_bob


def test_a_query_without_peer_terms_stays_the_same():
    query = parse_query("(#a | -x) rows>5")
    assert resolve_peer(query, "alice", ALICE) == query
    assert resolve_peer(EVERYTHING, "alice", ALICE) == EVERYTHING
    assert resolve_peer(NOTHING, "alice", ALICE) == NOTHING
