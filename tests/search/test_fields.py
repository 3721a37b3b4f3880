from datetime import UTC, datetime

import pytest

from search.fields import FIELDS, KINDS, Span, hint_for


def read(name, text):
    return FIELDS[name].read(text)


def at(*parts):
    return int(datetime(*parts, tzinfo=UTC).timestamp())


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("500", 500),
        ("500B", 500),
        ("10KB", 10_000),
        ("10kb", 10_000),
        ("64KiB", 65_536),
        ("1.5GB", 1_500_000_000),
        ("1.5MiB", 1_572_864),
        ("2TB", 2 * 10**12),
        ("1TiB", 1 << 40),
        ("1PiB", 1 << 50),
        ("0.0004KB", 0),
        ("1.3GiB", 1_395_864_371),
        ("9223372036854775807", (1 << 63) - 1),
    ],
)
def test_sizes_have_decimal_and_binary_units(text, size):
    assert read("size", text) == size
    assert read("size", FIELDS["size"].show(size)) == size


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0"), (7, "7"), (1000, "1KB"), (1024, "1KiB"), (1536, "1536"), (10**9, "1GB"), (1 << 30, "1GiB")],
)
def test_a_size_is_shown_in_its_shortest_exact_form(size, text):
    assert FIELDS["size"].show(size) == text


@pytest.mark.parametrize(
    "text", ["", "GB", "1M", "1 giga", "-1", "1e9", "1,5GB", "1..5", "٣", "9223372036854775808", "9999999PB"]
)
def test_what_is_no_size_is_refused(text):
    with pytest.raises(ValueError):
        read("size", text)


@pytest.mark.parametrize("text", ["", "-1", "1.0", "1_000", "ten", "²", "1" * 20])
def test_rows_are_a_whole_number(text):
    with pytest.raises(ValueError):
        read("rows", text)


@pytest.mark.parametrize(
    ("text", "shape"),
    [
        ("10x784", (10, 784)),
        ("10X784", (10, 784)),
        ("*x784", (None, 784)),
        ("7", (7,)),
        ("*", (None,)),
        ("scalar", ()),
        ("0x3", (0, 3)),
    ],
)
def test_shapes_are_dimensions_with_x_between(text, shape):
    assert read("shape", text) == shape
    assert read("shape", FIELDS["shape"].show(shape)) == shape


@pytest.mark.parametrize(
    "text", ["", "x", "10x", "x10", "10,784", "[10]", "-1", "1x**", "1.5", "x".join("1" * 17), str(1 << 40)]
)
def test_what_is_no_shape_is_refused(text):
    with pytest.raises(ValueError):
        read("shape", text)


@pytest.mark.parametrize(
    ("text", "start", "end", "shown"),
    [
        ("2026", at(2026, 1, 1), at(2027, 1, 1), "2026"),
        ("2026-01", at(2026, 1, 1), at(2026, 2, 1), "2026-01"),
        ("2026-12", at(2026, 12, 1), at(2027, 1, 1), "2026-12"),
        ("2024-02", at(2024, 2, 1), at(2024, 3, 1), "2024-02"),
        ("2026-01-31", at(2026, 1, 31), at(2026, 2, 1), "2026-01-31"),
        ("2024-02-29", at(2024, 2, 29), at(2024, 3, 1), "2024-02-29"),
        ("2026-01-31T12:30", at(2026, 1, 31, 12, 30), at(2026, 1, 31, 12, 31), "2026-01-31T12:30"),
        ("2026-01-31 12:30Z", at(2026, 1, 31, 12, 30), at(2026, 1, 31, 12, 31), "2026-01-31T12:30"),
        ("2026-01-31T23:59:59", at(2026, 1, 31, 23, 59, 59), at(2026, 2, 1), "2026-01-31T23:59:59"),
        ("2026-01-01T00:30+01:00", at(2025, 12, 31, 23, 30), at(2025, 12, 31, 23, 31), "2025-12-31T23:30"),
        ("2026-01-01T00:30-01:30", at(2026, 1, 1, 2, 0), at(2026, 1, 1, 2, 1), "2026-01-01T02:00"),
        ("1970", 0, at(1971, 1, 1), "1970"),
        ("9998", at(9998, 1, 1), at(9999, 1, 1), "9998"),
    ],
)
def test_a_date_stands_for_the_whole_of_what_it_names(text, start, end, shown):
    assert read("created", text) == Span(start, end)
    assert FIELDS["created"].show(Span(start, end)) == shown


@pytest.mark.parametrize(
    "text",
    [
        "",
        "yesterday",
        "26-01-01",
        "2026-1-1",
        "2026-13",
        "2026-00",
        "2026-02-29",
        "2026-01-01T24:00",
        "2026-01-01T12",
        "2026-01-01T12:60",
        "2026-01-01T12:00+24:00",
        "2026-01-01T12:00+01:60",
        "2026-01-01+01:00",
        "1969",
        "1970-01-01T00:00+00:01",
        "9999",
        "9998-12-31T23:59-10:00",
        "٢٠٢٦",
    ],
)
def test_what_is_no_date_is_refused(text):
    with pytest.raises(ValueError):
        read("created", text)


@pytest.mark.parametrize("span", [(5, 5), (-1, 5), (5, 4)])
def test_a_span_of_time_has_a_length_and_begins_after_1969(span):
    with pytest.raises(ValueError):
        Span(*span)


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_known_in_any_case(kind):
    assert read("kind", kind.upper()) == kind


def test_a_misspelt_kind_or_dtype_is_answered_with_the_nearest():
    with pytest.raises(ValueError, match="did you mean tensor"):
        read("kind", "tensr")
    with pytest.raises(ValueError, match="did you mean float32"):
        read("dtype", "flaot32")
    with pytest.raises(ValueError, match="one of: tensor, model"):
        read("kind", "qqq")


def test_a_dtype_may_be_written_as_torch_prints_it_or_with_a_star():
    assert read("dtype", "torch.float32") == "float32"
    assert read("dtype", "Float*") == "float*"
    with pytest.raises(ValueError):
        read("dtype", "flt*")


@pytest.mark.parametrize(("text", "flag"), [("yes", True), ("TRUE", True), ("no", False), ("False", False)])
def test_private_is_yes_or_no(text, flag):
    assert read("private", text) is flag
    assert read("private", FIELDS["private"].show(flag)) is flag


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("private", "maybe"),
        ("id", "xyz"),
        ("id", "0" * 33),
        ("owner", "alice!"),
        ("owner", "a1"),
        ("name", "  "),
        ("peer", ""),
    ],
)
def test_values_outside_their_grammar_are_refused(name, text):
    with pytest.raises(ValueError):
        read(name, text)


def test_messages_stay_short_for_long_values():
    for name in FIELDS.keys() - {"name", "peer"}:
        with pytest.raises(ValueError) as caught:
            read(name, "!" * 2000)
        assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("name", "hint"), [("knd", "kind"), ("siez", "size"), ("tags", "#"), ("type", "dtype"), ("qqq", "rows, size")]
)
def test_an_unknown_field_is_answered_with_what_was_meant(name, hint):
    assert hint in hint_for(name)
