"""The command `quire`: generate, info, plan, quantize, bench."""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
import time
from typing import Any

from quire.errors import InvalidRequestError, QuireError
from quire.rank_flags import add_rank_arguments, is_follower, rank_options


def main(argv: list[str] | None = None) -> int:
    """Run the command line; an error of the caller's is one line on stderr and status 2.

    Characters that the terminal's encoding lacks are written as escapes (\\u65e5). Where nobody
    reads the output any more, the status is that of SIGPIPE, as for other commands. A stream
    that the shell closed (`>&-`) is None to Python: without one for the output nothing is run.
    """
    if sys.stderr is None:
        sys.stderr = io.StringIO()  # which nobody reads; print would take None for sys.stdout
    if sys.stdout is None:
        print(
            "quire: standard output is closed, so that there is nowhere to write to: send it to a "
            "file, or to /dev/null",
            file=sys.stderr,
        )
        return 2
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        status = _run(sys.argv[1:] if argv is None else argv)
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        _drop_output()
        return 128 + 13
    except OSError as error:  # the output's disk is full
        print(f"quire: {error}", file=sys.stderr)
        _drop_output()
        return 2


def _drop_output() -> None:
    """Write no more: what is left in a buffer would raise again when the interpreter ends."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(nowhere, stream.fileno())


def _run(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="quire", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    _add_generate(commands.add_parser("generate", help="continue a prompt"))

    # Each command imports its own needs: `quire info` has no use for torch.
    from quire import info, plan
    from quire.quantize import command as quantize

    info.add_arguments(commands.add_parser("info", help="memory and cost of a model"))
    plan.add_arguments(commands.add_parser("plan", help="a model on several GPUs: which layout"))
    quantize.add_arguments(commands.add_parser("quantize", help="weights in 8 or 4 bits"))
    if arguments[:1] == ["bench"]:
        from quire.bench import command as bench

        bench.add_arguments(commands.add_parser("bench", help="measure"))
    else:
        commands.add_parser("bench", help="measure", add_help=False)

    args = parser.parse_args(arguments)
    try:
        if args.command == "generate":
            return _generate(args)
        if args.command == "info":
            return info.run(args)
        if args.command == "plan":
            return plan.run(args)
        if args.command == "quantize":
            return quantize.run(args)
        return bench.run(args, " ".join(["quire", *arguments]))
    except QuireError as error:
        print(f"quire: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130


def _add_generate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompt", help="the text to continue; - reads standard input")
    parser.add_argument("--model", default="quire-mini", help="default: %(default)s")
    parser.add_argument("--max-tokens", type=int, default=128, help="default: %(default)s")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 is greedy (default)")
    parser.add_argument("--top-k", type=int, default=0)
    parser.add_argument("--top-p", type=float, default=1.0)
    parser.add_argument("--min-p", type=float, default=0.0)
    parser.add_argument("--repetition-penalty", type=float, default=1.0)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--stop", action="append", default=[], help="may be repeated")
    parser.add_argument("--device")
    parser.add_argument("--dtype")
    parser.add_argument(
        "--quantization",
        metavar="SCHEME",
        help="round the layers of a plain checkpoint: int8, int4, fp8, fp8_block, int4-g32-asym, …",
    )
    parser.add_argument(
        "--speculative-config",
        type=_json,
        help="""who guesses tokens ahead, as JSON: '{"method": "ngram"}'""",
    )
    parser.add_argument(
        "--draft",
        metavar="MODEL",
        help="a smaller model that guesses tokens ahead, such as quire-mini-draft",
    )
    add_rank_arguments(parser)


def _speculative_config(args: argparse.Namespace) -> Any:
    """Return who guesses, by either way to say it.

    Raises:
        QuireError: both are given.
    """
    if args.draft is None:
        return args.speculative_config
    if args.speculative_config is not None:
        raise QuireError(
            f"--draft {args.draft} with --speculative-config: name the draft model in one of them"
        )
    return {"method": "draft_model", "model": args.draft}


def _json(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no JSON: {error}") from None


def _generate(args: argparse.Namespace) -> int:
    """Stream one completion to the terminal, then say how fast it came."""
    ranks = rank_options(args)
    prompt = args.prompt
    if prompt == "-" and not is_follower(ranks):
        prompt = _read_standard_input()
    from quire.llm import LLM  # takes seconds: what cannot be read is said before
    from quire.sampling.params import SamplingParams

    params = SamplingParams(
        max_tokens=args.max_tokens,
        temperature=args.temperature,
        top_k=args.top_k,
        top_p=args.top_p,
        min_p=args.min_p,
        repetition_penalty=args.repetition_penalty,
        seed=args.seed,
        stop=args.stop,
    )
    llm = LLM(
        args.model,
        device=args.device,
        dtype=args.dtype,
        quantization=args.quantization,
        speculative_config=_speculative_config(args),
        **ranks,
    )
    begin = time.perf_counter()
    shown = None
    for output in llm.stream(prompt, params):
        if shown is None:  # the prompt could be served
            print(prompt, end="")
        text = output.outputs[0].text
        print(text[shown or 0 :], end="", flush=True)
        shown = len(text)
    seconds = time.perf_counter() - begin
    completion, metrics = output.outputs[0], output.metrics
    count = len(completion.token_ids)
    first = ""
    if metrics is not None and metrics.ttft is not None:
        first = f"; first after {metrics.ttft * 1e3:.0f} ms"
    print(
        f"\n[{count} tokens in {seconds:.2f} s, {count / seconds:.1f} tokens/s{first}; "
        f"ended by {completion.finish_reason}]",
        file=sys.stderr,
    )
    return 0


def _read_standard_input() -> str:
    if sys.stdin is None:
        raise InvalidRequestError(
            "prompt '-' reads standard input, which is closed: pipe a text into it, or give the "
            "text as the prompt"
        )
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as error:
        raise InvalidRequestError(
            f"standard input is no {error.encoding}: byte {error.object[error.start]:#04x} at "
            f"position {error.start} ({error.reason}); convert it, or set PYTHONIOENCODING"
        ) from None
