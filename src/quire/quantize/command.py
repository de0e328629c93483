"""`quire quantize MODEL`: a checkpoint's weights in 8 or 4 bits, and what that cost.

Writes a checkpoint that vLLM, transformers and quire load. See the chapter "Quantization".
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from quire.quantization.scheme import Scheme
from quire.resources import shipped_models


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `quire quantize`."""
    parser.add_argument(
        "model", help=f"a shipped model ({', '.join(shipped_models())}), a folder or a hub name"
    )
    parser.add_argument(
        "--scheme",
        default="int4-g128",
        help="int4-g128 (weights alone, a scale for 128 columns), int4-g32-asym (a zero as well), "
        "int4-channel, int8-g128, int8 (weights and inputs), fp8 or fp8_block; "
        "default: %(default)s",
    )
    parser.add_argument(
        "--method", default="rtn", help="rtn (round to nearest), gptq or awq; default: %(default)s"
    )
    parser.add_argument(
        "--calibration",
        nargs="+",
        type=Path,
        default=[],
        metavar="FILE",
        help='text to calibrate on; a .jsonl file has a document a line, under "text"',
    )
    parser.add_argument("--out", type=Path, required=True, help="a folder that is not there yet")
    parser.add_argument(
        "--ignore",
        nargs="+",
        default=[],
        metavar="NAME",
        help="layers that stay as they are: a name, its beginning (model.layers.0) or its end "
        "(down_proj); the head always does",
    )
    parser.add_argument(
        "--smooth", type=float, metavar="ALPHA", help="SmoothQuant before, for rounded inputs (0.5)"
    )
    parser.add_argument("--damp", type=float, default=0.01, help="of GPTQ; default: %(default)s")
    parser.add_argument(
        "--act-order", action="store_true", help="GPTQ: columns with the largest inputs first"
    )
    parser.add_argument(
        "--tokens", type=int, default=16_384, help="to calibrate on; default: %(default)s"
    )
    parser.add_argument(
        "--length", type=int, default=1_024, help="tokens of a sequence; default: %(default)s"
    )
    parser.add_argument(
        "--evaluate",
        nargs="+",
        type=Path,
        default=[],
        metavar="FILE",
        help="other text, on which the result is compared with the original",
    )
    parser.add_argument("--device", help="cpu or cuda (default: the GPU if there is one)")


def run(args: argparse.Namespace) -> int:
    """Quantize, print the report, and return 0.

    Raises:
        QuireError: an argument or a file that cannot be used; the message names it.
        KeyboardInterrupt: asked to stop; how to go on has been said.
    """
    from quire.devices import default_device  # torch takes seconds to import
    from quire.models.loader import resolve_checkpoint
    from quire.quantize.driver import quantize
    from quire.quantize.recipe import Recipe

    recipe = Recipe(
        scheme=Scheme.named(args.scheme),
        method=args.method,
        smooth=args.smooth,
        damp=args.damp,
        act_order=args.act_order,
        ignore=tuple(args.ignore),
        num_tokens=args.tokens,
        length=args.length,
    )
    try:
        report = quantize(
            resolve_checkpoint(args.model),
            args.out,
            recipe,
            args.calibration,
            args.evaluate,
            default_device(args.device),
        )
    except KeyboardInterrupt:
        print("\nquire: stopped; the same command goes on where this one was", file=sys.stderr)
        raise
    print(report.table())
    print(f"wrote {args.out}", file=sys.stderr)
    return 0
