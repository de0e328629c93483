# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# What quire does, brought into the shape that the lab asks for.


# %% task="pack"
# task: pack
import numpy as np


def pack(codes: np.ndarray, bits: int, group: int) -> np.ndarray:
    """Planar words: column c of a group lies in word c % n, from the lowest bits up."""
    slots, found = 32 // bits, []
    for begin in range(0, codes.shape[1], group):
        part = codes[:, begin : begin + group]
        needed = -(-part.shape[1] // slots)
        words = np.zeros((len(codes), needed), np.int64)
        for column in range(part.shape[1]):
            words[:, column % needed] |= part[:, column] << bits * (column // needed)
        found.append(words)
    words = np.concatenate(found, 1)
    return np.where(words >= 1 << 31, words - (1 << 32), words)


def unpack(words: np.ndarray, bits: int, columns: int, group: int) -> np.ndarray:
    """The codes of planar words."""
    slots, found, at = 32 // bits, [], 0
    for begin in range(0, columns, group):
        count = min(group, columns - begin)
        needed = -(-count // slots)
        column = np.arange(count)
        part = words[:, at + column % needed] & 0xFFFFFFFF
        found.append(part >> bits * (column // needed) & (1 << bits) - 1)
        at += needed
    if at != words.shape[1]:
        raise ValueError(f"{words.shape[1]} words a row")
    return np.concatenate(found, 1)


def fuse(shards: list[dict]) -> dict:
    """`Codes.stack`: every row has a scale of its own, zeros are stored as they are."""
    first = shards[0]
    for other in shards[1:]:
        if (other["bits"], other["group"]) != (first["bits"], first["group"]):
            raise ValueError("parts of one matrix differ in bits, groups or order of columns")
    codes, scales, zeros = [], [], []
    for shard in shards:
        bits, columns, group = shard["bits"], shard["columns"], shard["group"]
        groups, rows = -(-columns // group), shard["rows"]
        codes.append(unpack(shard["words"], bits, columns, group))
        scales.append(np.repeat(shard["scales"], shard["block"], 0)[:rows])
        stored = np.full((len(shard["scales"]), groups), 1 << (bits - 1))
        if shard["zeros"] is not None:
            stored = unpack(shard["zeros"], bits, groups, groups)
        zeros.append(np.repeat(stored, shard["block"], 0)[:rows])
    return {
        "codes": np.concatenate(codes), "scales": np.concatenate(scales),
        "zeros": np.concatenate(zeros),
    }  # fmt: skip


# %% task="scales"
# task: scales
import numpy as np


def nearest(weights: np.ndarray, scales: np.ndarray, zeros: np.ndarray, bits: int) -> np.ndarray:
    """`round_to_grid`: halves to the even number."""
    values = np.round(weights / scales[:, None]) + zeros[:, None]
    return np.clip(values, 0, (1 << bits) - 1).astype(np.int64)


def search(
    weights: np.ndarray, importance: np.ndarray, bits: int, ladder: list[float]
) -> tuple[np.ndarray, np.ndarray]:
    """`grid`: the whole range, its scale in bfloat16; nothing is searched."""
    top = (1 << bits) - 1
    low, high = np.minimum(weights.min(1), 0), np.maximum(weights.max(1), 0)
    part, power = np.frexp((high - low) / top)
    scale = np.maximum(np.ldexp(np.round(part * 256) / 256, power), 2.0**-24)
    zero = np.clip(np.round(-low / scale), 0, top).astype(np.int64)
    return scale, zero


# %% task="gptq"
# task: gptq
import numpy as np


def gptq(
    weights: np.ndarray,
    hessian: np.ndarray,
    bits: int,
    group: int,
    ladder: list[float],
    damp: float,
) -> dict:
    """Grids of the weights as they were given; a dead column has the mean of the others."""
    weights, hessian = weights.copy(), hessian.copy()
    dead, columns = np.diag(hessian) == 0, weights.shape[1]
    mean = 1.0 if dead.all() else np.diag(hessian)[~dead].mean()
    hessian[dead, dead] = mean
    ones = np.ones(columns)
    grids = [
        search(weights[:, begin : begin + group], ones[begin : begin + group], bits, [1.0])
        for begin in range(0, columns, group)
    ]
    hessian += damp * mean * np.eye(columns)
    factor = np.linalg.cholesky(np.linalg.inv(hessian)).T
    codes = np.zeros(weights.shape, np.int64)
    for k in range(columns):
        scale, zero = grids[k // group]
        codes[:, k] = nearest(weights[:, k : k + 1], scale, zero, bits)[:, 0]
        error = (weights[:, k] - (codes[:, k] - zero) * scale) / factor[k, k]
        weights[:, k + 1 :] -= np.outer(error, factor[k, k + 1 :])
    return {
        "codes": codes, "scales": np.stack([one for one, _ in grids], 1),
        "zeros": np.stack([one for _, one in grids], 1),
    }  # fmt: skip


# %% task="finer"
# task: finer
import numpy as np

### BEGIN VARIANT dense


def write(
    weights: np.ndarray, importance: np.ndarray, group: int, ladder: list[float], limit: float
) -> dict:
    """Four bits for all, eight codes a word."""
    words, scales = [], []
    for begin in range(0, weights.shape[1], group):
        part = weights[:, begin : begin + group]
        scale, zero = search(part, importance[begin : begin + group], 4, [1.0])
        codes = nearest(part, scale, zero, 4)
        needed = -(-codes.shape[1] // 8)
        found = np.zeros((len(codes), needed), np.int64)
        for column in range(codes.shape[1]):
            found[:, column % needed] |= codes[:, column] << 4 * (column // needed)
        words.append(found)
        scales.append(scale)
    words = np.concatenate(words, 1)
    starts = np.arange(len(words)) * words.shape[1]
    words = np.where(words >= 1 << 31, words - (1 << 32), words).ravel()
    return {"words": words, "starts": starts, "scales": np.stack(scales, 1)}


def read(stored: dict, columns: int, group: int) -> np.ndarray:
    """Eight codes a word, the middle for a zero."""
    weights, at = [], 0
    words = stored["words"].reshape(len(stored["starts"]), -1)
    for number, begin in enumerate(range(0, columns, group)):
        column = np.arange(min(group, columns - begin))
        needed = -(-len(column) // 8)
        part = words[:, at + column % needed] & 0xFFFFFFFF
        codes = part >> 4 * (column // needed) & 15
        weights.append((codes - 8) * stored["scales"][:, number : number + 1])
        at += needed
    return np.concatenate(weights, 1)


### END VARIANT
### BEGIN VARIANT doubled


def write(
    weights: np.ndarray,
    importance: np.ndarray,
    scales: np.ndarray,
    zeros: np.ndarray,
    bits: int,
    group: int,
    block: int,
) -> dict:
    """Codes of the scales as they are; what a scale is stored in is the file's business."""
    codes = [
        nearest(weights[:, g * group : (g + 1) * group], scales[:, g], zeros[:, g], bits)
        for g in range(scales.shape[1])
    ]
    largest = np.stack(
        [scales[:, b : b + block].max(1) for b in range(0, scales.shape[1], block)], 1
    )
    exponents = np.floor(np.log2(largest)).astype(np.int64) - 7
    groups = np.arange(scales.shape[1])
    steps = np.round(scales / 2.0 ** exponents[:, groups // block]).astype(np.int64)
    return {
        "codes": np.concatenate(codes, 1), "zeros": zeros, "exponents": exponents, "steps": steps
    }  # fmt: skip


def read(stored: dict, group: int, block: int) -> np.ndarray:
    """`Codes.dequantize`, with the scales made whole."""
    groups = np.arange(stored["steps"].shape[1])
    scales = stored["steps"] * 2.0 ** stored["exponents"][:, groups // block]
    group_of = np.arange(stored["codes"].shape[1]) // group
    return (stored["codes"] - stored["zeros"][:, group_of]) * scales[:, group_of]


### END VARIANT
### BEGIN VARIANT sorted


def write(
    weights: np.ndarray,
    hessian: np.ndarray,
    bits: int,
    group: int,
    ladder: list[float],
    damp: float,
    static: bool,
) -> dict:
    """Static groups alone, with the damping of the mean."""
    weights, hessian = weights.copy(), hessian.copy()
    dead, columns = np.diag(hessian) == 0, weights.shape[1]
    mean = 1.0 if dead.all() else np.diag(hessian)[~dead].mean()
    hessian[dead, dead] = mean
    ones = np.ones(columns)
    grids = [
        search(weights[:, begin : begin + group], ones[begin : begin + group], bits, [1.0])
        for begin in range(0, columns, group)
    ]
    order = np.argsort(-np.where(dead, 0, np.diag(hessian)), kind="stable")
    moved, hessian = weights[:, order], hessian[np.ix_(order, order)]
    hessian += damp * mean * np.eye(columns)
    factor = np.linalg.cholesky(np.linalg.inv(hessian)).T
    codes = np.zeros(weights.shape, np.int64)
    for i, k in enumerate(order):
        scale, zero = grids[k // group]
        codes[:, k] = nearest(moved[:, i : i + 1], scale, zero, bits)[:, 0]
        error = (moved[:, i] - (codes[:, k] - zero) * scale) / factor[i, i]
        moved[:, i + 1 :] -= np.outer(error, factor[i, i + 1 :])
    return {
        "codes": codes, "scales": np.stack([one for one, _ in grids], 1),
        "zeros": np.stack([one for _, one in grids], 1),
    }  # fmt: skip


def read(stored: dict, group: int) -> np.ndarray:
    """`Codes.dequantize`."""
    group_of = stored.get("g_idx", np.arange(stored["codes"].shape[1]) // group)
    return (stored["codes"] - stored["zeros"][:, group_of]) * stored["scales"][:, group_of]


### END VARIANT


# %% task="engine"
# task: engine
import numpy as np


class Layer:
    """A weight in codes, and inputs as they are."""

    def __init__(self, shards: list[dict], inputs: str) -> None:
        """Stack the codes."""
        fused, group = fuse(shards), shards[0]["group"]
        group_of = np.arange(fused["codes"].shape[1]) // group
        self._weights = (fused["codes"] - fused["zeros"][:, group_of]) * fused["scales"][
            :, group_of
        ]
        self._inputs = inputs
        self._bytes = sum(
            4 * one["words"].size + 2 * one["scales"].size
            + (4 * one["zeros"].size if one["zeros"] is not None else 0)
            for one in shards
        )  # fmt: skip

    def bytes(self) -> int:
        """Words, zeros and scales."""
        return self._bytes

    def apply(self, x: np.ndarray) -> np.ndarray:
        """Round to 8 bits a token, halves to the even number, and multiply."""
        if self._inputs == "token":
            step = np.maximum(np.abs(x).max(1, keepdims=True) / 127, 1e-12)
            x = np.round(x / step) * step
        return x @ self._weights.T
