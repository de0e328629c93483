"""Quantized layers on a GPU: each kernel against float64, each scheme inside the engine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from kernel_checks import poisoned
from torch import Tensor

from quire import LLM, SamplingParams
from quire.kernels.activation import silu_mul
from quire.kernels.eight_bits import eight_bit_linear, tiled_eight_bit_linear
from quire.kernels.eight_bits_few_rows import few_rows_eight_bit_linear
from quire.kernels.int4 import UNPACK_FROM, int4_linear, tiled_int4_linear, unpack_int4
from quire.kernels.int4_few_rows import Share, few_rows_int4_linear
from quire.kernels.int4_packing import pack_int4, unpack_int4_torch
from quire.kernels.norm import add_rms_norm
from quire.kernels.round_inputs import Rounding, round_rows
from quire.kernels.rounded import add_rms_norm_rounded, silu_mul_rounded
from quire.kernels.tiles import Tile, make_counters
from quire.layers.linear import Linear
from quire.quantization.gpu import EightBitsOnGPU, Int4OnGPU
from quire.quantization.inputs import round_inputs
from quire.quantization.online import Online
from quire.quantization.scheme import Scheme

pytestmark = pytest.mark.gpu
ROWS = (1, 2, 7, 8, 16, 17, 33, 64, 65, 200, UNPACK_FROM, UNPACK_FROM + 3)
SHAPES = ((64, 128), (200, 392), (128, 4096), (1000, 1000), (72, 1072))  # N, K
SIZES: dict[str, Any] = {"max_num_seqs": 8, "num_blocks": 400}  # beside other tests' engines
BFLOAT16 = 6e-3  # of the largest output: one rounding, and the order of addition


def close(out: Tensor, expected: Tensor, limit: float = BFLOAT16) -> None:
    assert out.isfinite().all()
    assert float((out.double() - expected).abs().max() / expected.abs().max()) < limit


def random_codes(size: int, depth: int, group_size: int) -> tuple[Tensor, Tensor, Tensor]:
    groups = -(-depth // group_size)
    codes = torch.randint(0, 16, (size, depth), dtype=torch.uint8, device="cuda")
    scale = torch.rand(size, groups, device="cuda") * 0.01 + 0.001
    zero = torch.randint(0, 16, (size, groups), dtype=torch.uint8, device="cuda")
    return codes, scale, zero


@pytest.mark.parametrize(("size", "depth"), SHAPES)
@pytest.mark.parametrize("group_size", [32, 64, 128, 256])
@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_int4(size: int, depth: int, group_size: int, kind: torch.dtype) -> None:
    """Ragged groups, rows and outputs; scales as either 16-bit number; a bias or none."""
    torch.manual_seed(0)
    codes, scale, zero = random_codes(size, depth, group_size)
    scale = scale.to(kind).float()
    weight = pack_int4(codes, scale, zero, group_size)
    groups = torch.arange(depth, device="cuda") // group_size
    numbers = (codes.double() - zero.double()[:, groups]) * scale.double()[:, groups]
    assert torch.equal(unpack_int4_torch(weight).double(), numbers.float().double())
    with poisoned():
        assert torch.equal(unpack_int4(weight, torch.bfloat16), numbers.float().bfloat16())
    for rows in ROWS:
        x = torch.randn(rows, depth, device="cuda").bfloat16()
        bias = torch.randn(size, device="cuda").bfloat16() if rows % 2 else None
        expected = x.double() @ numbers.T + (0 if bias is None else bias.double())
        with poisoned():
            close(int4_linear(x, weight, bias), expected)
            again = int4_linear(x, weight, bias)
        assert torch.equal(again, int4_linear(x, weight, bias))  # counters are back at 0
    assert int(weight.counters.sum()) == 0


@pytest.mark.parametrize("split", [1, 5, 16])
@pytest.mark.parametrize(("outputs", "num_warps"), [(32, 1), (64, 2)])
@pytest.mark.parametrize("group_size", [32, 64, 128])
def test_few_rows_in_a_graph(split: int, outputs: int, num_warps: int, group_size: int) -> None:
    """A chain of products, each on what the one before wrote: an x read too soon would show.

    11 blocks leave programs without a turn of the loop.
    """
    torch.manual_seed(5)
    codes, scale, zero = random_codes(1400, 1400, group_size)
    weight = pack_int4(codes, (scale * 0.3).bfloat16().float(), zero, group_size)
    tile = Tile(8, outputs, split, num_warps, 3)
    first = torch.randn(5, 1400, device="cuda").bfloat16()
    chained(lambda x: tiled_int4_linear(x, weight, None, tile), first)


def chained(product: Callable[[Tensor], Tensor], first: Tensor) -> None:
    """Six products in a captured graph give what they give one by one."""
    expected = first
    for _ in range(6):
        expected = product(expected)
        torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = first
        for _ in range(6):
            out = product(out)
    for _ in range(3):
        out.fill_(float("nan"))
        graph.replay()
        assert torch.equal(out, expected)


SHARES = (Share(1, 4, 8), Share(4, 2, 2), Share(2, 4, 4), Share(1, 8, 1))
LIMITED = (Share(1, 4, 4, 168), Share(1, 4, 8, 255), Share(2, 2, 2, 168))


@pytest.mark.parametrize("share", SHARES + LIMITED)
@pytest.mark.parametrize("group_size", [32, 64, 128])
@pytest.mark.parametrize("size", [1400, 1388])  # the last tile is not whole
def test_few_rows_of_int4(share: Share, group_size: int, size: int) -> None:
    """Every share, 11 blocks for any number of warps; a chain in a graph, too."""
    torch.manual_seed(7)
    codes, scale, zero = random_codes(size, 1400, group_size)
    scale = (scale * 0.3).bfloat16().float()
    weight = pack_int4(codes, scale, zero, group_size)
    numbers = unpack_int4_torch(weight).double()
    bias = torch.randn(size, device="cuda").bfloat16()
    for rows in (1, 2, 5, 8, 9, 16):
        x = torch.randn(rows, 1400, device="cuda").bfloat16()
        with poisoned():
            out = few_rows_int4_linear(x, weight, bias, share)
        close(out, x.double() @ numbers.T + bias.double())
    if size == 1400:
        for rows in (1, 5):
            first = torch.randn(rows, 1400, device="cuda").bfloat16()
            chained(lambda x: few_rows_int4_linear(x, weight, None, share), first)


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("kind", [torch.int8, torch.float8_e4m3fn])
@pytest.mark.parametrize("by_group", [False, True])
def test_few_rows_of_eight_bits(share: Share, kind: torch.dtype, by_group: bool) -> None:
    """Every share, ragged groups and tiles."""
    torch.manual_seed(8)
    size, depth = 1388, 1392
    groups = -(-depth // 128) if by_group else 1
    group_of = torch.arange(depth, device="cuda") // (128 if by_group else depth)
    weight = (torch.randn(size, depth, device="cuda") * 50).round().clamp(-127, 127).to(kind)
    scale = torch.rand(size, groups, device="cuda") * 0.01 + 0.001
    numbers = weight.float().double() * scale.double()[:, group_of]
    bias = torch.randn(size, device="cuda").bfloat16()
    for rows in (1, 2, 5, 8, 9, 16):
        codes = (torch.randn(rows, depth, device="cuda") * 40).clamp(-127, 127).to(kind)
        units = torch.rand(rows, groups, device="cuda") + 0.1
        x = codes.float().double() * units.double()[:, group_of]
        with poisoned():
            out = few_rows_eight_bit_linear(
                codes, units, weight, scale, bias, torch.bfloat16, share
            )
        close(out, x @ numbers.T + bias.double())


@pytest.mark.parametrize("split", [1, 2, 4, 7])
@pytest.mark.parametrize("outputs", [64, 128])
@pytest.mark.parametrize("height", [16, 32, 64, 128])
def test_int4_tiles(split: int, outputs: int, height: int) -> None:
    """Every tile gives the same numbers, parts of columns added in their order."""
    torch.manual_seed(1)
    codes, scale, zero = random_codes(300, 1100, 128)
    weight = pack_int4(codes, scale.bfloat16().float(), zero, 128)
    x = torch.randn(100, 1100, device="cuda").bfloat16()
    tile = Tile(height, outputs, split, 4, 3)
    expected = x.double() @ unpack_int4_torch(weight).double().T
    close(tiled_int4_linear(x, weight, None, tile), expected)


@pytest.mark.parametrize("kind", [torch.int8, torch.float8_e4m3fn])
@pytest.mark.parametrize(("size", "depth"), SHAPES)
@pytest.mark.parametrize("by_group", [False, True])
def test_eight_bits(kind: torch.dtype, size: int, depth: int, by_group: bool) -> None:
    """Both kinds, scales by row or by 128 columns, in the kernel and by the library."""
    torch.manual_seed(2)
    groups = -(-depth // 128) if by_group else 1
    counters = make_counters(size, torch.device("cuda"))
    numbers = torch.randn(size, depth, device="cuda") * 50
    weight = numbers.round().clamp(-127, 127).to(kind)
    scale = torch.rand(size, groups, device="cuda") * 0.01 + 0.001
    group_of = torch.arange(depth, device="cuda") // (128 if by_group else depth)
    for rows in ROWS:
        codes = (torch.randn(rows, depth, device="cuda") * 40).clamp(-127, 127).to(kind)
        units = torch.rand(rows, groups, device="cuda") + 0.1
        bias = torch.randn(size, device="cuda").bfloat16() if rows % 2 else None
        x = codes.float().double() * units.double()[:, group_of]
        expected = x @ (weight.float().double() * scale.double()[:, group_of]).T
        expected = expected + (0 if bias is None else bias.double())
        with poisoned():
            out = eight_bit_linear(codes, units, weight, scale, bias, counters, torch.bfloat16)
        close(out, expected)
    assert int(counters.sum()) == 0


@pytest.mark.parametrize("split", [1, 3, 4])
@pytest.mark.parametrize("kind", [torch.int8, torch.float8_e4m3fn])
def test_eight_bit_tiles(split: int, kind: torch.dtype) -> None:
    """A tile of many rows, and one of few, split or whole."""
    torch.manual_seed(3)
    codes = (torch.randn(90, 700, device="cuda") * 40).clamp(-127, 127).to(kind)
    weight = (torch.randn(150, 700, device="cuda") * 40).clamp(-127, 127).to(kind)
    ones, units = torch.ones(150, 1, device="cuda"), torch.ones(90, 1, device="cuda")
    counters = make_counters(150, torch.device("cuda"))
    expected = codes.float().double() @ weight.float().double().T
    for tile in (Tile(16, 64, split, 4, 4), Tile(128, 128, split, 8, 3)):
        args = (codes, units, weight, ones, None, counters, torch.bfloat16, tile)
        close(tiled_eight_bit_linear(*args), expected)


@pytest.mark.parametrize("kind", ["int", "fp8"])
@pytest.mark.parametrize("inputs", ["token", "group", "tensor"])
@pytest.mark.parametrize("columns", [128, 1000, 4096])
def test_rounding(kind: Any, inputs: Any, columns: int) -> None:
    """The codes of torch's twin, to a code of difference where a quotient lies on the edge."""
    torch.manual_seed(4)
    x = torch.randn(37, columns, device="cuda").bfloat16()
    x[5] = 0
    fixed = torch.full((1,), 0.01, device="cuda") if inputs == "tensor" else None
    scheme = Scheme(kind, 8, 128 if inputs == "group" else None, inputs=inputs)
    expected, unit = round_inputs(x, scheme, fixed)
    size = 128 if inputs == "group" else None
    codes, ours = round_rows(x, Rounding(expected.dtype, size, fixed))
    torch.testing.assert_close(ours, unit.contiguous())
    off = (codes.float() - expected.float()).abs()
    step = expected.float().abs() / 8 if kind == "fp8" else torch.ones_like(off)
    assert (off <= step.clamp(min=2**-9)).all()
    assert (off > 0).float().mean() < 0.01


@pytest.mark.parametrize("scheme", ["int8", "fp8", "fp8_block"])
def test_rounding_in_front_in_a_graph(scheme: str) -> None:
    """A captured chain of layers whose norm and gate round: codes read too soon would show."""
    torch.manual_seed(6)
    device, generator = torch.device("cuda"), torch.Generator("cuda").manual_seed(6)
    layers = []
    for _ in range(4):
        wide = _linear(scheme, 1024, 2 * 3072, device, generator)
        layers.append((wide, _linear(scheme, 3072, 1024, device, generator)))
    weight = torch.rand(1024, device=device).bfloat16()
    first = torch.randn(5, 1024, device=device).bfloat16()

    def chain(*, in_front: bool, waits: bool = False) -> Tensor:
        x, residual = first.clone(), torch.zeros_like(first)
        for wide, deep in layers:
            ways = (wide.input_rounding, deep.input_rounding)
            assert ways[0] is not None
            assert ways[1] is not None
            if in_front:
                codes, residual = add_rms_norm_rounded(x, residual, weight, 1e-6, ways[0])
                x = deep(silu_mul_rounded(wide(codes), ways[1]))
            else:
                normed, residual = add_rms_norm(x, residual, weight, 1e-6)
                x = deep(silu_mul(wide(normed)))
            if waits:
                torch.cuda.synchronize()
        return x + residual

    expected = chain(in_front=False, waits=True)
    assert torch.equal(chain(in_front=True, waits=True), expected)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = chain(in_front=True)
    for _ in range(20):
        out.fill_(float("nan"))
        graph.replay()
        assert torch.equal(out, expected)


def _linear(
    scheme: str, depth: int, size: int, device: torch.device, generator: torch.Generator
) -> Linear:
    stored_as = Online(Scheme.named(scheme))
    linear = Linear(
        depth,
        {"out": size},
        lambda names: EightBitsOnGPU(stored_as),
        bias=False,
        dtype=torch.bfloat16,
        device=device,
    )
    linear.fill_random(generator)
    return linear


@pytest.mark.parametrize("scheme", ["int8", "fp8", "fp8_block"])
def test_rounding_in_front_changes_no_bit(scheme: str) -> None:
    """Norm and gate round as a launch of its own does: every log-probability stays."""
    prompts = ["def fibonacci(n):\n", "class Stack:\n    def ", "import " * 120]
    params = SamplingParams(temperature=0, max_tokens=24, logprobs=5, ignore_eos=True)
    llm = LLM(
        "quire-mini", quantization=scheme, cuda_graphs=False, enable_prefix_caching=False, **SIZES
    )
    told = []
    for in_front in (True, False):
        outputs = llm.generate(prompts, params, use_tqdm=False)
        told.append([(o.outputs[0].token_ids, o.outputs[0].logprobs) for o in outputs])
        for layer in _model(llm).layers:
            norms = layer.input_layernorm, layer.post_attention_layernorm
            assert in_front is all(norm.rounding is not None for norm in norms)
            assert in_front is (layer.mlp._rounding is not None)
            for norm in norms:
                norm.rounding = None
            layer.mlp._rounding = None
    assert told[0] == told[1]


@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize("scheme", ["int8", "int4", "int4-g32-asym", "fp8", "fp8_block"])
def test_in_the_engine(scheme: str, graphs: bool) -> None:
    """The top-five rule between kernels on the GPU and the CPU's float32, on quire-mini."""
    prompts = ["def fibonacci(n):\n", "class Stack:\n    def ", "import "]
    params = SamplingParams(temperature=0, max_tokens=32, logprobs=5, ignore_eos=True)
    ours = LLM("quire-mini", quantization=scheme, cuda_graphs=graphs, **SIZES)
    methods = {type(layer.mlp.down_proj.method) for layer in _model(ours).layers}
    assert methods <= {Int4OnGPU, EightBitsOnGPU}
    oracle = LLM("quire-mini", quantization=scheme, device="cpu")
    for out, expected in zip(
        ours.generate(prompts, params, use_tqdm=False),
        oracle.generate(prompts, params, use_tqdm=False),
        strict=True,
    ):
        mine, theirs = out.outputs[0], expected.outputs[0]
        assert mine.logprobs is not None
        assert theirs.logprobs is not None
        for i, (a, b) in enumerate(zip(mine.token_ids, theirs.token_ids, strict=True)):
            if a != b:
                assert a in theirs.logprobs[i]
                assert b in mine.logprobs[i]
                break


@pytest.mark.parametrize("scheme", ["int4", "fp8", "int8"])
def test_with_cache_codes_and_drafts(scheme: str) -> None:
    """An 8-bit cache and guesses beside quantized weights: guesses change no token."""
    prompts = ["def fibonacci(n):\n    if n < 2:\n        return n\n    return "] * 3
    params = SamplingParams(temperature=0, max_tokens=48, ignore_eos=True)
    options: dict[str, Any] = {"quantization": scheme, "kv_cache_dtype": "int8", **SIZES}
    plain = LLM("quire-mini", **options).generate(prompts, params, use_tqdm=False)
    guessing = LLM(
        "quire-mini",
        speculative_config={"method": "draft_model", "model": "quire-mini-draft"},
        **options,
    )
    texts = [out.outputs[0].text for out in guessing.generate(prompts, params, use_tqdm=False)]
    assert all(len(text) > 0 for text in texts)
    assert texts[0][:4] == plain[0].outputs[0].text[:4]


def _model(llm: LLM) -> Any:
    return llm.engine.executor.worker._model  # type: ignore[attr-defined]
