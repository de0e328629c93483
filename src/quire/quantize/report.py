"""`Report`: what a quantization saved and what it cost, as a table and as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from quire.quantize.judge import Judgement

FILE = "quantization-report.json"


@dataclass(frozen=True)
class Report:
    """Sizes, errors of outputs by layer, and the judgement on held-out text, if there was one."""

    model: str
    arguments: dict[str, Any]
    bytes_before: int  # of all tensors
    bytes_after: int
    bits_a_weight: float  # of the quantized layers, scales and zeros included
    calibration_tokens: int
    fewest_tokens_wanted: int  # input features of the widest layer: fewer leave H without rank
    errors: dict[str, float]  # ‖ŷ - y‖ / ‖y‖ of a layer's outputs, by its name
    judgement: Judgement | None

    def save(self, folder: Path) -> None:
        """Write the report beside the checkpoint."""
        content = json.dumps(asdict(self), indent=1) + "\n"
        (folder / FILE).write_text(content, "utf-8")

    def table(self) -> str:
        """Return the report in lines for a terminal."""
        rows = [
            ("weights", f"{_size(self.bytes_before)} to {_size(self.bytes_after)}"),
            ("bits a weight", f"{self.bits_a_weight:.2f} in quantized layers"),
        ]
        if self.calibration_tokens:
            few = self.calibration_tokens < self.fewest_tokens_wanted
            advice = f"; {self.fewest_tokens_wanted:,} and more are better" if few else ""
            rows.append(("calibrated on", f"{self.calibration_tokens:,} tokens{advice}"))
        rows += [(f"error {name}", text) for name, text in self._error_rows()]
        if (found := self.judgement) is not None:
            rows += [
                ("judged on", f"{found.num_tokens:,} tokens, {found.num_bytes:,} bytes"),
                (
                    "bits a byte",
                    f"{found.original_bits_per_byte:.4f} to {found.quantized_bits_per_byte:.4f}: "
                    f"{found.change:+.2%} ({found.change_low:+.2%} to {found.change_high:+.2%})",
                ),
                ("KL", f"{found.kl_mean:.4f} nats; one position in 100 above {found.kl_99:.3f}"),
                ("top token kept", f"{found.kept:.2%} of positions"),
            ]
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:{width}}  {text}" for name, text in rows)

    def _error_rows(self) -> list[tuple[str, str]]:
        """Return the mean and the worst relative error of each kind of layer."""
        kinds: dict[str, dict[str, float]] = {}
        for name, error in self.errors.items():
            last = name.rpartition(".")[2]
            kinds.setdefault("decoder layer" if last.isdigit() else last, {})[name] = error
        rows = []
        for kind, errors in kinds.items():
            worst = max(errors, key=errors.__getitem__)
            place = worst.removeprefix("model.layers.").partition(".")[0]
            mean = sum(errors.values()) / len(errors)
            rows.append((kind, f"mean {mean:.2%}, worst {errors[worst]:.2%} in layer {place}"))
        return rows


def _size(num_bytes: int) -> str:
    for factor, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if num_bytes >= factor:
            return f"{num_bytes / factor:.3g} {unit}"
    return f"{num_bytes} B"
