"""What `quire bench peers` runs: the works, the settings of each engine, and their turns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from quire.bench.engine import Load, mix256, uniform_load

QUIRE = {
    "max_model_len": 2048,
    "max_num_seqs": 256,
    "max_num_batched_tokens": 16384,
    "enable_prefix_caching": False,
}
VLLM = {
    "load_format": "dummy",
    "skip_tokenizer_init": True,
    "dtype": "bfloat16",
    "max_model_len": 2048,
    "enable_prefix_caching": False,
    "gpu_memory_utilization": 0.9,  # quire's default, too
    "seed": 0,
}
IN_PROCESS = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}


@dataclass(frozen=True)
class Work:
    """A load with how often it runs; the first `cold` runs are kept, and count as warm-up."""

    load: Load
    runs: int
    cold: int = 1

    @property
    def num_tokens(self) -> int:
        """Tokens that a run must produce."""
        return sum(params.output_limit for params in self.load[1])

    def value(self, seconds: float) -> float:
        """Milliseconds a token of one request, or tokens a second of many."""
        single = len(self.load[0]) == 1
        return seconds / self.num_tokens * 1e3 if single else self.num_tokens / seconds


def make_works() -> dict[str, Work]:
    """Return the works by name, in the order in which every turn runs them."""
    one = uniform_load(1, 128, 256)
    return {
        "batch1": Work(one, runs=7),
        "64x512x256": Work(uniform_load(64, 512, 256), runs=4),
        "mix256": Work(mix256(), runs=4),
        "batch1-again": Work(one, runs=4, cold=0),
    }


@dataclass(frozen=True)
class Setting:
    """An engine with what it is started with; `works` are those it is meant for."""

    engine: str
    name: str
    arguments: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    works: tuple[str, ...] = ("batch1", "64x512x256", "mix256", "batch1-again")
    collector: bool = True  # Python's garbage collector, while it is timed


OWN = Setting("quire", "as benched", QUIRE)
SETTINGS = (
    Setting("vllm", "default", VLLM),
    Setting("vllm", "in-process", VLLM, IN_PROCESS),
    Setting(
        "vllm",
        "batch-1",
        VLLM
        | {
            "max_num_seqs": 8,
            "performance_mode": "interactivity",
            "compilation_config": {
                "compile_sizes": [1],  # tuned by inductor for one row
                "cudagraph_capture_sizes": [1, 2, 4, 8],
            },
        },
        IN_PROCESS,
        works=("batch1", "batch1-again"),
        collector=False,
    ),
    Setting(
        "vllm",
        "throughput",
        VLLM | {"performance_mode": "throughput"},
        works=("64x512x256", "mix256"),
    ),
)


def take_turns(settings: Sequence[Setting]) -> list[Setting]:
    """Return `settings` with quire before every second one, and at the end."""
    turns: list[Setting] = []
    for index, setting in enumerate(settings):
        turns += [OWN, setting] if index % 2 == 0 else [setting]
    return [*turns, OWN]
