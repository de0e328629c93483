"""What a step of quire takes on one rank, part by part: a model of the engine, not its limit.

`predict` (`quire.analysis.latency`) bounds any engine from below. Here stands what this one
reaches: products as long as they were measured, one by one, for a layer of one model, a constant
for each launch, and what the host needs. The constants were chosen by measurements of kernels and
of single steps on one H200, but for those that say they are assumed. Whole runs were not used, so
that they can judge the sum (tests/engine/test_layouts.py): on one GPU, two and four. Of eight
nothing has judged it yet. Explained in the chapter "Parallelism".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cache

from quire.analysis.catalog import catalog_config
from quire.analysis.collectives import Link
from quire.analysis.hardware import Hardware, find_hardware
from quire.analysis.memory import dtype_bytes
from quire.analysis.quantization import bits_a_weight, linear_weights, product_dtype
from quire.analysis.shares import Read, Share
from quire.analysis.step_time import Entry, Points, interpolate
from quire.errors import QuireError
from quire.quantization.scheme import Scheme
from quire.resources import load_measurement


# docs: rates begin
@dataclass(frozen=True)
class EngineRates:
    """quire's constants. Each says where it comes from, and what was assumed."""

    launch_s: float = 1.9e-6  # of a product of one row, in a graph (kernels-h200)
    launch_doubling_s: float = 0.5e-6  # for each doubling of its rows up to 32 (steps-h200)
    rounding_s: float = 2.5e-6  # rounding a product's inputs to eight bits (LEDGER)
    layer_s: float = 9.2e-6  # a layer's other kernels, of one row: norms, heads, attention
    step_s: float = 20e-6  # a step's own kernels, and what passes between two replays (LEDGER)
    prompt_attention_share: float = 0.69  # of the products' (LEDGER: 468 of 679)
    host_layer_s: float = 345e-6  # Python launches a layer (steps-h200, steps-qwen3-8b-h200)
    host_step_s: float = 0.1e-3  # Python schedules and answers a step (overlap-h200)
    host_row_s: float = 5.5e-6  # and for each request in it (overlap-h200)
    eager_step_s: float = 1e-3  # of a step with a prompt, before its first kernel (steps-*)
    # Tokens that a lone prompt is padded to; a longer one is launched (`runner/prompt_graphs.py`).
    prompt_sizes: tuple[int, ...] = (16, 32, 64, *range(128, 1024 + 1, 64))
    rank_step_s: float = 1.0e-3  # from ranks' answers to their next step being launched (LEDGER)
    rank_row_s: float = 11e-6  # and for each request (LEDGER)
    captures_stages: bool = True  # whether a pipeline's stages replay graphs, as quire's do


# docs: rates end

QUIRE = EngineRates()
# What a rank tells of a row where the largest logit is wanted: its own largest, and whose it is
# (`quire.kernels.best_keys`). A step without a graph, or one that draws, exchanges logits.
KEY_BYTES = 8
_MOST_DOUBLINGS = 5  # 32 rows
_LAYER_OF = "Qwen/Qwen3-8B"  # whose products were timed


@dataclass(frozen=True)
class StepParts:
    """Seconds of one step on one rank: what the device spends on each part, and the host beside it.

    The device's parts add up; the host launches while the device computes.
    """

    weights: float = 0.0  # products that wait for their weights
    arithmetic: float = 0.0  # products and prompts' attention that wait for the units
    cache: float = 0.0  # keys and values read
    rows: float = 0.0  # activations and logits read and written
    launches: float = 0.0  # what kernels take beside that, one after another
    exchange: float = 0.0  # collectives
    host: float = 0.0
    begin: float = 0.0  # what the host must do before the device has anything to do

    @property
    def device(self) -> float:
        """What the device is busy for."""
        return sum(getattr(self, name) for name in DEVICE_PARTS)

    @property
    def seconds(self) -> float:
        """The step, where nothing precedes and nothing follows it."""
        return self.begin + max(self.device, self.host)

    @property
    def busy(self) -> float:
        """What keeps the next one of other requests waiting: the device, or the host."""
        return max(self.device, self.begin + self.host)

    @property
    def bottleneck(self) -> str:
        """The name of what it is spent on most: the host, or the device's largest part."""
        if self.begin + self.host > self.device:
            return "host"
        return max(DEVICE_PARTS, key=lambda name: float(getattr(self, name)))


DEVICE_PARTS = tuple(f.name for f in fields(StepParts) if f.name not in ("host", "begin"))


@dataclass(frozen=True)
class Load:
    """What a step computes, as its time depends on it."""

    tokens: int  # positions, those of prompts included
    samples: int  # requests, each of which needs one row of logits
    cached: int  # tokens whose keys and values are read, added up over requests
    pairs: int = 0  # (query, key) pairs of prompts
    is_decode: bool = True  # one position a request, so that a graph may be replayed
    is_alone: bool = False  # one prompt and nothing else: so may a graph of its layers

    @classmethod
    def decode(cls, batch: int, context: int) -> Load:
        """Return a step that adds a token to each of `batch` contexts, itself included in them."""
        return cls(batch, batch, batch * context)

    @classmethod
    def prompt(cls, num_tokens: int) -> Load:
        """Return a step that computes one prompt."""
        return cls.of([(0, 0, num_tokens)])

    @classmethod
    def of(cls, entries: Sequence[Entry]) -> Load:
        """Return the load of a step's entries."""
        tokens = cached = pairs = prompts = 0
        for _, start, count in entries:
            tokens += count
            if count == 1:
                cached += start + 1
            else:
                prompts += 1
                cached += start
                pairs += count * start + count * (count + 1) // 2
        # A step with a new request is never replayed, not even for a prompt of one token.
        is_decode = prompts == 0 and all(start > 0 for _, start, _ in entries)
        return cls(tokens, len(entries), cached, pairs, is_decode, prompts == len(entries) == 1)


# docs: step-parts begin
def step_parts(
    share: Share,
    load: Load,
    hardware: Hardware,
    link: Link,
    *,
    kv_dtype: str = "bf16",
    rates: EngineRates = QUIRE,
) -> StepParts:
    """Return what a step takes on each rank of a stage; sliding windows count as full attention.

    A decode step chooses greedily.

    Args:
        share: of the rank.
        load: of the step, of which tensor ranks compute all rows, with their heads and columns.
        hardware: its ceilings, `Hardware.measured()` where it has them.
        link: between tensor ranks.
        kv_dtype: of the cache.
        rates: of the engine.
    """
    captures = share.layout.pipeline == 1 or rates.captures_stages
    captured = captures and load.is_decode
    padded = None  # tokens of a prompt whose layers are replayed
    if captures and load.is_alone and not captured:
        padded = next((size for size in rates.prompt_sizes if size >= load.tokens), None)
    if padded is not None:
        load = replace(load, tokens=padded)
    bandwidth, peak = hardware.bandwidth_bytes_per_s, hardware.peak("bf16")
    hidden, layers, size = share.model.hidden_size, share.num_layers, share.layout.tensor
    products = _Products(hardware, rates)
    dense, routed = share.num_dense_layers, share.num_expert_layers
    for number, experts in ((dense, False), (routed, True)):
        if number:
            for read in share.weights_read(load.tokens, experts=experts):
                products.add(number, read, share.scheme)
    logits = 0
    if share.is_last:
        products.add(1, Read(share.head_weights, load.samples), None)
        logits = load.samples * share.model.vocab_size

    local = share.local
    cache = load.cached * share.kv_bytes_per_token(kv_dtype) / bandwidth
    attention = 4 * local.num_heads * local.head_size * load.pairs * layers
    attention_s = attention / (rates.prompt_attention_share * peak)
    widths = 8 * hidden + 2 * (local.num_heads + 2 * local.num_kv_heads) * local.head_size
    # Beside two norms and the heads: the gate's three, or what passes between experts' products.
    widths_of_all: float = layers * widths + dense * 3 * local.intermediate_size
    widths_of_all += routed * share.expert_width
    rows = (load.tokens * widths_of_all + logits) * dtype_bytes("bf16") / bandwidth

    num_reduces = (2 * layers + share.is_first) * (size > 1)
    exchange = num_reduces * link.reduce_seconds(load.tokens * hidden * 2, size)
    if share.is_last:
        a_row = KEY_BYTES if captured else share.vocab_rows * 2
        exchange += link.gather_seconds(load.samples * a_row, size)

    host = rates.host_step_s + rates.host_row_s * load.samples
    if share.layout.tensor * share.layout.pipeline > 1:
        host += rates.rank_step_s + rates.rank_row_s * load.samples
    begin = 0.0  # the graph of the next step is queued while this one runs
    if not captured:
        begin = rates.eager_step_s
        calls = int(share.layout.pipeline > 1)
        if padded is None:
            calls += num_reduces
            host += layers * rates.host_layer_s
        host += calls * link.eager_call_s
    elif share.layout.pipeline > 1:  # its token comes from the last stage: nothing is ahead
        begin, host = host, 0.0
    return StepParts(
        weights=products.memory,
        arithmetic=products.arithmetic + attention_s,
        cache=cache,
        rows=rows,
        launches=products.launches + layers * rates.layer_s + rates.step_s,
        exchange=exchange,
        host=host,
        begin=begin,
    )


# docs: step-parts end


class _Products:
    """Adds up products: what they wait for, and what their launches take."""

    def __init__(self, hardware: Hardware, rates: EngineRates) -> None:
        self._hardware = hardware
        self._rates = rates
        self.memory = self.arithmetic = self.launches = 0.0

    def add(self, number: int, read: Read, scheme: Scheme | None) -> None:
        """Count a product of weights in a scheme, `number` times."""
        seconds = number * read.weights * a_weight(self._hardware, scheme, read.rows)
        memory, arithmetic = ceilings(self._hardware, scheme, read.rows)
        if memory >= arithmetic:
            self.memory += seconds
        else:
            self.arithmetic += seconds
        self.launches += number * launch_seconds(self._rates, scheme, read.rows)


def launch_seconds(rates: EngineRates, scheme: Scheme | None, rows: float) -> float:
    """Return what a product takes besides reading and computing, with rounding its inputs."""
    doublings = min(math.log2(max(rows, 1.0)), _MOST_DOUBLINGS)
    rounds = scheme is not None and scheme.inputs != "plain"
    return rates.launch_s + doublings * rates.launch_doubling_s + rounds * rates.rounding_s


def ceilings(hardware: Hardware, scheme: Scheme | None, rows: float) -> tuple[float, float]:
    """Return the seconds in which a weight can be read, and multiplied by `rows` rows."""
    memory = bits_a_weight(scheme) / 8 / hardware.bandwidth_bytes_per_s
    return memory, 2 * rows / hardware.peak(product_dtype(scheme, hardware))


# docs: a-weight begin
def a_weight(hardware: Hardware, scheme: Scheme | None, rows: float) -> float:
    """Return the seconds of a product a weight of its matrix, launches left out.

    As measured for the four products of a layer of Qwen3-8B on an H200, between whose rows lie
    straight lines; on another device as much over its ceiling as there.
    """
    name = None if scheme is None else str(scheme)
    own = max(ceilings(hardware, scheme, rows))
    there = max(ceilings(reference_device(), scheme, rows))
    return interpolate(measured_products(name), rows) * own / there


@cache
def reference_device() -> Hardware:
    """Return the device on which products were timed, with its measured ceilings."""
    return find_hardware("h200").measured()


def reachable(hardware: Hardware) -> Hardware:
    """Return a device with ceilings that products and copies reach: measured, where they were.

    Elsewhere they are as large a share of the data sheet's as on the H200: an assumption.
    """
    if hardware.measured_bandwidth_bytes_per_s is not None:
        return hardware.measured()
    sheet, there = find_hardware("h200"), reference_device()
    share = there.bandwidth_bytes_per_s / sheet.bandwidth_bytes_per_s
    rates = {
        dtype: rate * there.peak_flops[dtype] / sheet.peak_flops[dtype]
        for dtype, rate in hardware.peak_flops.items()
        if dtype in there.measured_peak_flops
    }
    return replace(
        hardware,
        name=f"{hardware.name}, as much of the data sheet as on the H200",
        bandwidth_bytes_per_s=hardware.bandwidth_bytes_per_s * share,
        peak_flops={**hardware.peak_flops, **rates},
    )


@cache
def measured_products(name: str | None) -> Points:
    """Return (rows, seconds a weight), never falling, of a format; None: 16 bits."""
    scheme = None if name is None else Scheme.named(name)
    config = catalog_config(_LAYER_OF)
    assert config is not None
    weights = linear_weights(config) / config.num_layers
    points, longest = [], 0.0
    for rows, seconds in _layer_rows(name):
        launches = 4 * launch_seconds(QUIRE, scheme, rows)
        longest = max(longest, (seconds - launches) / weights)
        points.append((rows, longest))
    return tuple(points)


# docs: a-weight end


def _layer_rows(name: str | None) -> list[tuple[float, float]]:
    """Return (rows, seconds) of the four products of a layer."""
    if name is None:
        rows = [r["parameters"] for r in load_measurement("linear-h200")["rows"]]
        return [(row["tokens"], row["microseconds_per_layer"] * 1e-6) for row in rows]
    found = [
        (row["parameters"]["tokens"], row["value"] * 1e-6)
        for row in load_measurement("quantization-speed-h200")["rows"]
        if row["case"].startswith(f"products-{name}-m")
    ]
    if not found:
        raise QuireError(
            f"quantization={name!r}: its products were not measured; "
            "int8, int4, fp8 and fp8_block were"
        )
    return found
