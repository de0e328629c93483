"""One engine in a process of its own, timed on the works of a job: `quire bench peers` starts it.

    python peer_child.py JOB.json ANSWERS.jsonl

It runs under the interpreter of the engine that it times, so it needs nothing but that engine:
quire is not installed where vLLM is. Both engines go through the same loop and the same clock.

The job: `engine` ("quire" or "vllm"), `model` (a folder that holds a `config.json`; the weights
are random), `arguments` (of the engine's `LLM`), `collector` (is Python's garbage collector on
while it is timed) and `works`, each with `name`, `prompts`, `outputs` (tokens wanted a request)
and `runs`. The answers, one JSON object a line: first the engine's versions and what it made of
its arguments, then a work's `seconds` and produced `tokens`, a number a run. A work's line is
written when the work ends, so what was timed before a crash is kept.
"""

from __future__ import annotations

import gc
import importlib
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Load = Callable[[], int]  # run it, return how many tokens came
Prepare = Callable[[list[list[int]], list[int]], Load]  # prompts, tokens wanted of each


def start_quire(job: dict[str, Any]) -> tuple[Prepare, dict[str, Any]]:
    """Start quire with random weights; return how to prepare a load, and the facts."""
    import quire
    from quire.models.config import ModelConfig

    llm = quire.LLM(ModelConfig.from_folder(job["model"]), **job["arguments"])

    def prepare(prompts: list[list[int]], outputs: list[int]) -> Load:
        params = [
            quire.SamplingParams(max_tokens=n, temperature=0, ignore_eos=True) for n in outputs
        ]
        return lambda: _count(llm.generate(prompts, params, use_tqdm=False))

    scheduling = llm.config.scheduling
    return prepare, {
        "version": quire.__version__,
        "max_num_seqs": scheduling.max_num_seqs,
        "max_num_batched_tokens": scheduling.max_num_batched_tokens,
    }


def start_vllm(job: dict[str, Any]) -> tuple[Prepare, dict[str, Any]]:
    """Start vLLM likewise; its tokens are not turned into text, as quire's are not."""
    vllm: Any = importlib.import_module("vllm")
    llm = vllm.LLM(job["model"], **job["arguments"])

    def prepare(prompts: list[list[int]], outputs: list[int]) -> Load:
        params = [
            vllm.SamplingParams(temperature=0.0, ignore_eos=True, max_tokens=n, detokenize=False)
            for n in outputs
        ]
        given = [vllm.TokensPrompt(prompt_token_ids=prompt) for prompt in prompts]
        return lambda: _count(llm.generate(given, params, use_tqdm=False))

    scheduling = llm.llm_engine.vllm_config.scheduler_config
    return prepare, {
        "version": vllm.__version__,
        "max_num_seqs": scheduling.max_num_seqs,
        "max_num_batched_tokens": scheduling.max_num_batched_tokens,
    }


def _count(outputs: list[Any]) -> int:
    return sum(len(output.outputs[0].token_ids) for output in outputs)


def main(job_file: str, answers_file: str) -> None:
    """Do the job and append an answer a line."""
    job = json.loads(Path(job_file).read_text("utf-8"))
    torch: Any = importlib.import_module("torch")
    starts = {"quire": start_quire, "vllm": start_vllm}
    begin = time.perf_counter()
    prepare, facts = starts[job["engine"]](job)
    facts["start_seconds"] = time.perf_counter() - begin
    facts["torch"] = str(torch.__version__)
    gc.collect()
    gc.freeze()  # for both engines: a collection does not go through what the start has made
    if not job["collector"]:
        gc.disable()
    with Path(answers_file).open("w", encoding="utf-8") as answers:
        print(json.dumps(facts), file=answers, flush=True)
        for work in job["works"]:
            run = prepare(work["prompts"], work["outputs"])
            seconds, tokens = [], []
            for _ in range(work["runs"]):
                begin = time.perf_counter()
                tokens.append(run())  # it returns when the last token is on the host
                seconds.append(time.perf_counter() - begin)
            answer = {"work": work["name"], "seconds": seconds, "tokens": tokens}
            print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    sys.path.pop(0)  # this file's folder: its load.py or engine.py is nobody's import by name
    main(*sys.argv[1:])
