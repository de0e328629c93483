"""The fused kernels: under the interpreter at tiny shapes, on a GPU at real ones, and twins."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable
from typing import Any

import kernel_checks
import pytest
import torch
import torch.nn.functional as F
from kernel_checks import CHECKS, DTYPES, EPS, assert_near, draw, rms_norm64
from torch import Tensor

from quire import kernels
from quire.kernels import (
    activation,
    eight_bits,
    int4,
    linear,
    norm,
    qkv,
    runtime,
    sampling,
    softmax,
)
from quire.kernels.runtime import serves, starts_early
from quire.kernels.tiled_matrix import DEPTH, tile_for
from quire.kernels.tiles import EACH_ROWS
from quire.kv.layer import LayerKV
from quire.layers.linear import Linear
from quire.layers.rope import RotaryTable
from quire.models.rope_config import RopeConfig
from quire.quantization.unquantized import Unquantized

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def interpreted() -> dict[str, str | None]:
    """The outcome of each check, from one process with Triton's interpreter in it."""
    return kernel_checks.outcomes(kernel_checks.__file__, CHECKS)


@pytest.mark.parametrize("name", CHECKS)
def test_kernel_under_the_interpreter(name: str, interpreted: dict[str, str | None]) -> None:
    assert interpreted[name] is None, interpreted[name]


@pytest.mark.gpu
@pytest.mark.parametrize("name", CHECKS)
def test_kernel_on_a_gpu(name: str) -> None:
    kernel_checks.run(name, "cuda")


@pytest.mark.gpu
def test_offsets_beyond_int32() -> None:
    """More than 2³¹ elements: rows and weights behind that offset are their own."""
    rows, size = 2**19 + 3, 4096
    x = torch.zeros(rows, size, dtype=torch.bfloat16, device="cuda")
    x[-3:] = draw("cuda", 3, size, dtype=torch.bfloat16)
    weight = draw("cuda", size, dtype=torch.bfloat16)
    assert_near(norm.rms_norm(x, weight, EPS)[-3:], rms_norm64(x[-3:], weight))
    assert_near(softmax.softmax(x)[-3:], x[-3:].double().softmax(-1))
    gate, up = x[-3:].double().chunk(2, -1)
    assert_near(activation.silu_mul(x)[-3:], F.silu(gate) * up)
    token = x[-1:]
    for num_rows in (1, 8):
        out = linear.skinny_linear(token.expand(num_rows, -1).contiguous(), x, None)
        assert_near(out[:, -3:], (token.double() @ x[-3:].double().T).expand(num_rows, -1))


@pytest.mark.gpu
def test_kernels_that_start_early_wait_for_what_they_read() -> None:
    """A captured chain, where each kernel starts before the one in front of it has ended."""
    weights = [draw("cuda", 1024, 1024, dtype=torch.bfloat16) * 0.04 for _ in range(30)]
    scale = torch.ones(1024, dtype=torch.bfloat16, device="cuda")
    x = draw("cuda", 1, 1024, dtype=torch.bfloat16)

    def chain() -> Tensor:
        state = x.clone()
        for weight in weights:
            product = linear.linear(norm.rms_norm(state, scale, EPS), weight, None)
            normed, state = norm.add_rms_norm(product, state, scale, EPS)
            state = state + linear.linear(normed, weight, None)
        return state

    expected = x.double()
    for weight in weights:
        for _ in range(2):
            expected = expected + rms_norm64(expected, scale) @ weight.double().T
    chain()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = chain()
    for _ in range(50):
        graph.replay()
        assert ((out.double() - expected).norm() / expected.norm()).item() < 0.05


PUBLIC: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "rms_norm": lambda x, w: norm.rms_norm(x, w[0], EPS),
    "linear": lambda x, w: linear.linear(x, w, w[:, 0].contiguous()),
    "softmax": lambda x, w: softmax.softmax(x),
    "silu_mul": lambda x, w: activation.silu_mul(x),
}


def exact(name: str, x: Tensor, w: Tensor) -> Tensor:
    x, w = x.double(), w.double()
    return {
        "rms_norm": rms_norm64(x, w[0]),
        "linear": x @ w.T + w[:, 0],
        "softmax": x.softmax(-1),
        "silu_mul": F.silu(x[:, : x.shape[1] // 2]) * x[:, x.shape[1] // 2 :],
    }[name]


@pytest.mark.parametrize("name", PUBLIC)
@pytest.mark.parametrize("num_rows", [1, 3, 16, 40])
def test_twin(name: str, num_rows: int) -> None:
    x, weight = draw("cpu", num_rows, 64), draw("cpu", 30, 64)
    assert_near(PUBLIC[name](x, weight), exact(name, x, weight))


@pytest.mark.gpu
@pytest.mark.parametrize("name", PUBLIC)
@pytest.mark.parametrize("num_rows", [1, 2, 4, 5, 16, 17, 200])
@pytest.mark.parametrize("dtype", DTYPES)
def test_public_function_on_a_gpu(name: str, num_rows: int, dtype: torch.dtype) -> None:
    """Whatever kernel is chosen for the shape and dtype, the meaning is one."""
    x = draw("cuda", num_rows, 1024, dtype=dtype)
    weight = draw("cuda", 520, 1024, dtype=dtype) * 0.05
    out, oracle = PUBLIC[name](x, weight).double(), exact(name, x, weight)
    tolerance = 2 * kernel_checks.TOLERANCE[dtype]  # a norm on its own rounds once more
    assert ((out - oracle).norm() / oracle.norm()).item() <= tolerance


def test_a_cpu_keeps_the_residual() -> None:
    x, residual, weight = draw("cpu", 2, 8), draw("cpu", 2, 9)[:, :8], draw("cpu", 8)
    before = residual.clone()
    normed, total = norm.add_rms_norm(x, residual, weight, EPS)
    assert torch.equal(residual, before)
    assert torch.equal(total, x + residual)
    assert_near(normed, rms_norm64(x + residual, weight))


def test_a_cpu_writes_the_cache() -> None:
    """The twin's own write, against the kernel's expectation of slots."""
    table = RotaryTable(RopeConfig(10_000.0), 8, 20, torch.float32, torch.device("cpu"))
    key, value = (torch.zeros(3, 4, 2, 8).transpose(1, 2) for _ in range(2))
    kv = LayerKV(key, value)
    slots = torch.tensor([5, 11])
    projected = draw("cpu", 2, 6 * 8)
    _, keys, values = qkv.norm_rotate(
        projected, None, EPS, table.at(torch.tensor([1, 19])), 2, 2, kv, slots
    )
    assert torch.equal(key[[1, 2], :, [1, 3]], keys)
    assert torch.equal(value[[1, 2], :, [1, 3]], values)
    assert torch.equal(values.flatten(), projected.view(2, 6, 8)[:, 4:].flatten())
    assert key[0].eq(0).all()


def test_a_cpu_tensor_is_served_by_the_twins() -> None:
    x = torch.zeros(1, 4)
    assert not serves(x)
    assert not starts_early(x)
    assert not linear.prefers_skinny(x, x)
    assert runtime.capability(x.device) == (0, 0)
    assert sampling.greedy(torch.tensor([[1.0, 3.0, 3.0]])).tolist() == [1]


@pytest.mark.gpu
def test_more_rows_than_the_kernel_takes() -> None:
    x = torch.zeros(17, 64, device="cuda", dtype=torch.bfloat16)
    assert not linear.prefers_skinny(x, x)
    with pytest.raises(ValueError, match="17 rows: this kernel takes 16"):
        linear.skinny_linear(x, x, None)


@pytest.mark.parametrize("outputs", [64, 100, 128, 1024, 4096, 6144, 24_576, 151_936])
@pytest.mark.parametrize("depth", [64, 128, 256, 1000, 1024, 4096, 12_288])
def test_shared_tiles_fit(outputs: int, depth: int) -> None:
    """Tiles cover the weight, each part has columns, and their stages fit in 227 KB on Hopper."""
    for rows in range(1, 130):
        tile = tile_for(rows, outputs, depth)
        if outputs % 64 or depth % 128 or not 9 <= rows <= 64:
            assert tile is None
        elif 17 <= rows <= 32 or (rows > 32 and outputs <= 16_384):
            assert tile is not None  # where cuBLAS was slower in every shape that was timed
        if tile is None:
            continue
        assert tile.rows >= rows
        assert outputs % tile.outputs == 0
        assert tile.split <= 4
        assert (tile.rows + tile.outputs) * DEPTH * 2 * tile.num_stages <= 227 * 1024
        assert tile.split == 1 or outputs <= 4096  # programs enough without


@pytest.mark.parametrize("capability", [(8, 9), (9, 0), (12, 0)])
def test_who_multiplies(capability: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles on Hopper alone, with the layer's counters; elsewhere, and with gaps, cuBLAS."""
    given: list[Any] = []

    def tiled(x: Tensor, weight: Tensor, bias: Tensor | None, counters: Any, tile: Any) -> Tensor:
        given.append((counters, tile))
        return F.linear(x, weight, bias)

    monkeypatch.setattr(linear, "serves", lambda x: True)
    monkeypatch.setattr(linear, "capability", lambda device: capability)
    monkeypatch.setattr(linear, "tiled_linear", tiled)
    layer = Linear(
        2048,
        {"out": 4096},
        lambda names: Unquantized(),
        bias=True,
        dtype=torch.bfloat16,
        device=CPU,
    )
    layer.fill_random(torch.Generator().manual_seed(0))
    layer.finish_load()
    x = torch.randn(24, 2048, dtype=torch.bfloat16)
    layer(x)
    layer(torch.randn(24, 4096, dtype=torch.bfloat16)[:, ::2])
    layer(torch.randn(65, 2048, dtype=torch.bfloat16))
    assert len(given) == (capability == (9, 0))
    for counters, tile in given:
        assert tile.split == 2
        assert counters.device == x.device
        assert len(counters) >= 4096 // tile.outputs
    given.clear()
    linear.linear(x, layer.weight, None)  # nobody's counters: a tile that is shared is not taken
    assert not given


def test_a_tied_heads_counters_lie_where_its_weight_does() -> None:
    """The head is made without memory and gets the embedding's weight."""
    method = Unquantized()
    head = Linear(
        64, {"lm_head": 128}, lambda names: method, bias=False, dtype=torch.float32,
        device=torch.device("meta"),
    )  # fmt: skip
    head.weight = torch.nn.Parameter(torch.zeros(128, 64), requires_grad=False)
    head.finish_load()
    assert method._counters is not None
    assert method._counters.device == CPU


@pytest.mark.parametrize(
    ("outputs", "depth"),
    [(4096, 1024), (1024, 3072), (6144, 4096), (4096, 12_288), (24_576, 4096), (151_936, 4096)],
)
def test_warm_up_knows_every_tile(outputs: int, depth: int) -> None:
    """The numbers of rows that it runs meet each tile that some number of rows has."""

    def tiles(rows: int) -> tuple[Any, ...]:
        return (
            tile_for(rows, outputs, depth),
            int4.tile_for(rows, outputs),
            rows >= int4.UNPACK_FROM,
            eight_bits.tile_for(rows, outputs, depth, True),
            eight_bits.tile_for(rows, outputs, depth, False),
            rows >= eight_bits.LIBRARY_FROM,
        )

    warmed = list(zip(*(tiles(rows) for rows in (*range(1, 17), *EACH_ROWS)), strict=True))
    for rows in range(1, 3000):
        for tile, those in zip(tiles(rows), warmed, strict=True):
            assert tile in those, rows


@pytest.mark.parametrize("size", [16, 1024, 4096, 151_936])
@pytest.mark.parametrize("depth", [64, 1024, 2048, 3072, 4096, 12_288])
def test_tile_fits(size: int, depth: int) -> None:
    """A thread holds its share of the weight in registers, of which it has at most 255."""
    tile = linear.tile_for(torch.empty(size, depth, device="meta", dtype=torch.bfloat16))
    padded = -(-depth // tile.depth) * tile.depth
    words = tile.outputs * padded // 2 / (32 * tile.num_warps)
    assert words <= 128


def test_each_function_with_a_kernel_has_three_faces_of_the_same_arguments() -> None:
    found = []
    for info in pkgutil.iter_modules(kernels.__path__):
        module = importlib.import_module(f"quire.kernels.{info.name}")
        for face in [name for name in vars(module) if name.endswith("_triton")]:
            name = face.removesuffix("_triton")
            if getattr(module, face).__module__ == module.__name__ and name != "runs":
                faces = [getattr(module, f"{name}{kind}") for kind in ("", "_torch", "_triton")]
                assert len({str(inspect.signature(f)) for f in faces}) == 1, name
                found.append(name)
    assert {"greedy", "sample", "rms_norm", "silu_mul", "softmax", "norm_rotate"} <= {*found}
