# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# An independent second solution, written from the notebook's text. It must earn full points too.


# %% task="pack"
# task: pack
import numpy as np


class Slots:
    """Walks through the words of one row and says where each column lies."""

    def __init__(self, columns: int, bits: int, group: int) -> None:
        """Note (word, bits to the right) of each column."""
        per_word = 32 // bits
        self.at, self.words = [], 0
        for first in range(0, columns, group):
            size = min(first + group, columns) - first
            n = (size - 1) // per_word + 1
            for c in range(size):
                ### BEGIN VARIANT dense
                word, slot = c % n, per_word - 1 - c // n
                right = slot * bits + 32 % bits
                ### END VARIANT
                ### BEGIN VARIANT doubled
                word, slot = divmod(c, per_word)
                if word % 2 == 1:
                    slot = per_word - slot - 1
                right = slot * bits
                ### END VARIANT
                ### BEGIN VARIANT sorted
                evens = size - size // 2
                word, slot = divmod(c // 2 if c % 2 == 0 else evens + c // 2, per_word)
                right = slot * bits
                ### END VARIANT
                self.at.append((self.words + word, right))
            self.words += n


def pack(codes: np.ndarray, bits: int, group: int) -> np.ndarray:
    """Return the words of codes [rows, columns], of the shape [rows, words]."""
    rows, columns = codes.shape
    slots = Slots(columns, bits, group)
    answer = np.zeros((rows, slots.words), np.int64)
    for n in range(rows):
        row = [0] * slots.words
        for code, (word, right) in zip(codes[n].tolist(), slots.at, strict=True):
            if not 0 <= code < 2**bits:
                raise ValueError(f"{code} is no code of {bits} bits")
            row[word] += code * 2**right
        answer[n] = [word if word < 2**31 else word - 2**32 for word in row]
    return answer


def unpack(words: np.ndarray, bits: int, columns: int, group: int) -> np.ndarray:
    """Return the codes [rows, columns] that lie in words [rows, words]."""
    slots = Slots(columns, bits, group)
    if words.shape[1] != slots.words:
        raise ValueError(f"a row has {words.shape[1]} words and needs {slots.words}")
    return np.array(
        [[row[word] % 2**32 // 2**right % 2**bits for word, right in slots.at]
         for row in words.tolist()]
    )  # fmt: skip


def fuse(shards: list[dict]) -> dict:
    """Return codes, scales and zeros of the matrix that the shards make."""
    kinds = {(shard["bits"], shard["columns"], shard["group"]) for shard in shards}
    if len(kinds) != 1:
        raise ValueError(f"shards that differ: {kinds}")
    ((bits, columns, group),) = kinds
    groups = (columns - 1) // group + 1
    codes, scales, zeros = [], [], []
    for shard in shards:
        blocks = (shard["rows"] - 1) // shard["block"] + 1
        if shard["words"].shape[0] != shard["rows"]:
            raise ValueError("rows of words")
        if tuple(shard["scales"].shape) != (blocks, groups):
            raise ValueError("scales")
        own = unpack(shard["words"], bits, columns, group)
        if shard["zeros"] is None:
            stored = [[2 ** (bits - 1)] * groups] * blocks
        else:
            if shard["zeros"].shape[0] != blocks:
                raise ValueError("rows of zeros")
            stored = []
            for row in unpack(shard["zeros"], bits, groups, groups).tolist():
                ### BEGIN VARIANT dense
                stored.append([0 if z == 2**bits - 1 else z + 1 for z in row])
                ### END VARIANT
                ### BEGIN VARIANT doubled
                half = 2 ** (bits - 1)
                stored.append([z + half if z < half else z - half for z in row])
                ### END VARIANT
                ### BEGIN VARIANT sorted
                stored.append([2**bits - 1 - z for z in row])
                ### END VARIANT
        for n in range(shard["rows"]):
            codes.append(own[n])
            scales.append(shard["scales"][n // shard["block"]])
            zeros.append(stored[n // shard["block"]])
    return {"codes": np.array(codes), "scales": np.array(scales), "zeros": np.array(zeros)}


# %% task="scales"
# task: scales
import math

import numpy as np


def whole(x: float) -> int:
    """The whole number next to x."""
    below = math.floor(x)
    rest = x - below
    if rest != 0.5:
        return below if rest < 0.5 else below + 1
    ### BEGIN VARIANT dense
    return below + 1
    ### END VARIANT
    ### BEGIN VARIANT doubled
    return below + 1 if x > 0 else below
    ### END VARIANT
    ### BEGIN VARIANT sorted
    return below
    ### END VARIANT


def nearest(weights: np.ndarray, scales: np.ndarray, zeros: np.ndarray, bits: int) -> np.ndarray:
    """Return the codes [rows, columns] of weights [rows, columns]; scales and zeros are [rows]."""
    top = 2**bits - 1
    return np.array(
        [
            [max(0, min(top, whole(w / scale) + zero)) for w in row]
            for row, scale, zero in zip(
                weights.tolist(), scales.tolist(), zeros.tolist(), strict=True
            )
        ],
        np.int64,
    )


def search(
    weights: np.ndarray, importance: np.ndarray, bits: int, ladder: list[float]
) -> tuple[np.ndarray, np.ndarray]:
    """Return scales and zeros [rows] of each row's best grid; importance is [columns]."""
    if not ladder or any(r <= 0 for r in ladder):
        raise ValueError(f"no ladder: {ladder}")
    top, scales, zeros = 2**bits - 1, [], []
    for row in weights:
        low, high = min(0.0, float(row.min())), max(0.0, float(row.max()))
        found = []
        for place, r in enumerate(ladder):
            scale = max(float(np.float16(r * (high - low) / top)), 1 / 16384)
            ### BEGIN VARIANT dense
            zero, rank = whole(-low / scale), -r
            ### END VARIANT
            ### BEGIN VARIANT doubled
            zero, rank = whole(-(r * low) / scale), r
            ### END VARIANT
            ### BEGIN VARIANT sorted
            zero, rank = top - whole(high / scale), place
            ### END VARIANT
            zero = max(0, min(top, zero))
            codes = nearest(row[None], np.array([scale]), np.array([zero]), bits)[0]
            off = row - (codes - zero) * scale
            found.append((float(np.dot(importance, off * off)), rank, place, scale, zero))
        _, _, _, scale, zero = min(found)
        scales.append(scale)
        zeros.append(zero)
    return np.array(scales), np.array(zeros)


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
    """Return codes [rows, columns], scales and zeros [rows, groups]."""
    now = np.array(weights, float)
    diagonal = np.array(np.diag(hessian))
    alive = [k for k in range(len(diagonal)) if diagonal[k] != 0]
    h = np.array(hessian, float)
    for k in alive:
        ### BEGIN VARIANT dense
        h[k, k] += damp * sum(diagonal) / len(alive)
        ### END VARIANT
        ### BEGIN VARIANT doubled
        h[k, k] += damp * max(diagonal)
        ### END VARIANT
        ### BEGIN VARIANT sorted
        h[k, k] += damp * np.median(diagonal[alive])
        ### END VARIANT
    codes, scales, zeros = [], [], []
    for k in range(now.shape[1]):
        if k % group == 0:
            one, other = search(now[:, k : k + group].copy(), diagonal[k : k + group].copy(), bits,
                                list(ladder))  # fmt: skip
            scales.append(np.array(one))
            zeros.append(np.array(other))
        code = np.array(nearest(now[:, k : k + 1].copy(), scales[-1], zeros[-1], bits))
        codes.append(code[:, 0])
        if k not in alive:
            continue
        rest = [j for j in alive if j >= k]
        unit = np.zeros(len(rest))
        unit[0] = 1.0
        column = np.linalg.solve(h[rest][:, rest], unit)
        error = now[:, k] - (code[:, 0] - zeros[-1]) * scales[-1]
        for j, share in zip(rest[1:], column[1:], strict=True):
            now[:, j] -= error * share / column[0]
    return {
        "codes": np.stack(codes, 1), "scales": np.stack(scales, 1), "zeros": np.stack(zeros, 1)
    }  # fmt: skip


# %% task="finer"
# task: finer
import math

import numpy as np

### BEGIN VARIANT dense


def write(
    weights: np.ndarray, importance: np.ndarray, group: int, ladder: list[float], limit: float
) -> dict:
    """Return `words`, `starts` and `scales`; importance is [columns]."""
    streams, scales = [], []
    for row in weights:
        bits_of_row, scales_of_row = [], []
        for a in range(0, len(row), group):
            part, h = row[None, a : a + group].copy(), importance[a : a + group].copy()
            for bits in (3, 4):
                (scale,), (zero,) = search(part, h, bits, ladder)
                found = nearest(part, np.array([scale]), np.array([zero]), bits)[0]
                cost = sum(h * (part[0] - (found - zero) * scale) ** 2)
                if cost <= limit:
                    break
            for number, size in [(bits - 3, 1), (zero, bits), *((c, bits) for c in found)]:
                bits_of_row += [int(number) // 2**i % 2 for i in range(size)]
            scales_of_row.append(scale)
        streams.append(bits_of_row)
        scales.append(scales_of_row)
    words, starts = [], []
    for stream in streams:
        starts.append(len(words))
        stream += [0] * (-len(stream) % 32)
        for i in range(0, len(stream), 32):
            word = sum(bit * 2**j for j, bit in enumerate(stream[i : i + 31]))
            words.append(word - stream[i + 31] * 2**31)
    return {"words": np.array(words), "starts": np.array(starts), "scales": np.array(scales)}


def read(stored: dict, columns: int, group: int) -> np.ndarray:
    """Return the weights [rows, columns] that the file stands for."""
    weights = []
    ends = [*stored["starts"][1:].tolist(), len(stored["words"])]
    for start, end, scales in zip(stored["starts"], ends, stored["scales"], strict=True):
        words = stored["words"][start:end]
        bits = [int(word) % 2**32 // 2**i % 2 for word in words for i in range(32)][::-1]

        def take(count, bits=bits):
            if len(bits) < count:
                raise ValueError("the row's words end too early")
            return sum(bits.pop() * 2**i for i in range(count))

        row = []
        for place, scale in enumerate(scales):
            size = 3 + take(1)
            zero = take(size)
            for _ in range(min(group, columns - place * group)):
                row.append((take(size) - zero) * scale)
        weights.append(row)
    return np.array(weights)


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
    """Return `codes`, `zeros`, `exponents`, `steps`; scales and zeros are [rows, groups]."""
    codes, exponents, steps = [], [], []
    for n in range(len(weights)):
        codes_of_row, exponents_of_row, steps_of_row = [], [], []
        for g, scale in enumerate(scales[n].tolist()):
            if g % block == 0:
                largest, e = max(scales[n, g : g + block]), 0
                while largest > 255 * 2.0**e:
                    e += 1
                while largest <= 255 * 2.0 ** (e - 1):
                    e -= 1
                exponents_of_row.append(e)
            part = weights[n : n + 1, g * group : (g + 1) * group].copy()
            h = importance[g * group : (g + 1) * group]
            tried = []
            for step in {math.floor(scale / 2.0**e), math.ceil(scale / 2.0**e)}:
                if 1 <= step <= 255:
                    stored, zero = step * 2.0**e, int(zeros[n, g])
                    code = nearest(part, np.array([stored]), np.array([zero]), bits)[0]
                    cost = float(np.dot(h, (part[0] - (np.array(code) - zero) * stored) ** 2))
                    tried.append((cost, -step, code))
            _, minus, code = min(tried, key=lambda one: one[:2])
            steps_of_row.append(-minus)
            codes_of_row += list(code)
        codes.append(codes_of_row)
        exponents.append(exponents_of_row)
        steps.append(steps_of_row)
    return {
        "codes": np.array(codes), "zeros": np.array(zeros), "exponents": np.array(exponents),
        "steps": np.array(steps),
    }  # fmt: skip


def read(stored: dict, group: int, block: int) -> np.ndarray:
    """Return the weights [rows, columns] that the file stands for."""
    codes, zeros = stored["codes"], stored["zeros"]
    steps, exponents = stored["steps"], stored["exponents"]
    if ((steps < 1) | (steps > 255)).any():
        raise ValueError("a step that is none")
    if exponents.shape[1] != math.ceil(steps.shape[1] / block):
        raise ValueError("exponents and blocks")
    weights = np.zeros(codes.shape)
    for n in range(codes.shape[0]):
        for k in range(codes.shape[1]):
            g = k // group
            unit = math.ldexp(1.0, int(exponents[n, g // block]))
            weights[n, k] = (codes[n, k] - zeros[n, g]) * int(steps[n, g]) * unit
    return weights


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
    """Return `codes`, `scales`, `zeros` and, if not static, `g_idx`."""
    now = np.array(weights, float)
    rows, columns = now.shape
    diagonal = [float(hessian[k, k]) for k in range(columns)]
    visits = sorted(range(columns), key=lambda k: -diagonal[k])
    alive = [k for k in visits if diagonal[k] != 0]
    h = np.array(hessian, float)
    for k in alive:
        h[k, k] += damp * np.median([diagonal[j] for j in alive])
    group_of = {k: (k if static else visits.index(k)) // group for k in range(columns)}
    count = math.ceil(columns / group)
    scales, zeros = np.zeros((rows, count)), np.zeros((rows, count), np.int64)

    def find(g):
        mine = [k for k in range(columns) if group_of[k] == g]
        found = search(now[:, mine], np.array([diagonal[k] for k in mine]), bits, list(ladder))
        scales[:, g], zeros[:, g] = found
        known.add(g)

    known = set()
    for g in range(count if static else 0):
        find(g)
    codes = np.zeros((rows, columns), np.int64)
    for k in visits:
        g = group_of[k]
        if g not in known:
            find(g)
        codes[:, k] = np.array(nearest(now[:, [k]], scales[:, g].copy(), zeros[:, g].copy(), bits)
                               )[:, 0]  # fmt: skip
        if diagonal[k] == 0:
            continue
        rest = alive[alive.index(k) :]
        column = np.linalg.inv(h[rest][:, rest])[:, 0]
        error = now[:, k] - (codes[:, k] - zeros[:, g]) * scales[:, g]
        for j, share in zip(rest[1:], column[1:], strict=True):
            now[:, j] -= error * share / column[0]
    answer = {"codes": codes, "scales": scales, "zeros": zeros}
    if not static:
        answer["g_idx"] = np.array([group_of[k] for k in range(columns)])
    return answer


def read(stored: dict, group: int) -> np.ndarray:
    """Return the weights [rows, columns] that the file stands for."""
    rows, columns = stored["codes"].shape
    count = stored["scales"].shape[1]
    if "g_idx" in stored:
        group_of = [int(g) for g in stored["g_idx"]]
        if len(group_of) != columns:
            raise ValueError("g_idx has another length")
        if not set(group_of) <= set(range(count)):
            raise ValueError("g_idx names a group that is not there")
    else:
        group_of = [k // group for k in range(columns)]
        if max(group_of) != count - 1:
            raise ValueError("scales of other groups")
    weights = np.zeros((rows, columns))
    for k, g in enumerate(group_of):
        weights[:, k] = (stored["codes"][:, k] - stored["zeros"][:, g]) * stored["scales"][:, g]
    return weights


### END VARIANT


# %% task="engine"
# task: engine
import math

import numpy as np


class Layer:
    """Multiplies by the weights that shards store."""

    def __init__(self, shards: list[dict], inputs: str) -> None:
        """Take the shards of one layer, first to last; `inputs` is "plain" or "token"."""
        if inputs != "plain" and inputs != "token":
            raise ValueError(inputs)
        self.rounds = inputs == "token"
        self.group = shards[0]["group"]
        self.fused = {name: np.array(value) for name, value in fuse(shards).items()}
        self.words = sum(shard["words"].size for shard in shards)
        self.words += sum(shard["zeros"].size for shard in shards if shard["zeros"] is not None)
        self.scales = sum(shard["scales"].size for shard in shards)

    def bytes(self) -> int:
        """Return how many bytes the shards take in a file."""
        return 4 * self.words + 2 * self.scales

    def apply(self, x: np.ndarray) -> np.ndarray:
        """Return products [tokens, rows] of x [tokens, columns], a group at a time."""
        x = np.array([self.eight(token) for token in x]) if self.rounds else np.array(x)
        codes, scales, zeros = (self.fused[name] for name in ("codes", "scales", "zeros"))
        total = np.zeros((len(x), len(codes)))
        for g in range(scales.shape[1]):
            here = slice(g * self.group, (g + 1) * self.group)
            part = x[:, here] @ codes[:, here].T - np.outer(x[:, here].sum(1), zeros[:, g])
            total += part * scales[:, g]
        return total

    def eight(self, token):
        """A token in 8 bits."""
        largest = max(abs(token))
        if largest == 0:
            return token
        step = largest / 127
        return [self.whole(value / step) * step for value in token.tolist()]

    def whole(self, v):
        """The whole number next to v."""
        ### BEGIN VARIANT dense
        return math.floor(v + 0.5)
        ### END VARIANT
        ### BEGIN VARIANT doubled
        return int(math.copysign(math.floor(abs(v) + 0.5), v))
        ### END VARIANT
        ### BEGIN VARIANT sorted
        return -math.floor(0.5 - v)
        ### END VARIANT
