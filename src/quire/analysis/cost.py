"""From dollars per hour and watts to the price and the energy of a token.

A machine costs the same whether it is busy or idle, so these are prices at full use: a
server that is busy a third of the day pays three times as much a token. Explained in the
chapter "Autoregressive decoding", section on what a token costs.
"""

from __future__ import annotations

SECONDS_PER_HOUR = 3600.0
JOULES_PER_KWH = 3.6e6


def usd_per_million_tokens(usd_per_hour: float, tokens_per_s: float) -> float:
    """Return dollars per 10⁶ tokens: (usd / 3600 s) / (tokens / s) · 10⁶."""
    return usd_per_hour / SECONDS_PER_HOUR / tokens_per_s * 1e6


def joules_per_token(watts: float, tokens_per_s: float) -> float:
    """Return the energy of a token in joules: watts / (tokens / s)."""
    return watts / tokens_per_s


def electricity_usd_per_million_tokens(
    watts: float, tokens_per_s: float, usd_per_kwh: float
) -> float:
    """Return the electricity in 10⁶ tokens, in dollars: the floor under any rent."""
    return joules_per_token(watts, tokens_per_s) * 1e6 / JOULES_PER_KWH * usd_per_kwh
