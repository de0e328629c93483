"""What quantized weights cost and gain: the error of rounding, the bytes, the time of a layer.

A *scheme* says in which numbers a layer keeps its weight; None stands for plain 16-bit numbers. A
*row* is one token of a step, whose vector every weight of the layer multiplies once. The
explorable "Where formats cross" evaluates `LayerTime` and `crossings` in the browser. See the
chapter "Quantization".
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from quire.analysis.hardware import Hardware
from quire.analysis.memory import count_parameters, dense_layers, expert_parameters
from quire.errors import QuireError
from quire.models.config import ModelConfig
from quire.quantization.scheme import Scheme
from quire.sampling.values import is_number, plain

PLAIN_BITS = 16  # of weights that no scheme covers: bf16 or fp16
PRODUCTS_A_LAYER = 4  # qkv, o, gate-up and down, with fused shards: one launch each
# Instructions on integers that turn one packed weight into a 16-bit number. Parameters of the
# model, no measurement: shift, mask, convert, subtract and scale every weight alone; or lay the
# bits of two weights into two numbers at once behind a fixed exponent (the magic number), with
# the zero subtracted later, once a group.
NAIVE_OPERATIONS = 5.0
MAGIC_OPERATIONS = 1.4
# Integer instructions over the float32 rate: a Hopper multiprocessor has 64 lanes for integers
# beside 128 for float32 [lockwood-h100], and the rate counts a multiply-add as two.
INTEGER_SHARE = 1 / 4
MOST_ROWS = 4096


# docs: rounding-error begin
def rounding_error(step: ArrayLike) -> float:
    """Return the mean squared error of rounding to the nearest point of a grid: s²/12.

    A number lies anywhere between two points with equal probability, if the step is no wider
    than twice the spread of the numbers. So its error is uniform in [−s/2, s/2], and the mean of
    its square is ∫e² de / s = s²/12. One bit less doubles s and quadruples the error.

    On the symmetric grid of `quire.quantization.rounding` one number of a group lies half a step
    off: the largest, which set the step. Its s²/4 make the mean over a group of G numbers
    (1 + 2/G)·s²/12. The formula does not hold beside an outlier, which makes a step that is wide
    beside all other numbers, nor for FP8, whose step grows with the number.

    Args:
        step: s, the distance of two points, which is a group's scale; or many such, each of
            equally many numbers, of which the mean is returned.

    Raises:
        QuireError: no step, or one that is negative or not finite.
    """
    steps = np.asarray(step, dtype=np.float64)
    if not steps.size:
        raise QuireError("step is empty: give the scale of one group at least")
    if wrong := steps[~(np.isfinite(steps) & (steps >= 0))].tolist():
        raise QuireError(f"step={wrong[0]}: a distance on a grid is finite and at least 0")
    return float((steps**2).mean()) / 12


# docs: rounding-error end


# Rows of a product from which quire's kernel for a format is slower than 16-bit weights: the four
# products of a layer of the 8B shape (measurements/quantization-speed-h200.json, between its rows).
SLOWER_FROM = {"NVIDIA H200 SXM": {"int4": 109}}


def linear_weights(config: ModelConfig) -> int:
    """Count the weights that quantization covers: those of the linear layers in the blocks.

    Embedding, head, norms and biases are left out; engines keep them in 16 bits. So do they
    routers, which are small; experts are covered, all of them.
    """
    query, key_value = config.num_heads * config.head_size, config.num_kv_heads * config.head_size
    attention = 2 * config.hidden_size * (query + key_value)
    dense = dense_layers(config) * 3 * config.hidden_size * config.intermediate_size
    experts = 0
    if config.moe is not None:
        experts = len(config.moe.layers) * config.moe.num_experts * expert_parameters(config)
    return config.num_layers * attention + dense + experts


def quantized_weight_bytes(config: ModelConfig, scheme: Scheme | None) -> float:
    """Return the bytes of all parameters with the linear layers of the blocks in a scheme.

    Everything else has 16 bits. The scales of the groups count, 16 bits each, and their zeros;
    the one scale of a whole row does not (below 0.01 bits a weight from 1,600 columns on).

    Args:
        config: sizes of the model.
        scheme: of the linear layers; None: 16 bits like the rest.
    """
    linear = linear_weights(config)
    rest = count_parameters(config).total - linear
    return (linear * bits_a_weight(scheme) + rest * PLAIN_BITS) / 8


def bits_a_weight(scheme: Scheme | None) -> float:
    """Return the bits of a weight with its share of a scale and zero; 16 without a scheme."""
    return PLAIN_BITS if scheme is None else scheme.bits_a_weight()


# docs: layer-time begin
@dataclass(frozen=True)
class LayerTime:
    """The seconds of a layer's products, a roofline over the rows with the cost of launches.

    time(rows) = overhead + max(memory, unpacking + rows · per_row)

    The weight is read once for all rows while the units compute; the integer lanes that unpack
    it and the matrix units take turns. Left out: the rows themselves (127 kB each in the 8B
    shape, most of it in the last-level cache); rounding them for FP8 and INT8; a kernel whose
    tile is shorter than the step and unpacks a weight once a tile; tiles that are not full;
    kernels that reach neither ceiling. So it is no forecast: near the knee a bf16 layer measured
    on an H200 took a quarter longer.
    """

    overhead: float  # seconds of launches
    memory: float  # seconds to read the weights
    unpacking: float  # seconds to turn packed weights into numbers that multiply
    per_row: float  # seconds of arithmetic a row

    @classmethod
    def of(
        cls,
        config: ModelConfig,
        hardware: Hardware,
        scheme: Scheme | None,
        *,
        launch_seconds: float,
        operations_a_weight: float = MAGIC_OPERATIONS,
    ) -> LayerTime:
        """Return the time of one layer of a model on a device.

        Args:
            config: sizes of the model.
            hardware: its bandwidth and rates; `Hardware.measured()` has those of real products.
            scheme: how the weight is stored; None: bf16, multiplied as it is.
            launch_seconds: what each of the four products takes besides.
            operations_a_weight: integer instructions that unpack a weight. They count where
                a scheme leaves the inputs as they are: only then is the product one of 16 bits.

        Raises:
            QuireError: a time or number that is negative or not finite, or a model with experts.
            ValueError: the device has no rate for the product; the message names those it has.
        """
        for name, value in (
            ("launch_seconds", launch_seconds),
            ("operations_a_weight", operations_a_weight),
        ):
            _require_amount(name, value)
        if config.moe is not None:
            raise QuireError(
                f"{config.architecture}: a layer of experts reads as many of them as its rows "
                "choose, which this formula does not know; give a dense model"
            )
        weights = linear_weights(config) / config.num_layers
        memory = weights * bits_a_weight(scheme) / 8 / hardware.bandwidth_bytes_per_s
        unpacking = 0.0
        if scheme is not None and scheme.inputs == "plain":
            integer_rate = hardware.peak("fp32") * INTEGER_SHARE
            unpacking = weights * operations_a_weight / integer_rate
        per_row = 2 * weights / hardware.peak(product_dtype(scheme, hardware))
        return cls(PRODUCTS_A_LAYER * launch_seconds, memory, unpacking, per_row)

    def seconds(self, rows: float) -> float:
        """Return the time of a step over this many rows.

        Raises:
            QuireError: fewer than one row.
        """
        _require_rows("rows", rows)
        return self.overhead + max(self.memory, self._arithmetic(rows))

    def bound(self, rows: float) -> str:
        """Return "compute" or "memory", whichever takes longer; of equals "memory"."""
        _require_rows("rows", rows)
        return "compute" if self._arithmetic(rows) > self.memory else "memory"

    @property
    def knee(self) -> float:
        """The rows from which on arithmetic takes longer than reading; below 1: always."""
        return (self.memory - self.unpacking) / self.per_row

    def _arithmetic(self, rows: float) -> float:
        return self.unpacking + rows * self.per_row


# docs: layer-time end


def product_dtype(scheme: Scheme | None, hardware: Hardware) -> str:
    """Return the dtype whose rate bounds the product of a scheme's weight.

    Weights whose inputs stay in 16 bits are widened to bf16. Where a device lists no rate of
    INT8 it has that of FP8: the data sheets of Hopper give both the same, twice that of bf16.
    """
    if scheme is None or scheme.inputs == "plain":
        return "bf16"
    return "int8" if scheme.kind == "int" and "int8" in hardware.peak_flops else "fp8"


# docs: crossings begin
def crossings(first: LayerTime, second: LayerTime, most_rows: float = MOST_ROWS) -> list[float]:
    """Return the rows, in 1…most_rows, at which the faster of two becomes the slower.

    Each time is two straight lines that meet at its knee. So between the knees of both the
    difference is one straight line, and has at most one root, which may be a knee itself. Two
    that touch and part again, or are equal from somewhere on, do not cross.

    Raises:
        QuireError: most_rows is less than one row.
    """
    _require_rows("most_rows", most_rows)
    knees = {knee for knee in (first.knee, second.knee) if 1 < knee < most_rows}
    found: list[float] = []
    last: tuple[float, float] | None = None  # rows and difference where it was last not 0
    equal_at: float | None = None  # a knee since then where they are equal
    for rows in sorted({1.0, *knees, float(most_rows)}):
        difference = first.seconds(rows) - second.seconds(rows)
        if difference == 0:
            equal_at = rows
            continue
        if last is not None and last[1] * difference < 0:
            root = last[0] + (rows - last[0]) * last[1] / (last[1] - difference)
            found.append(root if equal_at is None else equal_at)
        last, equal_at = (rows, difference), None
    return found


# docs: crossings end


def _require_amount(name: str, value: object) -> None:
    if not is_number(plain(value)) or not math.isfinite(plain(value)) or plain(value) < 0:
        raise QuireError(f"{name}={value!r}: must be a finite number of at least 0")


def _require_rows(name: str, value: object) -> None:
    if not is_number(plain(value)) or not math.isfinite(plain(value)) or plain(value) < 1:
        raise QuireError(f"{name}={value!r}: a step has at least 1 row, one a token")
