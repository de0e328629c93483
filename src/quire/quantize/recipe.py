"""`Recipe`: how a checkpoint is quantized: which layers, in which numbers, by which method."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from quire.errors import QuireError
from quire.quantization.scheme import Scheme
from quire.quantization.write import check_writable

METHODS = ("rtn", "gptq", "awq")
NUM_TOKENS = 16_384
LENGTH = 1_024


@dataclass(frozen=True)
class Recipe:
    """The arguments on which every code depends.

    Args:
        scheme: of every linear layer in a decoder layer.
        method: "rtn" (to nearest), "gptq" or "awq".
        smooth: SmoothQuant's α, applied before; None: no smoothing.
        damp: GPTQ's, a share of the mean of H's diagonal.
        act_order: whether GPTQ rounds the columns with the largest inputs first.
        ignore: names of layers that stay as they are.
        num_tokens: of calibration text.
        length: of a sequence, in tokens.

    Raises:
        QuireError: a value out of its range, or two that do not go together.
    """

    scheme: Scheme
    method: str = "rtn"
    smooth: float | None = None
    damp: float = 0.01
    act_order: bool = False
    ignore: tuple[str, ...] = ()
    num_tokens: int = NUM_TOKENS
    length: int = LENGTH

    def __post_init__(self) -> None:
        check_writable(self.scheme)
        if self.method not in METHODS:
            raise QuireError(f"method {self.method!r}: must be one of {', '.join(METHODS)}")
        if self.scheme.kind == "fp8" and self.method != "rtn":
            raise QuireError(
                f"method {self.method!r} with scheme {self.scheme}: it moves integers on an even "
                "grid; FP8 is rounded to nearest, with --method rtn"
            )
        if self.smooth is not None and not 0 <= self.smooth <= 1:
            raise QuireError(f"smooth={self.smooth}: alpha must lie in [0, 1]; 0.5 is usual")
        if self.smooth is not None and self.method == "awq":
            raise QuireError("smooth with method 'awq': both choose the same scales; take one")
        if not 0 < self.damp <= 1:
            raise QuireError(f"damp={self.damp}: must lie in (0, 1]; 0.01 is usual")
        if self.act_order and self.method != "gptq":
            raise QuireError(f"act_order with method {self.method!r}: only gptq has an order")
        for name, least in (("num_tokens", 1), ("length", 16)):
            if getattr(self, name) < least:
                raise QuireError(f"{name}={getattr(self, name)}: must be at least {least}")

    @property
    def needs_calibration(self) -> bool:
        """Whether the codes depend on what layers are given."""
        return self.method != "rtn" or self.smooth is not None

    def arguments(self) -> dict[str, object]:
        """Return the arguments as JSON values, for a manifest or a report."""
        return {**vars(self), "scheme": str(self.scheme), "ignore": list(self.ignore)}


def layers_to_quantize(fused: Iterable[tuple[str, ...]], ignore: Sequence[str]) -> set[str]:
    """Return the names of the linear layers to be quantized.

    Args:
        fused: names of all linear layers, those that are multiplied as one together.
        ignore: whole names, their beginnings ("model.layers.0") or their ends ("down_proj").

    Raises:
        QuireError: a name fits no layer, or a part of a fused layer alone.
    """
    kept: set[str] = set()
    used: set[str] = set()
    groups = list(fused)
    for group in groups:
        fits = {name: [entry for entry in ignore if _fits(name, entry)] for name in group}
        used.update(entry for entries in fits.values() for entry in entries)
        left = [name for name in group if fits[name]]
        if left and len(left) < len(group):
            others = [name.rpartition(".")[2] for name in group if not fits[name]]
            raise QuireError(
                f"ignore {fits[left[0]][0]!r}: engines multiply {left[0]} and "
                f"{' and '.join(others)} as one matrix, in one format; ignore all of them or none"
            )
        if not left:
            kept.update(group)
    if unknown := [entry for entry in ignore if entry not in used and entry != "lm_head"]:
        raise QuireError(
            f"ignore {unknown[0]!r} names no linear layer; there are "
            f"{', '.join(name for group in groups[:4] for name in group)} and so on"
        )
    if not kept:
        raise QuireError("ignore names every linear layer: nothing is left to quantize")
    return kept


def _fits(name: str, entry: str) -> bool:
    return name == entry or name.startswith(f"{entry}.") or name.endswith(f".{entry}")


def check_shapes(columns: dict[str, int], scheme: Scheme) -> None:
    """Raise QuireError unless groups fill the rows of every layer, as loaders want it."""
    size = scheme.group_size
    for name, count in columns.items():
        if size is not None and scheme.block_rows == 1 and count % size:
            fitting = [g for g in (128, 64, 32, 16) if not count % g]
            hint = f"scheme int{scheme.bits}-g{fitting[0]}, or " if fitting else ""
            raise QuireError(
                f"scheme {scheme}: {name} has {count} input features, no multiple of {size}; take "
                f"{hint}int{scheme.bits}-channel, or ignore the layer"
            )
