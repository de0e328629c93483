"""Measure TTFT and TPOT of quire on this machine and write `hidden/recorded.json`.

    python labs/autoregressive-decoding/record.py

quire-mini in float32 on one CPU thread. The configurations take turns for twenty rounds,
after one to warm up; of every step the shortest of the twenty is kept, since the work is the
same and whatever else the machine does only adds time.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import subprocess
from pathlib import Path

import torch

from quire import LLM, SamplingParams
from quire.models.config import ModelConfig

HERE = Path(__file__).parent
CONFIGURATIONS = [
    (batch, prompt)
    for batch in (1, 2, 4, 8)
    for prompt in (16, 48, 128, 256, 448)
    if batch * prompt <= 512
]
OUTPUT, ROUNDS = 12, 20


def describe(config: ModelConfig) -> dict[str, int]:
    """The sizes that the lab's task counts with; nothing special is switched on."""
    return {
        "layers": config.num_layers,
        "hidden": config.hidden_size,
        "heads": config.num_heads,
        "kv_heads": config.num_kv_heads,
        "head_size": config.head_size,
        "ffn": config.intermediate_size,
        "vocab": config.vocab_size,
        "weight_bytes": 4,
        "kv_bytes": 4,
    }


def run(llm: LLM, batch: int, prompt: int) -> list[float]:
    """Seconds of each step of one static batch."""
    vocab = llm.model_config.vocab_size
    prompts = [[(7 * i + 31 * j) % (vocab - 10) + 5 for j in range(prompt)] for i in range(batch)]
    params = SamplingParams(max_tokens=OUTPUT, temperature=0, ignore_eos=True)
    metrics = [out.metrics for out in llm.generate(prompts, params) if out.metrics]
    start = min(m.arrival_time for m in metrics)
    known = [max(times) for times in zip(*(m.token_times for m in metrics), strict=True)]
    return [end - begin for begin, end in zip([start, *known], known, strict=False)]


def measure(llm: LLM) -> list[dict[str, float]]:
    """Run all configurations in turns; return a row for each."""
    best = {configuration: [float("inf")] * OUTPUT for configuration in CONFIGURATIONS}
    for turn in range(ROUNDS + 1):
        for configuration, steps in best.items():
            seconds = run(llm, *configuration)
            if turn > 0:
                best[configuration] = [min(pair) for pair in zip(steps, seconds, strict=True)]
    return [
        {
            "batch": batch,
            "prompt": prompt,
            "output": OUTPUT,
            "ttft": steps[0],
            "tpot": sum(steps[1:]) / (OUTPUT - 1),
        }
        for (batch, prompt), steps in best.items()
    ]


def main() -> None:
    """Measure and write the file."""
    torch.set_num_threads(1)
    llm = LLM("quire-mini", device="cpu", dtype="float32", max_num_batched_tokens=8192)
    rows = measure(llm)
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=HERE, check=True
    )
    record = {
        "what": "TTFT and TPOT, seconds, of a static batch; of every step the best of twenty",
        "hardware": f"{_processor()}, 1 thread of {os.cpu_count()}",
        "software": {"python": platform.python_version(), "torch": torch.__version__},
        "date": datetime.date.today().isoformat(),
        "command": "python labs/autoregressive-decoding/record.py",
        "commit": commit.stdout.strip(),
        "model": describe(llm.model_config),
        "rows": rows,
    }
    (HERE / "hidden" / "recorded.json").write_text(json.dumps(record, indent=1) + "\n", "utf8")


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text("utf8").split("\n")
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


if __name__ == "__main__":
    main()
