"""`EngineConfig`: everything an engine is told when it is made, in groups.

A field of a group is an option of `LLM` by the same name: this is where each is described,
and where its default and its limits stand. Options that depend on the model or the device are
resolved by `EngineConfig.resolve`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypedDict

import torch

from quire.devices import default_device, default_dtype
from quire.errors import QuireError
from quire.kernels.runtime import capability, runs_triton
from quire.kv.quantized import FORMATS
from quire.models.config import ModelConfig
from quire.option_checks import require_counts, require_flags, require_rows, require_share
from quire.parallel.expert_plan import Placements, place_experts
from quire.parallel.options import ParallelOptions
from quire.policy import require_policy
from quire.quantization.scheme import Scheme
from quire.sampling.params import is_int
from quire.speculation.config import SpeculativeConfig


@dataclass(frozen=True)
class ModelOptions:
    """How the model is run.

    Args:
        max_model_len: longest sequence, prompt and output together, in tokens; by default the
            model's own limit, at most 4,096.
        device: where the model runs, "cpu", "cuda", "cuda:1", …; by default the GPU if there
            is one.
        dtype: type of weights and activations: "float32", "bfloat16" or "float16" (or, as vLLM
            has them, "float" and "half"); by default, and for "auto", float32 on a CPU, on a GPU
            bfloat16 from compute capability 8.0 on and float16 below.
        cuda_graphs: replay captured graphs for steps of one token a request and for short prompts
            that come alone; by default where Triton's kernels run, from compute capability 8.0 on.
        quantization: what the layers of a plain checkpoint are rounded to while it is loaded:
            "int8", "int4", "fp8", "fp8_block" or another scheme of `quire.quantization.scheme`;
            by default nothing. A checkpoint that is quantized already needs no option.
    """

    max_model_len: int
    device: torch.device
    dtype: torch.dtype
    cuda_graphs: bool = False
    quantization: str | None = None

    def __post_init__(self) -> None:
        require_counts(self, "max_model_len")
        require_flags(self, "cuda_graphs")
        if self.quantization is not None:
            Scheme.named(self.quantization)  # refuses what is none


@dataclass(frozen=True)
class CacheOptions:
    """The KV cache: its size, its format, and what is kept in it.

    Args:
        block_size: positions in a block, a power of two of at least 8.
        num_blocks: blocks, the null block among them; by default what
            `gpu_memory_utilization` leaves on a GPU, on a CPU enough for every running request
            at full length, within 4 GiB.
        gpu_memory_utilization: share of the GPU's memory that the engine may use.
        enable_prefix_caching: keep the blocks of ended requests for those that begin alike.
        kv_cache_dtype: "int8" or "fp8" keeps codes of eight bits and a scale a token and head
            (`quire.kv.quantized`); by default, and for "auto", keys and values have the model's
            `dtype`.
        kv_window: a query sees the last so many positions, its own among them, and blocks that
            no query sees any more are released; by default all positions.
        kv_sinks: beside its window a query sees the first so many positions.
        num_host_blocks: blocks of a second tier in host memory, for each KV group; cached
            blocks go there when the first is full (`quire.kv.host`), and are loaded when a
            prompt, or a preempted request, begins with them.
    """

    block_size: int = 16
    num_blocks: int | None = None
    gpu_memory_utilization: float = 0.9
    enable_prefix_caching: bool = True
    kv_cache_dtype: str | None = None
    kv_window: int | None = None
    kv_sinks: int = 0
    num_host_blocks: int = 0

    def __post_init__(self) -> None:
        size = self.block_size
        if not is_int(size) or size < 8 or size & (size - 1):
            raise QuireError(f"block_size={size!r}: must be a power of two of at least 8")
        if self.num_blocks is not None and (not is_int(self.num_blocks) or self.num_blocks < 2):
            raise QuireError(f"num_blocks={self.num_blocks!r}: must be an integer of at least 2")
        require_share(self, "gpu_memory_utilization", zero=False, one=True)
        require_flags(self, "enable_prefix_caching")
        if self.kv_window is not None:
            require_counts(self, "kv_window")
        require_counts(self, "kv_sinks", "num_host_blocks", least=0)
        if self.kv_sinks > 0 and self.kv_window is None:
            raise QuireError(
                f"kv_sinks={self.kv_sinks} without kv_window: without a window every position is "
                "seen anyway"
            )
        if self.num_host_blocks > 0 and not self.enable_prefix_caching:
            raise QuireError(
                f"num_host_blocks={self.num_host_blocks} with enable_prefix_caching=False: blocks "
                "are found in host memory by their prefix"
            )
        if self.num_host_blocks > 0 and self.kv_window is not None:
            raise QuireError(
                f"num_host_blocks={self.num_host_blocks} with kv_window={self.kv_window}: a prefix "
                "is found by its blocks in order, and behind a window they are gone; choose one"
            )
        if self.kv_cache_dtype == "auto":
            object.__setattr__(self, "kv_cache_dtype", None)
        if self.kv_cache_dtype not in (None, *FORMATS):
            raise QuireError(
                f"kv_cache_dtype={self.kv_cache_dtype!r}: must be one of {', '.join(FORMATS)}, or "
                "None or 'auto' for the model's own dtype"
            )


@dataclass(frozen=True)
class SchedulingOptions:
    """Who runs when.

    Args:
        max_num_seqs: requests that run at once; more wait.
        max_num_batched_tokens: token budget of one step; a longer prompt is computed in chunks
            over several steps.
        policy: who runs first and who is preempted: "fcfs", "priority" or "fair"
            (`quire.policy`).
        watermark: share of the blocks that admitting a request leaves free, so that those that
            run can grow before anyone is preempted.
        overlap: schedule a step while the one before it still runs; by default on a GPU. A step
            behind which the host guesses tokens ("ngram", "suffix") is waited for even so.
            Behind one whose guesses a draft model makes, these wait on a GPU: steps that are not
            captured, and requests that ask for what `quire.runner.starts` names.
    """

    max_num_seqs: int = 32
    max_num_batched_tokens: int = 4096
    policy: str = "fcfs"
    watermark: float = 0.01
    overlap: bool = False

    def __post_init__(self) -> None:
        require_counts(self, "max_num_seqs", "max_num_batched_tokens")
        require_policy(self.policy)
        require_share(self, "watermark", zero=True, one=False)
        require_flags(self, "overlap")


class EngineOptions(TypedDict, total=False):
    """The options of `LLM`: the fields of the groups above, as a caller may give them.

    `speculative_config` is a dict of the fields of `quire.speculation.config.SpeculativeConfig`.
    """

    max_model_len: int | None
    device: str | torch.device | None
    dtype: str | torch.dtype | None
    cuda_graphs: bool | None
    quantization: str | None
    block_size: int
    num_blocks: int | None
    gpu_memory_utilization: float
    enable_prefix_caching: bool
    kv_cache_dtype: str | None
    kv_window: int | None
    kv_sinks: int
    num_host_blocks: int
    max_num_seqs: int
    max_num_batched_tokens: int
    policy: str
    watermark: float
    overlap: bool | None
    tensor_parallel_size: int
    pipeline_parallel_size: int
    data_parallel_size: int
    enable_expert_parallel: bool
    num_redundant_experts: int
    expert_loads: str | None
    record_expert_loads: bool
    expert_dispatch: str
    expert_capacity_factor: float | None
    distributed_executor_backend: str
    speculative_config: Mapping[str, Any] | SpeculativeConfig | None


@dataclass(frozen=True)
class EngineConfig:
    """The options of one engine, resolved."""

    model: ModelOptions
    cache: CacheOptions = CacheOptions()
    scheduling: SchedulingOptions = SchedulingOptions()
    parallel: ParallelOptions = field(default_factory=ParallelOptions)
    speculation: SpeculativeConfig | None = None
    expert_placements: Placements = field(default_factory=dict)  # from `resolve`, by layer

    def __post_init__(self) -> None:
        device = self.model.device
        if self.parallel.pipeline_parallel_size > 1:
            self._require_pipelined()
        if self.parallel.exchanges_tokens and self.model.cuda_graphs:
            raise QuireError(
                f"expert_dispatch={self.parallel.expert_dispatch!r} with cuda_graphs=True: the "
                "host reads how many tokens go to each rank, which no graph can; leave cuda_graphs "
                "out, or choose 'all_reduce'"
            )
        require_rows(
            self.scheduling.max_num_seqs,
            self.model.max_model_len,
            self.max_blocks_per_request,
            device,
        )
        if self.cache.kv_cache_dtype == "fp8" and runs_triton(device):
            major, minor = capability(device)
            if (major, minor) < (8, 9):
                raise QuireError(
                    "kv_cache_dtype='fp8': E4M3 needs a GPU of compute capability 8.9 and up, and "
                    f"this one has {major}.{minor}: use 'int8'"
                )

    def _require_pipelined(self) -> None:
        """Refuse what the stages of a pipeline do not do."""
        size = self.parallel.pipeline_parallel_size
        if self.speculation is not None:
            raise QuireError(
                f"pipeline_parallel_size={size} with speculative_config: what is guessed on the "
                "last stage would have to be known on the first; use tensor_parallel_size"
            )

    @classmethod
    def of(cls, **options: Any) -> EngineConfig:
        """Put options, by name, into their groups; device and dtype are found as for `LLM`.

        Raises:
            QuireError: no option of that name; a value that its group refuses; no
                `max_model_len`, which only a model has a default for.
        """
        unknown = sorted(set(options) - set(EngineOptions.__annotations__))
        if unknown:
            raise QuireError(
                f"unknown option {unknown[0]!r}: there are "
                f"{', '.join(sorted(EngineOptions.__annotations__))}"
            )

        if "max_model_len" not in options:
            raise QuireError(
                "max_model_len is missing: give the longest sequence in tokens, or use "
                "EngineConfig.resolve, which takes it from a model"
            )
        device = default_device(options.get("device"))
        dtype = default_dtype(device, options.get("dtype"))
        options = {**options, "device": device, "dtype": dtype}

        def group(kind: type) -> Any:
            return kind(**{f.name: options[f.name] for f in fields(kind) if f.name in options})

        speculation = SpeculativeConfig.of(options.get("speculative_config"))
        return cls(
            group(ModelOptions),
            group(CacheOptions),
            group(SchedulingOptions),
            group(ParallelOptions),
            speculation,
        )

    @classmethod
    def resolve(cls, model: ModelConfig, options: EngineOptions) -> EngineConfig:
        """Fill in what the caller left to the model and the device.

        Raises:
            QuireError: an impossible value; the message names it and what is possible.
        """
        device = default_device(options.get("device"))
        overlap, graphs = options.get("overlap"), options.get("cuda_graphs")
        pays = runs_triton(device)
        if options.get("expert_dispatch") == "all_to_all":
            pays = pays and options.get("tensor_parallel_size", 1) == 1
        resolved = {
            "max_model_len": _max_model_len(options.get("max_model_len"), model),
            "device": device,
            "overlap": device.type == "cuda" if overlap is None else overlap,
            "cuda_graphs": pays if graphs is None else graphs,
        }
        config = cls.of(**{**options, **resolved})
        return replace(config, expert_placements=place_experts(config.parallel, model))

    @property
    def max_in_flight(self) -> int:
        """Steps that may be queued on the devices at once."""
        if self.parallel.pipeline_parallel_size > 1:
            return self.parallel.pipeline_parallel_size
        if not self.scheduling.overlap:
            return 1
        # Ranks prepare a step when its command has come; the device has one more until then.
        return 3 if self.parallel.tensor_parallel_size > 1 else 2

    @property
    def cache_dtype(self) -> torch.dtype:
        """Type of the cache's keys and values, or of their codes."""
        name = self.cache.kv_cache_dtype
        return self.model.dtype if name is None else FORMATS[name]

    @property
    def max_blocks_per_request(self) -> int:
        """Blocks of the longest sequence."""
        return -(-self.model.max_model_len // self.cache.block_size)

    @property
    def blocks_per_row(self) -> int:
        """Columns of a row of block tables: those of the longest sequence and of its drafts."""
        drafts = 0 if self.speculation is None else self.speculation.most_guesses
        return -(-(self.model.max_model_len + drafts) // self.cache.block_size)


def _max_model_len(asked: int | None, model: ModelConfig) -> int:
    if asked is None:
        return min(model.max_position, 4096)
    if is_int(asked) and asked > model.max_position:
        raise QuireError(
            f"max_model_len={asked}: the model was made for {model.max_position} tokens "
            "(max_position_embeddings); ask for at most that"
        )
    return asked
