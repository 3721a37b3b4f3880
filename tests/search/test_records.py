import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol import limits
from protocol.errors import BadRequest
from search import check_record

ID = "b" * 52


def test_a_good_record_comes_back_as_a_fresh_copy(make_record):
    record = make_record("a", "b", name="x", labels=[ID])
    checked = check_record(record)
    assert checked == record
    assert checked is not record and checked["tags"] is not record["tags"]


def test_unknown_fields_and_the_senders_word_on_who_holds_it_are_left_out(make_record):
    record = make_record() | {"peer": "bob", "peer_id": ID, "future": 1}
    assert check_record(record).keys() == make_record().keys()


def test_the_name_alone_may_be_missing(make_record):
    record = make_record()
    for field in record:
        rest = {name: value for name, value in record.items() if name != field}
        if field == "name":
            assert check_record(rest)["name"] is None
        else:
            with pytest.raises(BadRequest, match=f"no {field}"):
                check_record(rest)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("id", b"x" * 15),
        ("id", "x" * 16),
        ("id", bytearray(16)),
        ("kind", "virus"),
        ("kind", None),
        ("owner", "alice"),
        ("owner", "A" * 52),
        ("owner", None),
        ("name", ""),
        ("name", " \n"),
        ("name", 7),
        ("name", "x" * (limits.MAX_OBJECT_NAME + 1)),
        ("tags", "ab"),
        ("tags", ["#a"]),
        ("tags", ["A"]),
        ("tags", ["a", "a"]),
        ("tags", ["a b"]),
        ("tags", [b"a"]),
        ("tags", [f"t{number}" for number in range(limits.MAX_TAGS + 1)]),
        ("description", None),
        ("description", "a\0b"),
        ("description", "\x1b[31m"),
        ("description", "\ud800"),
        ("description", "x" * (limits.MAX_DESCRIPTION + 1)),
        ("dtype", "load"),
        ("dtype", 7),
        ("dtype", None),
        ("shape", None),
        ("shape", "10x10"),
        ("shape", [-1]),
        ("shape", [4.0]),
        ("shape", [True]),
        ("shape", [1 << 40]),
        ("shape", [1] * 17),
        ("shape", [1 << 32, 1 << 32]),
        ("nbytes", -1),
        ("nbytes", 1.5),
        ("nbytes", True),
        ("nbytes", 1 << 63),
        ("private", 1),
        ("private", None),
        ("labels", None),
        ("labels", ["alice"]),
        ("labels", [ID] * (limits.MAX_ARRAY + 1)),
        ("created", None),
        ("created", True),
        ("created", "2026"),
        ("created", math.nan),
        ("created", math.inf),
        ("created", 10**400),
        ("published", 1),
    ],
)
def test_a_wrong_field_is_refused_by_name(make_record, field, value):
    with pytest.raises(BadRequest, match=field):
        check_record(make_record() | {field: value})


@pytest.mark.parametrize("value", [None, [], "record", 7, b""])
def test_what_is_not_a_map_is_not_a_record(value):
    with pytest.raises(BadRequest, match="a record is a map"):
        check_record(value)


def test_a_model_has_neither_dtype_nor_shape(make_record):
    record = make_record(kind="model", dtype=None, shape=None)
    assert check_record(record) == record


junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.binary(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=10,
)
GOOD = {
    "id": bytes(16),
    "kind": "tensor",
    "name": None,
    "owner": ID,
    "tags": ["a"],
    "description": "",
    "dtype": "float32",
    "shape": [2],
    "nbytes": 8,
    "private": False,
    "labels": [],
    "created": 0.0,
    "published": True,
}


@settings(max_examples=300, deadline=None, database=None)
@given(changes=st.dictionaries(st.sampled_from(sorted(GOOD)), junk, max_size=3))
def test_junk_is_refused_with_no_other_error(changes):
    try:
        record = check_record(GOOD | changes)
    except BadRequest as error:
        assert len(str(error)) < 1000
    else:
        assert check_record(record) == record
