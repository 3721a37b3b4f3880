"""The table's names."""

import subprocess
import sys

import pytest
import torch

from compute.operations import CATEGORIES, NUMBERS, OPERATIONS, OPTIONAL, SUBSTITUTES, substitute, suggestions

FORBIDDEN_PARTS = (
    *("empty", "resize_", "set_", "from_file", "save", "load", "sparse", "quantize", "nested", "mkldnn"),
    *("_local_scalar_dense", "item", "storage", "segment_reduce", "_weight_norm", "_convert_indices", "_sobol"),
)


def overload(name: str) -> object:
    _, base, kind = name.split(".")
    return getattr(getattr(torch.ops.aten, base), kind)


def test_every_name_is_an_operator_of_the_installed_torch_or_optional() -> None:
    missing = []
    for name in OPERATIONS:
        try:
            assert isinstance(overload(name), torch._ops.OpOverload)
        except AttributeError:
            missing.append(name)
    assert set(missing) <= OPTIONAL


def test_optional_names_are_in_the_table() -> None:
    assert set(OPERATIONS) >= OPTIONAL


@pytest.mark.parametrize("part", FORBIDDEN_PARTS)
def test_what_must_not_run_is_not_in_the_table(part: str) -> None:
    assert [name for name in OPERATIONS if part in name] == []


def test_no_schema_takes_a_storage_or_an_output() -> None:
    for name in set(OPERATIONS) - OPTIONAL:
        for argument in overload(name)._schema.arguments:  # type: ignore[attr-defined]
            assert "Storage" not in str(argument.real_type), name
            assert not argument.is_out, name


def test_no_result_is_a_plain_value_but_sizes() -> None:
    plain = {n for n in OPERATIONS for r in overload(n)._schema.returns if "Tensor" not in str(r.real_type)}  # type: ignore[attr-defined]
    assert plain == {"aten.sym_size.int", "aten.sym_numel.default", "aten.sym_stride.int"}


def test_categories_cover_what_the_issue_names() -> None:
    for wanted in ("elementwise", "reduction", "matmul", "view", "index", "conv", "pool", "norm", "activation", "loss"):
        assert wanted in CATEGORIES
    assert {"inplace", "optimiser", "backward"} <= set(CATEGORIES)
    assert set(OPERATIONS.values()) == set(CATEGORIES)


def test_numbers_and_operations_do_not_overlap() -> None:
    assert not set(NUMBERS) & set(OPERATIONS)


def test_substitutes_lead_from_outside_the_table_into_it() -> None:
    for name, other in SUBSTITUTES.items():
        assert name not in OPERATIONS
        assert other in OPERATIONS


def test_a_substituted_call_gives_zeros_of_the_same_shape() -> None:
    x = torch.ones(2, 3)
    for name, args, kwargs in (
        ("aten.empty.memory_format", [[2, 3]], {"memory_format": torch.contiguous_format}),
        ("aten.empty_like.default", [x], {"memory_format": torch.preserve_format}),
        ("aten.empty_strided.default", [[2, 3], [3, 1]], {}),
        ("aten.new_empty.default", [x, [2, 3]], {}),
        ("aten.new_empty_strided.default", [x, [2, 3], [3, 1]], {}),
        ("aten.empty_permuted.default", [[2, 3], [1, 0]], {}),
    ):
        other, new_args, new_kwargs = substitute(name, args, kwargs)
        assert torch.equal(overload(other)(*new_args, **new_kwargs), torch.zeros(2, 3)), name  # type: ignore[operator]


def test_a_maximum_into_its_first_argument_is_in_place() -> None:
    a, b = torch.tensor([1.0, 5.0, float("nan")]), torch.tensor([2.0, 4.0, 1.0])
    wanted = torch.maximum(a, b)
    name, args, kwargs = substitute("aten.maximum.out", [a, b], {"out": a})
    overload(name)(*args, **kwargs)  # type: ignore[operator]
    assert torch.equal(a[:2], wanted[:2])
    assert a[2].isnan()
    assert substitute("aten.maximum.out", [a, b], {"out": b})[0] == "aten.maximum.out"


def test_other_calls_are_not_substituted() -> None:
    assert substitute("aten.add.Tensor", [1], {"alpha": 2}) == ("aten.add.Tensor", [1], {"alpha": 2})


@pytest.mark.parametrize(
    ("wrong", "right"),
    [("aten.add", "aten.add.Tensor"), ("aten.sofmax.int", "aten.softmax.int"), ("relu", "aten.relu.default")],
)
def test_suggestions_name_what_was_perhaps_meant(wrong: str, right: str) -> None:
    assert right in suggestions(wrong)


def test_suggestions_for_a_long_name_are_quick_and_few() -> None:
    assert suggestions("a" * 1_000_000) == []


def test_the_torch_free_modules_import_no_torch() -> None:
    code = (
        "import sys, compute, compute.operations, compute.wire, compute.program\n"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
