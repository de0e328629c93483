"""GPTQ against llm-compressor's, against inverting H anew for each column, and its laws."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from goldens.gptq_cases import CASES, Case, inputs
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from quire.errors import QuireError
from quire.quantization.algorithms.calibration import Statistics, output_error
from quire.quantization.algorithms.gptq import BLOCK, Compensation, gptq
from quire.quantization.codes import Codes
from quire.quantization.rounding import grid, round_to_grid, round_to_nearest
from quire.quantization.scheme import Scheme

GOLDENS = Path(__file__).with_name("goldens") / "gptq.npz"
SCHEMES = ("int4-g64", "int4-g32-asym", "int4-channel", "int8-channel", "int3-g50-asym")


def correlated(columns: int, num_tokens: int, seed: int) -> Tensor:
    """Inputs [num_tokens, columns] whose features go together, some of them large."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(num_tokens, columns // 4, generator=generator)
    mixing = torch.randn(columns // 4, columns, generator=generator)
    x = hidden @ mixing + torch.randn(num_tokens, columns, generator=generator)
    x[:, ::19] *= 8
    return x


def second_moments(x: Tensor) -> Tensor:
    statistics = Statistics(x.shape[1], x.device)
    for part in x.split(100):
        statistics.add(part)
    return statistics.hessian


def naive(weight: Tensor, hessian: Tensor, scheme: Scheme, damp: float, order: Tensor) -> Codes:
    """GPTQ as its derivation has it: after each column, the inverse of what is left of H."""
    scale, zero = grid(weight, scheme)
    matrix = hessian.double()
    matrix = matrix + damp * matrix.diagonal().mean() * torch.eye(len(matrix))
    work, left = weight.double(), order.tolist()
    values = torch.empty(weight.shape, dtype=torch.uint8)
    while left:
        column = left[0]
        inverse = torch.linalg.inv(matrix[left][:, left])
        codes = round_to_grid(work.float(), scheme, scale, zero)
        values[:, column] = codes.values[:, column]
        error = (work[:, column] - codes.dequantize()[:, column]) / inverse[0, 0]
        work[:, left[1:]] -= torch.outer(error, inverse[0, 1:])
        left = left[1:]
    return Codes(values, scale, zero, scheme.bits, scheme.group_size)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_codes_of_llm_compressor(case: Case) -> None:
    """Version 0.14.0.1, code by code (goldens/make_gptq.py).

    Where a column is dead it stores zeros, as the authors' code does; quire rounds such a
    column to nearest. No other column feels it: H has nothing beside the diagonal there.
    """
    weight, hessian, dead = inputs(case)
    scheme = Scheme.named(case.scheme)
    codes = gptq(weight, Compensation.of(hessian, case.damp, case.act_order), scheme)
    codes.check()
    golden = torch.from_numpy(np.load(GOLDENS)[case.name])
    assert int((codes.values != golden)[:, ~dead].sum()) == 0
    nearest = round_to_nearest(weight, scheme)
    assert torch.equal(codes.values[:, dead], nearest.values[:, dead])
    assert int((nearest.values != golden)[:, ~dead].sum()) > 1000  # the comparison says something


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("name", SCHEMES)
def test_inverting_anew_for_each_column(name: str, act_order: bool) -> None:
    """The Cholesky factor and the blocks are only a faster way to the same codes."""
    scheme, columns = Scheme.named(name), 150  # a block of 128 and one of 22
    hessian = second_moments(correlated(columns, 400, seed=1))
    weight = torch.randn(12, columns, generator=torch.Generator().manual_seed(2))
    compensation = Compensation.of(hessian, 0.01, act_order)
    codes = gptq(weight, compensation, scheme)
    codes.check()
    expected = naive(weight, hessian, scheme, 0.01, compensation.order)
    differ = int((codes.values != expected.values).sum())
    assert differ == 0, f"{differ} of {codes.values.numel()} codes differ"
    assert (compensation.order.tolist() == list(range(columns))) is not act_order


@settings(max_examples=30, deadline=None)
@given(
    name=st.sampled_from(SCHEMES),
    columns=st.integers(40, 2 * BLOCK + 9),
    seed=st.integers(0, 2**16),
    act_order=st.booleans(),
)
def test_outputs_err_less_than_after_rounding_to_nearest(
    name: str, columns: int, seed: int, act_order: bool
) -> None:
    """Summed over a dozen rows and far fewer columns than tokens; a single row may lose."""
    scheme = Scheme.named(name)
    hessian = second_moments(correlated(columns, 3 * columns, seed))
    weight = torch.randn(12, columns, generator=torch.Generator().manual_seed(seed))
    codes = gptq(weight, Compensation.of(hessian, 0.01, act_order), scheme)
    lost = output_error(codes.dequantize() - weight, hessian)
    nearest = output_error(round_to_nearest(weight, scheme).dequantize() - weight, hessian)
    assert lost < 0.8 * nearest


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("name", SCHEMES)
def test_inputs_that_do_not_go_together(name: str, act_order: bool) -> None:
    """With a diagonal H no column can make up for another: that is rounding to nearest."""
    scheme = Scheme.named(name)
    generator = torch.Generator().manual_seed(3)
    hessian = torch.diag(torch.rand(200, generator=generator) + 0.1)
    weight = torch.randn(7, 200, generator=generator)
    codes = gptq(weight, Compensation.of(hessian, 0.01, act_order), scheme)
    assert torch.equal(codes.values, round_to_nearest(weight, scheme).values)


def test_two_columns_by_hand() -> None:
    """H = [[2, 1], [1, 2]]: the second column moves by half of what the first was off by.

    0.3 is rounded to 0, so that 0.3 too little reaches outputs of x = (a, b) as 0.3 a. The
    least of (0.3 a + d b)² over H is at d = -0.3 · 1/2, which brings 0.4 + 0.15 to 1.
    """
    hessian = torch.tensor([[2.0, 1.0], [1.0, 2.0]])
    weight = torch.tensor([[0.3, 0.4, 7.5]])
    whole = torch.block_diag(hessian, torch.ones(1, 1))
    codes = gptq(weight, Compensation.of(whole, 1e-9), Scheme.named("int4-channel"))
    assert codes.scale.tolist() == [[1.0]]
    assert (codes.values[0].int() - 8).tolist() == [0, 1, 7]
    assert (
        round_to_nearest(weight, Scheme.named("int4-channel")).values[0].int() - 8
    ).tolist() == [
        0,
        0,
        7,
    ]


def test_few_tokens_leave_h_without_rank() -> None:
    """Fewer tokens than columns: damping gives the rest of the directions a weight."""
    x = correlated(300, 40, seed=4)
    weight = torch.randn(8, 300, generator=torch.Generator().manual_seed(5))
    scheme = Scheme.named("int4-g64")
    codes = gptq(weight, Compensation.of(second_moments(x), 0.01, True), scheme)
    codes.check()
    assert torch.isfinite(codes.dequantize()).all()
    lost = output_error(codes.dequantize() - weight, second_moments(x))
    nearest = round_to_nearest(weight, scheme).dequantize() - weight
    assert lost < 0.5 * output_error(nearest, second_moments(x))


def test_hardly_any_damping() -> None:
    """H of condition 10⁹ is factorised where float32 would find negative squares.

    The inputs are whole numbers, so that float32 holds their sums.
    """
    x = correlated(150, 60, seed=11).round()
    hessian = second_moments(x)
    weight = torch.randn(6, 150, generator=torch.Generator().manual_seed(12))
    scheme, damp = Scheme.named("int4-channel"), 1e-7
    damped = hessian + damp * hessian.diagonal().mean() * torch.eye(150)
    assert int(torch.linalg.cholesky_ex(damped)[1]) > 0
    compensation = Compensation.of(hessian, damp)
    codes = gptq(weight, compensation, scheme)
    lost = output_error(codes.dequantize() - weight, hessian)
    usual = gptq(weight, Compensation.of(hessian, 0.1), scheme)
    assert lost < 0.7 * output_error(usual.dequantize() - weight, hessian)


def test_the_size_of_inputs_does_not_matter() -> None:
    """H may be a sum or a mean, of dead columns too."""
    x = correlated(130, 500, seed=6)
    x[:, 17] = 0
    weight = torch.randn(5, 130, generator=torch.Generator().manual_seed(7))
    scheme = Scheme.named("int4-channel")
    first = gptq(weight, Compensation.of(second_moments(x)), scheme)
    second = gptq(weight, Compensation.of(second_moments(x) * 2.0**-20), scheme)
    assert torch.equal(first.values, second.values)


def test_nothing_but_dead_columns() -> None:
    weight = torch.randn(5, 64, generator=torch.Generator().manual_seed(8))
    scheme = Scheme.named("int4-g32")
    codes = gptq(weight, Compensation.of(torch.zeros(64, 64)), scheme)
    assert torch.equal(codes.values, round_to_nearest(weight, scheme).values)


def test_inputs_that_are_no_numbers() -> None:
    hessian = torch.eye(8)
    hessian[3, 3] = torch.nan
    with pytest.raises(QuireError, match="not finite"):
        Compensation.of(hessian)


def test_arguments_stay_as_they_were() -> None:
    hessian = second_moments(correlated(40, 100, seed=9))
    weight = torch.randn(3, 40, generator=torch.Generator().manual_seed(10))
    before = hessian.clone(), weight.clone()
    gptq(weight, Compensation.of(hessian, 0.05, True), Scheme.named("int4-g8"))
    assert torch.equal(hessian, before[0])
    assert torch.equal(weight, before[1])
