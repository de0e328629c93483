"""`LLM`: the public face, with the names that vLLM's users know."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Unpack, cast

from tqdm import tqdm

from quire.arguments import check_arguments
from quire.assembly import build_engine
from quire.chat import ChatOptions, Message, is_conversation
from quire.components import Components
from quire.config import EngineConfig, EngineOptions
from quire.defaults import default_sampling_params
from quire.engine import LLMEngine
from quire.errors import InvalidRequestError, QuireError
from quire.interrupts import uninterrupted
from quire.models.config import ModelConfig
from quire.models.loader import resolve_checkpoint
from quire.outputs import RequestOutput
from quire.parallel.counted_loads import counted_loads
from quire.parallel.expert_loads import ExpertLoads
from quire.progress import RequestHandle
from quire.prompts import Prompt, TokenizedPrompt, split_batch
from quire.sampling.params import SamplingParams
from quire.tokenizer import Tokenizer, load_tokenizer
from quire.trace import Trace
from quire.turns import Turns


class LLM:
    """A model ready to generate.

        llm = LLM("quire-mini")
        llm.generate(["def fibonacci(n):"], SamplingParams(max_tokens=64, temperature=0))

    Args:
        model: a shipped model's name, a checkpoint folder, a hub name, or a `ModelConfig`,
            which gets random weights (to measure speed at a model's real size).
        generation_config: where the parameters of a request that gives none come from:
            "auto" (the checkpoint's `generation_config.json`), "vllm" (none) or a folder.
        components: a reader's own parts, see `Components`.
        trace: record every step here.
        options: the fields of four groups in `quire.config`, by name; there each is described,
            with its default. `ModelOptions`: `device`, `dtype`, `max_model_len`, `cuda_graphs`,
            `quantization`.
            `CacheOptions`: `num_blocks`, `gpu_memory_utilization`, `block_size`,
            `enable_prefix_caching`, `kv_cache_dtype`, `kv_window`, `kv_sinks`,
            `num_host_blocks`. `SchedulingOptions`: `max_num_seqs`, `max_num_batched_tokens`,
            `policy`, `watermark`, `overlap`. `ParallelOptions`: `tensor_parallel_size`,
            `pipeline_parallel_size`, `data_parallel_size`, `enable_expert_parallel`,
            `num_redundant_experts`, `expert_loads`, `record_expert_loads`, `expert_dispatch`,
            `expert_capacity_factor`, `distributed_executor_backend`. And
            `speculative_config`, a dict of the fields of
            `quire.speculation.config.SpeculativeConfig`.

    Raises:
        CheckpointError, UnsupportedModelError: the checkpoint cannot be loaded.
        QuireError: an impossible size, device or dtype.
    """

    def __init__(
        self,
        model: str | Path | ModelConfig,
        *,
        generation_config: str | Path = "auto",
        components: Components | None = None,
        trace: Trace | None = None,
        **options: Unpack[EngineOptions],
    ) -> None:
        check_arguments(model, components, trace)
        folder = None if isinstance(model, ModelConfig) else resolve_checkpoint(model)
        model_config = (
            model if isinstance(model, ModelConfig) else ModelConfig.from_folder(folder or "")
        )
        config = EngineConfig.resolve(model_config, options)
        self.config = config
        self.model_config = model_config
        self._default_params = default_sampling_params(folder, generation_config)
        self.tokenizer = None if folder is None else load_tokenizer(folder)
        built = build_engine(
            config,
            model_config,
            folder,
            None if self.tokenizer is None else Tokenizer(self.tokenizer),
            components or Components(),
            trace,
        )
        # Replicas answer the same calls, but have no scheduler and executor of their own.
        self.engine = cast(LLMEngine, built)
        self._num_requests = 0
        self._turns = Turns()
        self._withdrawn: deque[RequestHandle] = deque()
        self._process = os.getpid()

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool | None = None,
    ) -> list[RequestOutput]:
        """Complete one or many prompts; return one `RequestOutput` a prompt, in their order.

        Several threads may call it at once: their requests run in the same steps.

        Args:
            prompts: a prompt, or a list of them. A prompt is a string, token ids (a list, or
                an array of numpy or torch), or vLLM's `{"prompt": …}` or
                `{"prompt_token_ids": …}`.
            sampling_params: one for all prompts, or a list of as many; by default
                `get_default_sampling_params()`.
            use_tqdm: show a progress bar; by default on a terminal.

        Raises:
            InvalidRequestError: a prompt or parameter cannot be served. Every prompt is
                checked before any is run.
            QuireError: this is a forked copy of the process that made the engine.
        """
        self.require_own_process()
        listed = split_batch(prompts)
        each = self._params_for(len(listed), sampling_params)
        reader = self.engine.prompts
        read = [reader.read(prompt, own) for prompt, own in zip(listed, each, strict=True)]
        return self._complete(read, each, use_tqdm)

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: bool | None = None,
        *,
        chat_template: str | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[RequestOutput]:
        """Answer one or many conversations, laid out by the model's chat template.

        Args:
            messages: a conversation, `[{"role": "user", "content": …}, …]`, or a list of them.
            sampling_params, use_tqdm: as in `generate`.
            chat_template, add_generation_prompt, continue_final_message, tools,
            chat_template_kwargs: see `quire.chat.ChatOptions`.

        Raises:
            InvalidRequestError: as in `generate`; there is no chat template, or it refuses the
                messages; a control token that somebody typed cannot be read as text.
        """
        self.require_own_process()
        options = ChatOptions(
            chat_template,
            add_generation_prompt,
            continue_final_message,
            tools,
            chat_template_kwargs,
        )
        conversations = [messages] if is_conversation(messages) else messages
        each = self._params_for(len(conversations), sampling_params)
        read = [
            self.engine.prompts.read_chat(cast(Sequence[Message], conversation), options, own)
            for conversation, own in zip(conversations, each, strict=True)
        ]
        return self._complete(read, each, use_tqdm)

    def stream(
        self, prompt: Prompt, sampling_params: SamplingParams | None = None
    ) -> Iterator[RequestOutput]:
        """Complete one prompt, yielding its `RequestOutput` each time it has grown.

        Each is what was true when it was made: `output.outputs[0].text` is the text until
        then, without bytes that do not yet make a character. Leaving the loop early
        withdraws the request.
        """
        self.require_own_process()
        (own,) = self._params_for(1, None if sampling_params is None else [sampling_params])
        (handle,) = self._submit([self.engine.prompts.read(prompt, own)], [own])
        shown = None  # output tokens that the caller knows of
        try:
            while not handle.finished or handle.num_output_tokens != shown:
                with self.turn():  # nobody else's step falls into the snapshot
                    if not handle.finished and handle.num_output_tokens == (shown or 0):
                        self.engine.advance()
                    known = handle.num_output_tokens
                    is_news = known != shown and (handle.finished or known > 0)
                    output = handle.snapshot() if is_news else None
                if output is not None:
                    shown = known
                    yield output
            _raise_errors([handle])
        finally:
            self._withdraw([handle])

    def get_tokenizer(self) -> Any:
        """Return transformers' tokenizer of this model.

        Raises:
            QuireError: the checkpoint has none.
        """
        if self.tokenizer is None:
            raise QuireError("this checkpoint has no tokenizer: it takes and gives token ids only")
        return self.tokenizer

    def get_default_sampling_params(self) -> SamplingParams:
        """Return the parameters of a request that gives none: what the model's makers advise."""
        return self._default_params

    def expert_loads(self) -> ExpertLoads:
        """Return how many tokens each expert of each layer was sent, since the engine was made.

        Drafts and cached prompts count as far as they were computed. `later - earlier` is what was
        counted between two readings.

        Raises:
            QuireError: the engine does not count; it was shut down.
        """
        if not self.config.parallel.record_expert_loads:
            raise QuireError(
                "record_expert_loads=False: this engine does not count the tokens of experts; make "
                "it with record_expert_loads=True"
            )
        with self.turn():
            engines = getattr(self.engine, "engines", [self.engine])  # of replicas, each
            return ExpertLoads.sum(own for e in engines for own in counted_loads(e.executor))

    def require_own_process(self) -> None:
        """Raise QuireError in a fork of the process that made this engine."""
        if os.getpid() != self._process:
            raise QuireError(
                f"this LLM was made in process {self._process}, of which process {os.getpid()} is "
                "a fork: a fork has none of torch's threads, so that a step would wait for ever; "
                "make the LLM in the child, or start the child by the method 'spawn'"
            )

    def _params_for(
        self, count: int, given: SamplingParams | Sequence[SamplingParams] | None
    ) -> list[SamplingParams]:
        """Return the parameters of each of so many prompts."""
        params = self._default_params if given is None else given
        each = list(params) if isinstance(params, Sequence) else [params] * count
        if len(each) != count:
            raise InvalidRequestError(
                f"{count} prompts but {len(each)} sampling_params: give one for all or one for each"
            )
        for own in each:
            if not isinstance(own, SamplingParams):
                raise InvalidRequestError(f"sampling_params {own!r}: must be SamplingParams")
        return each

    def _complete(
        self,
        prompts: Sequence[TokenizedPrompt],
        params: Sequence[SamplingParams],
        use_tqdm: bool | None,
    ) -> list[RequestOutput]:
        handles = self._submit(prompts, params)
        disable = None if use_tqdm is None else not use_tqdm  # tqdm's None asks the terminal
        try:
            with tqdm(total=len(handles), unit="prompt", disable=disable) as progress:
                for handle in handles:
                    while not handle.finished:
                        self._advance(handle)
                        _raise_errors(handles)
                        progress.update(sum(h.finished for h in handles) - progress.n)
        finally:  # an interrupt must not leave requests behind
            self._withdraw(handles)
        _raise_errors(handles)  # perhaps of another thread's step
        return [handle.snapshot() for handle in handles]

    def _submit(
        self, prompts: Sequence[TokenizedPrompt], params: Sequence[SamplingParams]
    ) -> list[RequestHandle]:
        handles: list[RequestHandle] = []
        with self.turn():
            try:
                with uninterrupted():  # or a request would run that nobody knows of
                    for prompt, own in zip(prompts, params, strict=True):
                        name = str(self._num_requests)
                        handles.append(self.engine.add_request(name, prompt, own))
                        self._num_requests += 1
            except BaseException:  # none runs unless all were accepted
                self._withdrawn.extend(handles)
                raise
        return handles

    def _advance(self, handle: RequestHandle) -> None:
        """Run a step for a request, unless another thread's step has ended it meanwhile."""
        with self.turn():
            if not handle.finished:
                self.engine.advance()

    def _withdraw(self, handles: Sequence[RequestHandle]) -> None:
        """Abort what has not ended: now, or by the thread whose turn it is."""
        if os.getpid() != self._process:
            return
        self._withdrawn.extend(handle for handle in handles if not handle.finished)
        with self._turns.if_free() as free:
            if free:
                self._abort_withdrawn()

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Within, this thread alone has the engine.

        Raises:
            QuireError: this is a fork of the process that made it, or the thread has it already.
        """
        self.require_own_process()
        with self._turns.wait():
            self._abort_withdrawn()
            try:
                yield
            finally:
                self._abort_withdrawn()

    def _abort_withdrawn(self) -> None:
        while self._withdrawn:
            self.engine.abort_request(self._withdrawn.popleft().request_id)


def _raise_errors(handles: Sequence[RequestHandle]) -> None:
    """Raise what ended a request: a step that found no token for it."""
    for handle in handles:
        if handle.error is not None:
            raise handle.error
