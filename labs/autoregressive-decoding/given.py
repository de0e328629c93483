import hashlib

import numpy as np


def rms_norm(x, weight, eps=1e-6):
    """Scale x [..., hidden] to a root mean square of 1, then by weight."""
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps) * weight


def silu(x):
    """The gate's activation."""
    return x / (1 + np.exp(-x))


def rotate(x, angles_at, theta=10_000.0):
    """Rotary embedding: turn x [T, heads, size] by the angles of the T positions `angles_at`."""
    half = x.shape[-1] // 2
    frequencies = theta ** (-np.arange(half) / half)
    angles = np.asarray(angles_at)[:, None, None] * frequencies
    first, second = x[..., :half], x[..., half:]
    cos, sin = np.cos(angles), np.sin(angles)
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def noise(seed, position):
    """One number in [0, 1) for each (seed, position): the same in any batch and in any row."""
    digest = hashlib.sha256(f"{seed}:{position}".encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48
