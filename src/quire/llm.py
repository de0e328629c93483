"""`LLM`: the public face, with the names that vLLM's users know."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from tqdm import tqdm

from quire.assembly import build_engine
from quire.config import Components, EngineConfig, default_device, default_dtype
from quire.errors import InvalidRequestError, QuireError
from quire.kernels.runtime import runs_triton
from quire.models.config import ModelConfig
from quire.models.loader import resolve_checkpoint
from quire.outputs import RequestOutput
from quire.progress import RequestHandle
from quire.prompts import Prompt
from quire.sampling.params import SamplingParams, is_int
from quire.tokenizer import Tokenizer
from quire.trace import Trace


class LLM:
    """A model ready to generate.

        llm = LLM("quire-mini")
        llm.generate(["def fibonacci(n):"], SamplingParams(max_tokens=64, temperature=0))

    Args:
        model: a shipped model's name, a checkpoint folder, a hub name, or a `ModelConfig`,
            which gets random weights (to measure speed at a model's real size).
        dtype: "float32", "bfloat16" or "float16"; by default float32 on a CPU, on a GPU
            bfloat16 from compute capability 8.0 on and float16 below.
        device: "cpu", "cuda", …; by default the GPU if there is one.
        max_model_len: longest sequence in tokens; by default the model's own limit, at
            most 4,096.
        max_num_seqs: requests that run at once; more wait.
        max_num_batched_tokens: tokens computed in one step at most.
        block_size: positions in a block of the KV cache, a power of two.
        num_blocks: blocks of the cache; by default what `gpu_memory_utilization` leaves on a
            GPU, on a CPU enough for every running request at full length, within 4 GiB.
        gpu_memory_utilization: share of the GPU's memory that the engine may use.
        enable_prefix_caching: keep the blocks of ended requests for those that begin alike.
        kv_cache_dtype: "int8" or "fp8" stores a byte an element and a scale a token and head;
            by default the cache has `dtype`.
        kv_window: a query sees the last so many positions; blocks before them are released.
        kv_sinks: with a window, the first so many positions are seen as well and kept.
        num_host_blocks: blocks in host memory for cached ones that the cache has no room for;
            they are loaded when a prompt, or a preempted request, begins with them.
        policy: "fcfs", "priority" or "fair": who runs first, who is preempted.
        overlap: schedule a step while the one before it runs; by default on a GPU.
        cuda_graphs: replay captured decode steps; by default where Triton's kernels run,
            from compute capability 8.0 on.
        components: a reader's own parts, see `Components`.
        trace: record every step here.

    Raises:
        CheckpointError, UnsupportedModelError: the checkpoint cannot be loaded.
        QuireError: an impossible size, device or dtype.
    """

    def __init__(
        self,
        model: str | Path | ModelConfig,
        *,
        dtype: str | torch.dtype | None = None,
        device: str | torch.device | None = None,
        max_model_len: int | None = None,
        max_num_seqs: int = 32,
        max_num_batched_tokens: int = 4096,
        block_size: int = 16,
        num_blocks: int | None = None,
        gpu_memory_utilization: float = 0.9,
        enable_prefix_caching: bool = True,
        kv_cache_dtype: str | None = None,
        kv_window: int | None = None,
        kv_sinks: int = 0,
        num_host_blocks: int = 0,
        policy: str = "fcfs",
        overlap: bool | None = None,
        cuda_graphs: bool | None = None,
        components: Components | None = None,
        trace: Trace | None = None,
    ) -> None:
        folder = None if isinstance(model, ModelConfig) else resolve_checkpoint(model)
        model_config = (
            model if isinstance(model, ModelConfig) else ModelConfig.from_folder(folder or "")
        )
        chosen_device = default_device(device)
        config = EngineConfig(
            max_model_len=_max_model_len(max_model_len, model_config),
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            device=chosen_device,
            dtype=default_dtype(chosen_device, dtype),
            block_size=block_size,
            enable_prefix_caching=enable_prefix_caching,
            kv_cache_dtype=kv_cache_dtype,
            kv_window=kv_window,
            kv_sinks=kv_sinks,
            num_host_blocks=num_host_blocks,
            policy=policy,
            overlap=chosen_device.type == "cuda" if overlap is None else overlap,
            cuda_graphs=runs_triton(chosen_device) if cuda_graphs is None else cuda_graphs,
        )
        if num_blocks is not None and (not is_int(num_blocks) or num_blocks < 2):
            raise QuireError(f"num_blocks={num_blocks!r}: must be an integer of at least 2")
        if not 0 < gpu_memory_utilization <= 1:
            raise QuireError(
                f"gpu_memory_utilization={gpu_memory_utilization!r}: must lie in (0, 1]"
            )
        self.config = config
        self.model_config = model_config
        self.tokenizer = None if folder is None else _load_tokenizer(folder)
        self.engine = build_engine(
            config,
            model_config,
            folder,
            None if self.tokenizer is None else Tokenizer(self.tokenizer),
            components or Components(),
            trace,
            num_blocks,
            gpu_memory_utilization,
        )
        self._num_requests = 0

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool | None = None,
    ) -> list[RequestOutput]:
        """Complete one or many prompts; return one `RequestOutput` a prompt, in their order.

        Args:
            prompts: a string, a list of token ids, or a list of either.
            sampling_params: one for all prompts, or a list of as many.
            use_tqdm: show a progress bar; by default on a terminal.

        Raises:
            InvalidRequestError: a prompt or parameter cannot be served. Every prompt is
                checked before any is run.
        """
        listed = _as_list(prompts)
        params = SamplingParams() if sampling_params is None else sampling_params
        each = list(params) if isinstance(params, Sequence) else [params] * len(listed)
        if len(each) != len(listed):
            raise InvalidRequestError(
                f"{len(listed)} prompts but {len(each)} sampling_params: give one for all or "
                "one for each"
            )
        handles = self._submit(listed, each)
        disable = None if use_tqdm is None else not use_tqdm  # tqdm's None asks the terminal
        try:
            with tqdm(total=len(handles), unit="prompt", disable=disable) as progress:
                num_finished = 0
                while num_finished < len(handles):
                    self.engine.advance()
                    before, num_finished = num_finished, sum(h.finished for h in handles)
                    progress.update(num_finished - before)
        finally:  # an interrupt must not leave requests behind
            for handle in handles:
                self.engine.abort_request(handle.request_id)
        return [handle.snapshot() for handle in handles]

    def stream(
        self, prompt: Prompt, sampling_params: SamplingParams | None = None
    ) -> Iterator[RequestOutput]:
        """Complete one prompt, yielding its `RequestOutput` each time it has grown.

        Each is what was true when it was made: `output.outputs[0].text` is the text until
        then, without bytes that do not yet make a character. Leaving the loop early
        withdraws the request.
        """
        params = SamplingParams() if sampling_params is None else sampling_params
        (handle,) = self._submit([prompt], [params])
        shown = 0
        try:
            while not (handle.finished and handle.num_output_tokens == shown):
                if handle.num_output_tokens == shown:
                    self.engine.advance()
                else:  # perhaps by the steps of another stream
                    shown = handle.num_output_tokens
                    yield handle.snapshot()
        finally:
            self.engine.abort_request(handle.request_id)

    def _submit(
        self, prompts: Sequence[Prompt], params: Sequence[SamplingParams]
    ) -> list[RequestHandle]:
        handles: list[RequestHandle] = []
        try:
            for prompt, own in zip(prompts, params, strict=True):
                if not isinstance(own, SamplingParams):
                    raise InvalidRequestError(f"sampling_params {own!r}: must be SamplingParams")
                handles.append(self.engine.add_request(str(self._num_requests), prompt, own))
                self._num_requests += 1
        except BaseException:  # none runs unless all were accepted
            for handle in handles:
                self.engine.abort_request(handle.request_id)
            raise
        return handles


def _max_model_len(asked: int | None, model_config: ModelConfig) -> int:
    if asked is None:
        return min(model_config.max_position, 4096)
    if isinstance(asked, int) and asked > model_config.max_position:
        raise QuireError(
            f"max_model_len={asked}: the model was made for {model_config.max_position} tokens "
            "(max_position_embeddings); ask for at most that"
        )
    return asked


def _load_tokenizer(folder: Path) -> Any:
    """Load a folder's tokenizer with transformers, or return None where there is none."""
    names = ("tokenizer.json", "tokenizer.model", "vocab.json")
    if not any((folder / name).is_file() for name in names):
        return None
    from transformers import AutoTokenizer  # slow to import, and not needed for token ids

    # Cleaning up drops spaces before punctuation, so that text would not grow by appending.
    return AutoTokenizer.from_pretrained(str(folder), clean_up_tokenization_spaces=False)


def _as_list(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """Wrap a single prompt; a list that holds no list or string is one prompt's token ids."""
    if isinstance(prompts, str):
        return [prompts]
    if not isinstance(prompts, Sequence) or isinstance(prompts, bytes):
        raise InvalidRequestError(
            f"prompts {prompts!r}: give a string, a list of token ids, or a list of either"
        )
    if prompts and not any(isinstance(item, Sequence) for item in prompts):
        return [cast(Sequence[int], prompts)]
    return list(cast(Sequence[Prompt], prompts))
