"""Steps that a GPU would replay, on a CPU: a graph's stand-in computes them again, in place.

What stands in for a graph reads the memory that was there at its capture, and nothing else, and
writes its answer to the same place each time. So a test sees what a replay would: the padded rows,
the upload's fixed places, and which ranks must be there for a capture and a replay.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from kernel_checks import begin_step_torch
from torch import Tensor

from quire import LLM
from quire.attention.torch_backend import TorchAttention, TorchMetadata
from quire.components import Components
from quire.executor import InlineExecutor
from quire.kv.batch import AttentionBatch, HostBatch
from quire.kv.layer import LayerKV
from quire.messages import ScheduledEntry
from quire.parallel.lockstep import LockstepComm
from quire.parallel.lockstep_executor import LockstepExecutor
from quire.runner import decode_graphs, device, draft_model, model_runner, prompt_graphs
from quire.runner.decode_graphs import DecodeGraphs, Ending
from quire.runner.draft_model import DraftModel
from quire.runner.prompt_graphs import PromptGraphs
from quire.runner.staging import Staging
from quire.sampling.sampler import SamplerOutput
from quire.sampling.triton_sampler import TritonSampler


@dataclass
class UnhostedMetadata(TorchMetadata):
    """Of a step, and how many of its tokens are no padding."""

    num_tokens: int


class UnhostedAttention(TorchAttention):
    """Torch's attention for steps of which the host's lists are not given."""

    graph_safe = captures_prompts = True

    def build(self, batch: AttentionBatch, window: int | None) -> UnhostedMetadata:
        if batch.host is None:
            lengths = batch.lengths
            if not batch.are_prompts:  # a padded sequence sees the null block
                lengths = lengths.clamp(min=batch.tokens_per_sequence)
            starts, rows = batch.query_starts.tolist(), batch.rows.tolist()
            host = HostBatch(starts, lengths.tolist(), rows, batch.block_table.numpy())
            batch = replace(batch, host=host)
        assert batch.host is not None
        built = super().build(batch, window)
        return UnhostedMetadata(
            built.slots, built.decode, built.chunks, num_tokens=batch.host.query_starts[-1]
        )

    def forward(
        self,
        query: Tensor,
        kv: LayerKV,
        metadata: TorchMetadata,
        scale: float,
        fresh_kv: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Attend with all but padding, of which the output is 0."""
        assert isinstance(metadata, UnhostedMetadata)
        live, output = metadata.num_tokens, torch.zeros_like(query)
        output[:live] = super().forward(query[:live], kv, metadata, scale, fresh_kv)
        return output


PARTS = Components(attention=UnhostedAttention, sampler=TritonSampler)  # its kernels' torch twins


@dataclass
class Seen:
    """What happened in an engine whose decode steps are replayed."""

    endings: Counter[Ending] = field(default_factory=Counter)  # of replayed steps, of each rank's
    prompts: list[tuple[int, int]] = field(default_factory=list)  # sizes, and tokens of requests
    message_rows: list[int] = field(default_factory=list)  # of what stages sent one another


class Stages:
    """Engines of several stages whose ranks take turns, and what was seen in them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let captures work on a CPU until the test has ended."""
        self.seen = Seen()
        self._within = threading.local()  # whether this rank is in a capture or a replay
        monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
        monkeypatch.setattr(decode_graphs, "capture", self._capture)
        monkeypatch.setattr(prompt_graphs, "capture", self._capture)
        monkeypatch.setattr(decode_graphs, "begin_step", begin_step_torch)
        for module in (model_runner, draft_model):
            monkeypatch.setattr(module, "make_staging", Staging)
        monkeypatch.setattr(device.Answers, "fetch", _fetch)
        self._watch(monkeypatch)

    def engine(self, model: Any, **options: Any) -> LLM:
        """Return a float32 engine in lockstep, with graphs on every rank.

        Each stage captures while the ranks of the others have nothing to do.
        """
        llm = LLM(
            model,
            device="cpu",
            dtype="float32",
            distributed_executor_backend="lockstep",
            components=PARTS,
            **options,
        )
        executor = llm.engine.executor
        assert isinstance(executor, LockstepExecutor)
        size = llm.config.parallel.tensor_parallel_size
        for first in range(0, len(executor.workers), size):
            stage = range(first, first + size)
            executor._world.run(
                [
                    self._capturing(worker.runner) if rank in stage else _nothing
                    for rank, worker in enumerate(executor.workers)
                ]
            )
        for worker in executor.workers:
            for mixture in worker._mixtures().values():
                mixture.routes.forget()
        return llm

    def one_rank(self, model: Any, **options: Any) -> LLM:
        """Return a float32 engine of one rank with graphs; a draft model guesses without."""
        verification = options.get("speculative_config", {}).get("verification")
        judges = verification in ("rejection", "block")  # with a sampler of its own
        parts = replace(PARTS, sampler=None) if judges else PARTS
        llm = LLM(model, device="cpu", dtype="float32", components=parts, **options)
        executor = llm.engine.executor
        assert isinstance(executor, InlineExecutor)
        self._capturing(executor.worker.runner)()
        return llm

    def _capturing(self, runner: model_runner.ModelRunner) -> Callable[[], None]:
        @torch.inference_mode()
        def work() -> None:
            runner.graphs = DecodeGraphs(runner._parts)
            runner.prompt_graphs = PromptGraphs(runner._parts, None)
            if isinstance(runner.drafting, DraftModel):
                runner.drafting.prompt_graphs = PromptGraphs(runner.drafting._parts, None)

        return work

    def _capture(self, work: Callable[[], Tensor], pool: None) -> tuple[_Graph, Tensor]:
        graph = _Graph(work, self._is_within)
        return graph, graph.result

    @contextmanager
    def _is_within(self) -> Iterator[None]:
        self._within.graph = True
        yield
        self._within.graph = False

    def _watch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Note replays and messages; those out of place fail the test.

        That is a message from within a graph, and a choice where no logits are.
        """
        deliver, replay = LockstepComm._deliver, DecodeGraphs.replay
        replay_prompt = PromptGraphs.replay
        sample = model_runner.ModelRunner._sample

        def delivered(
            comm: LockstepComm, x: Tensor | None, like: Tensor, source: int, target: int
        ) -> Tensor:
            assert not getattr(self._within, "graph", False), "a graph waits for another stage"
            if x is not None:
                self.seen.message_rows.append(len(x))
            return deliver(comm, x, like, source, target)

        def replayed(
            graphs: DecodeGraphs, entries: Sequence[ScheduledEntry], ending: Ending
        ) -> Tensor:
            self.seen.endings[ending] += 1
            return replay(graphs, entries, ending)

        def prompt_replayed(graphs: PromptGraphs, size: int, num_tokens: int) -> Tensor:
            self.seen.prompts.append((size, num_tokens))
            return replay_prompt(graphs, size, num_tokens)

        def sampled(runner: model_runner.ModelRunner, *args: Any) -> None:
            assert runner._parts.model.place.is_last, "a stage before the last one samples"
            sample(runner, *args)

        monkeypatch.setattr(model_runner.ModelRunner, "_sample", sampled)
        monkeypatch.setattr(LockstepComm, "_deliver", delivered)
        monkeypatch.setattr(DecodeGraphs, "replay", replayed)
        monkeypatch.setattr(PromptGraphs, "replay", prompt_replayed)


class _Graph:
    """Stands for a `torch.cuda.CUDAGraph`."""

    def __init__(self, work: Callable[[], Tensor], within: Callable[[], Any]) -> None:
        self._work, self._within = work, within
        with within():
            self.result = work()

    def replay(self) -> None:
        with self._within():
            self.result.copy_(self._work())


def _nothing() -> None:
    """What a rank does whose stage does not capture."""


def _fetch(answers: device.Answers, sampled: SamplerOutput) -> tuple[SamplerOutput, None]:
    """Copy the tokens, as from a GPU: the next replay overwrites a graph's answer."""
    counts = sampled.num_accepted
    counts = None if counts is None else counts.clone()
    return replace(sampled, tokens=sampled.tokens.clone(), num_accepted=counts), None
