import hashlib
import math


def noise(seed, position, token):
    """An exponential variate, above 0, for each (seed, position, token): the same in any row."""
    digest = hashlib.sha256(f"{seed}:{position}:{token}".encode()).digest()
    return -math.log((int.from_bytes(digest[:6], "big") + 1) / 2**48) + 1e-12
