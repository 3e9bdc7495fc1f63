"""Products with packed matrices in C++ against float64 arithmetic, of few and of many rows."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import pad

from kernels.cpu_cases import EXAMPLES, packed

pytest.importorskip("pagemill.ops.cpu._native", reason="built without a compiler")

from pagemill.checkpoint.groups import GroupedWeight, quantize_groups, stack
from pagemill.ops.cpu.matrix import MatrixProducts, PackedMatrix

types = st.sampled_from([torch.float32, torch.bfloat16])


def rounded(x: Tensor) -> Tensor:
    """Activations as the kernels see them: int8 by groups of 32."""
    groups = pad(x.float(), (0, -x.shape[1] % 32)).unflatten(1, (-1, 32))
    scale = groups.abs().amax(2, keepdim=True) / 127
    codes = torch.round(groups * torch.where(scale > 0, 1 / scale, 0))
    return (codes.double() * scale.double()).flatten(1)[:, : x.shape[1]]


forms = st.sampled_from(["int8", "int8 offset", "int4", "int4 offset"])


def random_weight(outputs: int, inputs: int, form: str) -> GroupedWeight:
    weight = quantize_groups(torch.randn(outputs, inputs), int(form[3]))
    if form == "int4":
        weight = GroupedWeight(weight.codes, weight.scale, None, 4, inputs)
    return weight.with_offsets() if form.endswith("offset") else weight


@settings(max_examples=EXAMPLES, deadline=None)
@given(
    rows=st.integers(1, 15),
    inputs=st.integers(1, 300),
    outputs=st.integers(1, 40),
    form=forms,
    biased=st.booleans(),
    dtype=types,
    seed=st.integers(0, 99),
)
def test_group_linear(
    rows: int, inputs: int, outputs: int, form: str, biased: bool, dtype: torch.dtype, seed: int
) -> None:
    torch.manual_seed(seed)
    x = (torch.randn(rows, inputs) * 3).to(dtype)
    weight = random_weight(outputs, inputs, form)
    bias = torch.randn(outputs) if biased else None
    out = MatrixProducts().linear(x, packed(weight, bias))
    expected = rounded(x) @ weight.float().double().T
    if bias is not None:
        expected += bias
    products = rounded(x).abs() @ weight.float().double().abs().T  # a sum may be much smaller
    error = (out.double() - expected).abs().max() / (products.max() + 1e-9)
    assert error < (2e-3 if dtype == torch.float32 else 1e-2)  # ties may round either way


def coarse_weights(matrix: PackedMatrix) -> Tensor:
    """The weights [out, in] that products of many rows have, one input each."""
    inputs = torch.eye(max(matrix.shape[1], MANY_ROWS), matrix.shape[1])
    return MatrixProducts().linear(inputs, matrix)[: matrix.shape[1]].T.double()


def group_tops(weight: GroupedWeight) -> Tensor:
    """The largest size that any code would have in each group, [out, groups]."""
    scale = weight.scale.float()
    offset = torch.zeros_like(scale) if weight.offset is None else weight.offset.float()
    if weight.bits == 8:
        return 128 * scale + offset.abs()
    low = -8 * scale if weight.offset is None else offset
    return torch.maximum(low.abs(), (low + 15 * scale).abs())


FEW_ROWS, MANY_ROWS = 23, 64  # always fine, always coarse: native/coarse_linear.h
CHUNK = 192  # inputs that share a unit there


@settings(max_examples=EXAMPLES, deadline=None)
@given(
    inputs=st.integers(1, 450),
    outputs=st.integers(1, 70),
    form=forms,
    spread=st.sampled_from([1.0, 30.0]),
    seed=st.integers(0, 99),
)
def test_coarse_weights_are_near(
    inputs: int, outputs: int, form: str, spread: float, seed: int
) -> None:
    """Half a unit, a 127th of the chunk's largest weight, and what 16 bits lose on the way."""
    torch.manual_seed(seed)
    weight = random_weight(outputs, inputs, form)
    scale = weight.scale * spread ** torch.rand_like(weight.scale.float()).half()
    weight = replace(weight, scale=scale)
    exact = weight.float().double()
    ours = coarse_weights(packed(weight, coarse=True))
    tops = pad(group_tops(weight), (0, -weight.scale.shape[1] % (CHUNK // 32)))
    unit = tops.unflatten(1, (-1, CHUNK // 32)).amax(2) / 127
    error = (ours - exact).abs()
    assert bool((error <= 0.56 * unit.repeat_interleave(CHUNK, 1)[:, :inputs] + 1e-6).all())


@settings(max_examples=EXAMPLES, deadline=None)
@given(
    rows=st.integers(MANY_ROWS, 600),
    inputs=st.integers(1, 700),
    outputs=st.integers(1, 70),
    form=forms,
    biased=st.booleans(),
    dtype=types,
    seed=st.integers(0, 99),
)
def test_products_of_many_rows(
    rows: int, inputs: int, outputs: int, form: str, biased: bool, dtype: torch.dtype, seed: int
) -> None:
    torch.manual_seed(seed)
    x = (torch.randn(rows, inputs) * 3).to(dtype)
    weight = random_weight(outputs, inputs, form)
    bias = torch.randn(outputs) if biased else None
    matrix = packed(weight, bias, coarse=True)
    out = MatrixProducts().linear(x, matrix)
    expected = rounded(x) @ coarse_weights(packed(weight, coarse=True))[:, :inputs].T
    if bias is not None:
        expected += bias
    error = (out.double() - expected).abs().max() / (expected.abs().max() + 1e-9)
    assert error < (2e-3 if dtype == torch.float32 else 1e-2)  # ties may round either way
    assert torch.equal(MatrixProducts().linear(x[:MANY_ROWS], matrix), out[:MANY_ROWS])


def test_few_rows_are_as_exact_in_any_matrix() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(FEW_ROWS, 576), random_weight(64, 576, "int4 offset")
    fine, coarse = packed(weight), packed(weight, coarse=True)
    for rows in (1, FEW_ROWS):
        few = [MatrixProducts().linear(x[:rows], matrix) for matrix in (fine, coarse)]
        assert torch.equal(*few)


def test_extreme_codes_do_not_overflow() -> None:
    x = torch.full((5, 64), 127.0)
    x[1::2] *= -1
    for codes, bits in ((torch.full((16, 64), 15, dtype=torch.uint8), 4), (-127, 8), (127, 8)):
        if isinstance(codes, int):
            codes = torch.full((16, 64), codes, dtype=torch.int8)
        scale = torch.ones(16, 2, dtype=torch.float16)
        weight = GroupedWeight(codes, scale, None, bits, 64)
        out = MatrixProducts().linear(x, packed(weight))
        torch.testing.assert_close(out, x @ weight.float().T)
        many = MatrixProducts().linear(x.repeat(20, 1), packed(weight, coarse=True))
        torch.testing.assert_close(many, out.repeat(20, 1), rtol=6e-3, atol=0.0)


def test_matrices_of_several_forms_are_stacked() -> None:
    torch.manual_seed(0)
    parts = [quantize_groups(torch.randn(8, 48), bits) for bits in (8, 4)]
    parts.append(GroupedWeight(parts[1].codes, parts[1].scale, None, 4, 48))
    x = torch.randn(3, 48)
    out = MatrixProducts().linear(x, packed(stack(parts)))
    expected = rounded(x) @ torch.cat([part.float() for part in parts]).double().T
    torch.testing.assert_close(out.double(), expected, rtol=2e-3, atol=2e-3)
