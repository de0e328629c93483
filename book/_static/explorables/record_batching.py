"""What the explorables of batching play: one load served four ways, and a load for the simulator.

Times are those of a measured machine (`steps-qwen3-8b-h200`), whoever makes the decisions:
quire itself for the timeline, `quire.analysis.queueing` or its twin in the browser for the
load explorer.
"""

from __future__ import annotations

import random
from dataclasses import asdict
from pathlib import Path
from typing import Any

from quire import LLM
from quire.analysis import catalog_config, find_hardware, kv_bytes_per_token
from quire.analysis.queueing import Gate, poisson_arrivals
from quire.analysis.step_time import StepTime
from quire.bench.replay import TIMELINE, replay
from quire.resources import load_measurement

MEASUREMENT = "steps-qwen3-8b-h200"
NUM_SEATS = 4
WHOLE_PROMPTS, CHUNK = 4096, 256  # token budgets of a step, those of the chapter
MODES = (
    ("static", Gate("static", batch=NUM_SEATS), WHOLE_PROMPTS),
    ("dynamic", Gate("dynamic", batch=NUM_SEATS, window=0.05), WHOLE_PROMPTS),
    ("continuous", Gate(), WHOLE_PROMPTS),
    ("chunked", Gate(), CHUNK),
)


def measured_clock() -> tuple[dict[str, Any], StepTime]:
    """The measurement, and its step times.

    A cached token of Qwen3-8B takes what the rows over context say; where the file has none,
    its bytes over the bandwidth that the book measured.
    """
    measurement = load_measurement(MEASUREMENT)
    config = catalog_config("Qwen/Qwen3-8B")
    assert config is not None
    bandwidth = find_hardware("h200").measured().bandwidth_bytes_per_s
    token_seconds = kv_bytes_per_token(config, "bf16") / bandwidth
    return measurement, StepTime.from_rows(measurement["rows"], token_seconds)


def clock_source(measurement: dict[str, Any]) -> str:
    """What the times were measured on."""
    return f"{measurement['hardware']['gpu']}, measurement {MEASUREMENT}"


def batching_timeline(model: str) -> dict[str, Any]:
    """The same arrivals under four ways to batch, each a run of the engine; times in ms."""
    measurement, step_time = measured_clock()
    modes = []
    for name, gate, budget in MODES:
        llm = LLM(
            model,
            dtype="float32",
            device="cpu",
            max_model_len=2048,
            max_num_seqs=NUM_SEATS,
            max_num_batched_tokens=budget,
            overlap=False,
        )
        run = replay(llm, TIMELINE, step_time, gate)
        modes.append(
            {
                "mode": name,
                "budget": budget,
                "steps": [
                    [milliseconds(step.begin), milliseconds(step.end), step.entries]
                    for step in run.steps
                ],
                "token_times": [
                    [milliseconds(time) for time in times] for times in run.token_times
                ],
            }
        )
    return {
        "model": Path(model).name,
        "clock": clock_source(measurement),
        "seats": NUM_SEATS,
        "arrivals": [[milliseconds(a.time), a.prompt_tokens, a.output_tokens] for a in TIMELINE],
        "modes": modes,
    }


def milliseconds(seconds: float) -> float:
    """To a thousandth of one."""
    return round(seconds * 1e3, 3)


NUM_ARRIVALS = 240
WORKLOADS = {  # ranges of prompt and output lengths, in tokens
    "chat": ((40, 400), (60, 260)),
    "documents": ((1500, 4000), (40, 160)),
    "code": ((300, 1500), (16, 48)),
}
LOAD_SCENARIO = {
    "workload": "chat",
    "rate": 20,
    "loaded_rate": 32,  # what the opening question asks about
    "max_num_seqs": 32,
    "budget": 2048,
    "ttft_ms": 500,
    "tpot_ms": 15,
}


def load_explorer(model: str) -> dict[str, Any]:
    """Arrivals at unit rate, step times, and the opening scenario; no model is run."""
    measurement, step_time = measured_clock()
    generator = random.Random(0)
    workloads = {}
    for name, (prompts, outputs) in WORKLOADS.items():
        lengths = [(generator.randint(*prompts), generator.randint(*outputs)) for _ in range(64)]
        arrivals = poisson_arrivals(NUM_ARRIVALS, lengths)
        workloads[name] = [[round(a.time, 6), a.prompt_tokens, a.output_tokens] for a in arrivals]
    return {
        "clock": clock_source(measurement),
        "step_time": asdict(step_time),
        "workloads": workloads,
        "scenario": LOAD_SCENARIO,
    }
