"""Bfloat16 matrices and look-ups in packed tables, by the C++ kernels of every instruction set."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

native = pytest.importorskip("pagemill.ops.cpu._native", reason="built without a compiler")

from pagemill.checkpoint.groups import GroupedWeight, quantize_groups  # noqa: E402
from pagemill.ops.cpu.matrix import (  # noqa: E402
    MatrixProducts,
    PackedMatrix,
    empty_matrix,
    pack_matrix,
    store_rows,
)
from pagemill.ops.cpu.memory import WeightMemory  # noqa: E402

EXAMPLES = int(os.environ.get("PAGEMILL_KERNEL_EXAMPLES", "40"))
_ISA = "PAGEMILL_CPU_ISA"
products = MatrixProducts()
memory = WeightMemory()


def packed(weight: Tensor, bias: Tensor | None = None) -> PackedMatrix:
    matrix = empty_matrix(*weight.shape, bias, memory)
    store_rows(matrix, weight, 0)
    return matrix


@settings(max_examples=EXAMPLES, deadline=None)
@given(
    rows=st.integers(1, 30),
    inputs=st.integers(1, 300),
    outputs=st.integers(1, 100),
    biased=st.booleans(),
    seed=st.integers(0, 99),
)
def test_product(rows: int, inputs: int, outputs: int, biased: bool, seed: int) -> None:
    torch.manual_seed(seed)
    x, weight = torch.randn(rows, inputs).bfloat16(), torch.randn(outputs, inputs).bfloat16()
    bias = torch.randn(outputs) if biased else None
    matrix = packed(weight, bias)
    expected = x.double() @ weight.double().T
    if bias is not None:
        expected += bias
    exact = products.linear(x.float(), matrix)  # sums are float32, nothing is rounded before
    torch.testing.assert_close(exact.double(), expected, rtol=1e-4, atol=1e-4)
    rounded = products.linear(x, matrix)
    torch.testing.assert_close(rounded.double(), expected, rtol=1e-2, atol=1e-3)


@settings(max_examples=EXAMPLES, deadline=None)
@given(rows=st.integers(1, 14), inputs=st.integers(1, 200), seed=st.integers(0, 99))
def test_activations_lose_no_more_than_bfloat16_does(rows: int, inputs: int, seed: int) -> None:
    torch.manual_seed(seed)
    x, weight = torch.randn(rows, inputs), torch.randn(40, inputs).bfloat16()
    error = products.linear(x, packed(weight)).double() - x.double() @ weight.double().T
    bound = x.double().abs() @ weight.double().abs().T / 256 + 1e-4
    assert (error.abs() <= bound).all()


@pytest.mark.parametrize("rows", [2, 7, 12, 13])
def test_a_row_does_not_depend_on_a_few_others(rows: int) -> None:
    torch.manual_seed(0)
    x, matrix = torch.randn(rows, 576), packed(torch.randn(96, 576))
    together = products.linear(x, matrix)
    alone = torch.cat([products.linear(row, matrix) for row in x.split(1)])
    assert torch.equal(together, alone)


@pytest.mark.parametrize("rows", [29, 150])
def test_among_many_a_row_does_not_depend_on_the_others(rows: int) -> None:
    """Alone it may: Intel's processors take other products for several rows."""
    torch.manual_seed(0)
    x, matrix = torch.randn(rows, 576), packed(torch.randn(96, 576))
    order = torch.randperm(rows)
    others = torch.cat([x[order], torch.randn(31, 576)])
    assert torch.equal(products.linear(others, matrix)[:rows], products.linear(x, matrix)[order])


@settings(max_examples=EXAMPLES, deadline=None)
@given(
    parts=st.lists(st.integers(1, 50), min_size=1, max_size=4),
    width=st.integers(1, 130),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_rows_are_stored_in_parts(parts: list[int], width: int, dtype: torch.dtype) -> None:
    weight = torch.randn(sum(parts), width).to(dtype)
    matrix = empty_matrix(*weight.shape, None, memory)
    first = 0
    for rows in weight.split(parts):
        store_rows(matrix, rows, first)
        first += len(rows)
    ids = torch.randperm(len(weight))
    assert torch.equal(products.look_up(ids, matrix), weight[ids].bfloat16().float())


@settings(max_examples=EXAMPLES, deadline=None)
@given(
    vocabulary=st.integers(1, 70),
    width=st.integers(1, 130),
    form=st.sampled_from(["int8", "int8 offset", "int4", "int4 offset"]),
)
def test_rows_of_tables_in_few_bits(vocabulary: int, width: int, form: str) -> None:
    weight = quantize_groups(torch.randn(vocabulary, width), int(form[3]))
    if form == "int4":
        weight = GroupedWeight(weight.codes, weight.scale, None, 4, width)
    if form.endswith("offset"):
        weight = weight.with_offsets()
    matrix = pack_matrix(
        weight.codes,
        weight.scale,
        weight.offset,
        None,
        bits=weight.bits,
        in_features=width,
        memory=memory,
    )
    ids = torch.randint(0, vocabulary, (20,))
    torch.testing.assert_close(products.look_up(ids, matrix), weight.float()[ids])


@pytest.mark.parametrize("row", [-1, 40])
def test_rows_beyond_a_table_are_refused(row: int) -> None:
    with pytest.raises(IndexError):
        products.look_up(torch.tensor([0, row]), packed(torch.randn(40, 8)))


@pytest.mark.skipif(_ISA in os.environ, reason="is one of the runs")
@pytest.mark.parametrize("isa", native.supported_isas()[1:])
def test_other_instruction_sets(isa: str) -> None:
    """These tests again, by what the processor would not choose."""
    env = {**os.environ, _ISA: isa, "PAGEMILL_KERNEL_EXAMPLES": "10"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout


def test_an_unknown_instruction_set_is_named() -> None:
    code = "import torch; from pagemill.ops.cpu import _native; _native.isa()"
    env = {**os.environ, _ISA: "mmx"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.returncode != 0 and "PAGEMILL_CPU_ISA names no instruction set" in done.stderr
