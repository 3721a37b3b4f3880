"""Contents and the safetensors layout, checked against the library that others read it with."""

import json

import pytest
import safetensors

from peer.store.contents import ALIGNMENT, TRUE_HEADERS, Contents
from protocol import limits
from protocol.errors import BadTensor, TooLarge
from protocol.tensors import ITEMSIZE, TensorHeader

WITHOUT_DTYPE = {"complex32", "complex128"}  # the format has none for them


def file_of(contents):
    return contents.file_header() + bytes(range(256)) * (contents.nbytes // 256) + bytes(contents.nbytes % 256)


def read_by_library(contents):
    return dict(safetensors.deserialize(file_of(contents)))


@pytest.mark.parametrize("dtype", sorted(ITEMSIZE.keys() - WITHOUT_DTYPE))
@pytest.mark.parametrize("shape", [(), (3,), (2, 0, 4), (2, 3)])
def test_the_library_reads_every_dtype_and_shape(dtype, shape):
    contents = Contents.one(TensorHeader(dtype, shape))
    tensor = read_by_library(contents)["data"]
    assert tuple(tensor["shape"]) == shape
    assert bytes(tensor["data"]) == file_of(contents)[len(contents.file_header()) :]


@pytest.mark.parametrize("dtype", sorted(WITHOUT_DTYPE))
def test_a_dtype_that_the_format_lacks_is_stored_as_bytes_with_its_header_in_the_metadata(dtype):
    contents = Contents((("a", TensorHeader(dtype, (2, 3))), ("b", TensorHeader("bool", (1,)))), {"kept": "yes"})
    tensors = read_by_library(contents)
    assert (tensors["a"]["dtype"], tensors["a"]["shape"]) == ("U8", [6 * ITEMSIZE[dtype]])
    header = contents.file_header()
    metadata = json.loads(header[8:])["__metadata__"]
    assert json.loads(metadata[TRUE_HEADERS]) == {"a": {"dtype": dtype, "shape": [2, 3]}}
    assert metadata["kept"] == "yes"


def test_the_first_tensor_is_aligned_and_the_others_follow_in_the_order_given():
    contents = Contents((("z", TensorHeader("uint8", (3,))), ("a", TensorHeader("float32", (2,)))))
    start = len(contents.file_header())
    assert start % ALIGNMENT == 0
    places = contents.lay_out(start)
    assert list(places) == ["z", "a"]
    assert (places["z"].offset, places["a"].offset, places["a"].nbytes) == (start, start + 3, 8)
    assert list(read_by_library(contents)["a"]["data"]) == list(file_of(contents)[start + 3 : start + 11])


def test_an_object_without_tensors_is_a_valid_file():
    assert read_by_library(Contents(extra=b"a program")) == {}


@pytest.mark.parametrize("name", ["", "__metadata__", "x" * (limits.MAX_TENSOR_NAME + 1), "\ud800", 7, None])
def test_a_name_that_cannot_stand_in_the_file_is_refused(name):
    with pytest.raises(BadTensor):
        Contents(((name, TensorHeader("uint8", (1,))),))


@pytest.mark.parametrize("name", ["a\0b", 'a"b\\', "λ.重み", "../x"])
def test_any_other_text_can_name_a_tensor(name):
    assert set(read_by_library(Contents(((name, TensorHeader("uint8", (1,))),)))) == {name}


def test_two_tensors_of_one_name_are_refused():
    header = TensorHeader("uint8", (1,))
    with pytest.raises(BadTensor, match="same name"):
        Contents((("w", header), ("w", header)))


@pytest.mark.parametrize("metadata", [{"k": 1}, {1: "v"}, {TRUE_HEADERS: "{}"}, {"k": "\udfff"}])
def test_metadata_that_is_not_text_or_the_stores_own_is_refused(metadata):
    with pytest.raises(BadTensor):
        Contents((), metadata)


@pytest.mark.parametrize(
    ("limit", "make"),
    [
        ("MAX_METADATA", lambda: Contents((), {"k": "v" * limits.MAX_METADATA})),
        ("MAX_PROGRAM", lambda: Contents(extra=bytes(limits.MAX_PROGRAM + 1))),
        ("MAX_TENSOR", lambda: Contents(tuple((n, TensorHeader("uint8", (1 << 39,))) for n in "abc"))),
    ],
)
def test_contents_beyond_a_limit_are_refused_by_its_name(limit, make):
    with pytest.raises(TooLarge) as caught:
        make()
    assert caught.value.fields["limit"] == limit


def test_too_many_tensors_are_refused():
    header = TensorHeader("uint8", (1,))
    with pytest.raises(TooLarge):
        Contents(tuple((str(number), header) for number in range(limits.MAX_STORED_TENSORS + 1)))


def test_contents_cannot_be_changed_through_the_map_they_were_made_from():
    metadata = {"k": "v"}
    contents = Contents((), metadata)
    metadata["k"] = "w"
    assert contents.metadata["k"] == "v"
