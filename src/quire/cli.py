"""The command `quire`: generate, info, bench."""

from __future__ import annotations

import argparse
import sys
import time

from quire.errors import QuireError


def main(argv: list[str] | None = None) -> int:
    """Run the command line; an error of the caller's is one line on stderr and status 2."""
    arguments = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(prog="quire", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    _add_generate(commands.add_parser("generate", help="continue a prompt"))

    # Each command imports its own needs: `quire info` has no use for torch.
    from quire import info

    info.add_arguments(commands.add_parser("info", help="memory and cost of a model"))
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


def _generate(args: argparse.Namespace) -> int:
    """Stream one completion to the terminal, then say how fast it came."""
    from quire.llm import LLM
    from quire.sampling.params import SamplingParams

    prompt = sys.stdin.read() if args.prompt == "-" else args.prompt
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
    llm = LLM(args.model, device=args.device, dtype=args.dtype)
    begin = time.perf_counter()
    print(prompt, end="", flush=True)
    shown = 0
    for output in llm.stream(prompt, params):
        text = output.outputs[0].text
        print(text[shown:], end="", flush=True)
        shown = len(text)
    seconds = time.perf_counter() - begin
    completion, metrics = output.outputs[0], output.metrics
    assert metrics is not None
    assert metrics.ttft is not None
    count = len(completion.token_ids)
    print(
        f"\n[{count} tokens in {seconds:.2f} s, {count / seconds:.1f} tokens/s; first after "
        f"{metrics.ttft * 1e3:.0f} ms; ended by {completion.finish_reason}]",
        file=sys.stderr,
    )
    return 0
