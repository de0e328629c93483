"""`ModelRunner`: carries out a `SchedulerOutput` on the device."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from quire.attention.interface import AttentionBackend
from quire.config import EngineConfig
from quire.kv.spec import CacheLayout
from quire.kv.storage import KVStorage
from quire.messages import ScheduledEntry, SchedulerOutput
from quire.models.decoder import Decoder
from quire.runner.check_sampled import check_sampled, check_values
from quire.runner.decode_graphs import DecodeGraphs, Ending
from quire.runner.device import Answers, DeviceParts
from quire.runner.draft_model import DraftModel
from quire.runner.forward import Forward
from quire.runner.input_batch import InputBatch, TableUpdate
from quire.runner.memory import bytes_a_step
from quire.runner.pending import PendingStep, PromptScores
from quire.runner.prompt_graphs import PromptGraphs
from quire.runner.staging import make_staging
from quire.runner.starts import Judged, with_true_starts
from quire.sampling.drafts import Drafts
from quire.sampling.sampler import Sampler, SamplerOutput, TorchSampler
from quire.sampling.scoring import score_tokens
from quire.sending import send
from quire.speculation.drafting import Drafting
from quire.speculation.host import HostDrafting
from quire.speculation.proposer import Proposer


class ModelRunner:
    """Runs steps and knows no policy.

    Any step can be run kernel by kernel; one that computes a single token of each request
    is replayed from a captured graph where there are graphs, and so are the layers of a short
    prompt that comes alone.
    """

    def __init__(
        self,
        config: EngineConfig,
        model: Decoder,
        storage: KVStorage,
        backend: AttentionBackend,
        sampler: Sampler,
        layout: CacheLayout,
        proposer: Proposer | None = None,
        draft: tuple[Decoder, TorchSampler] | None = None,
    ) -> None:
        """Make the rows and buffers, and capture graphs where they are asked for.

        Args:
            layout: of the model's layers, and behind them of the draft model's.
            proposer: guesses tokens for the steps that follow, where the host guesses.
            draft: the model that guesses them, where one does, and who chooses its guesses.
        """
        num_groups, num_layers = layout.num_groups, len(model.layers)
        self._storage = storage
        self._parts = DeviceParts(
            config=config,
            model=model,
            storage=storage.part(0, num_layers),
            backend=backend,
            sampler=sampler,
            layout=layout.part(0, num_layers),
            batch=InputBatch(
                config, num_groups, model.config.vocab_size, model.config.eos_token_ids
            ),
            staging=make_staging(
                bytes_a_step(config, num_groups), config.max_in_flight, config.model.device
            ),
        )
        self.batch = self._parts.batch
        num_guesses, self._needs_probabilities = 0, False
        self.drafting: Drafting | None = None
        if config.speculation is not None:
            num_guesses = config.speculation.most_guesses
            self._needs_probabilities = config.speculation.needs_probabilities
        if proposer is not None:
            self.drafting = HostDrafting(proposer, num_guesses, self.batch.token_ids)
        self._answers = Answers(
            config.scheduling.max_num_seqs,
            1 + num_guesses,
            config.max_in_flight,
            config.model.device,
        )
        self._sampler_name = type(sampler).__name__
        self._check_values = partial(
            check_values, vocab_size=model.config.vocab_size, name=self._sampler_name
        )
        self.graphs: DecodeGraphs | None = None
        self.prompt_graphs: PromptGraphs | None = None
        captures = config.model.cuda_graphs and config.model.device.type == "cuda"
        if captures and backend.graph_safe and model.place.graph_safe:
            self._capture(backend)
        self._judged: Judged | None = None
        if draft is not None:
            draft_model, draft_sampler = draft
            layers = num_layers, len(layout.specs)
            parts = replace(
                self._parts,
                model=draft_model,
                storage=storage.part(*layers),
                layout=layout.part(*layers),
            )
            self.drafting = DraftModel(parts, draft_sampler, captures=self.graphs is not None)
            if config.model.device.type == "cuda" and model.place.is_last:
                self._judged = Judged(config.model.device)

    @property
    def num_blocks(self) -> int:
        """How many blocks the cache has, the null block included."""
        return self._storage.num_blocks

    @torch.inference_mode()
    def _capture(self, backend: AttentionBackend) -> None:
        self.graphs = DecodeGraphs(self._parts)
        if getattr(backend, "captures_prompts", False):
            self.prompt_graphs = PromptGraphs(self._parts, self.graphs.pool)

    @contextmanager
    def launching_prompts(self) -> Iterator[None]:
        """Run prompts kernel by kernel meanwhile, those included that would be replayed."""
        parts: list[ModelRunner | DraftModel] = [self]
        if isinstance(self.drafting, DraftModel):
            parts.append(self.drafting)
        kept = [part.prompt_graphs for part in parts]
        for part in parts:
            part.prompt_graphs = None
        try:
            yield
        finally:
            for part, graphs in zip(parts, kept, strict=True):
                part.prompt_graphs = graphs

    @torch.inference_mode()
    def execute(self, output: SchedulerOutput) -> PendingStep:
        """Queue one step: forward pass, logits, sampling. Returns without waiting."""
        updates = self.batch.update(output)
        if self.drafting is not None:
            self.drafting.begin(output)
        if output.transfers:
            assert self._storage.host is not None, "transfers without num_host_blocks"
            self._storage.host.carry_out(output.transfers)
        if any(output.block_copies):
            self._storage.copy_blocks(output.block_copies)
        if not output.entries:
            return PendingStep(output)
        if not self._parts.model.place.is_last:  # which chose them
            self.batch.tell(output.entries)
        graphs = None if self.graphs is None or not self.graphs.fits(output) else self.graphs
        output = with_true_starts(output, self.batch, is_captured=bool(graphs), judged=self._judged)
        pending = self._replay(output, graphs) if graphs else self._run(output, updates)
        if self._judged is not None:
            self._judged.note(pending)
        if self.drafting is not None:
            self.drafting.queue(output)
        return pending

    def settle(self, in_flight: Iterable[PendingStep]) -> None:
        """Let the device finish, and take the answers of steps in flight out of shared memory.

        A step that was lost has used up its turn of the host's buffers, or may be reading them
        still: without this a later step's numbers would land in those of another.
        """
        if self._parts.config.model.device.type == "cuda":
            torch.cuda.synchronize(self._parts.config.model.device)
            for pending in in_flight:
                pending.keep()

    def _replay(self, output: SchedulerOutput, graphs: DecodeGraphs) -> PendingStep:
        """Queue a captured step."""
        # The longest first, as attention's programs start in this order: a long one that
        # started last would run on alone.
        entries = sorted(output.entries, key=lambda entry: entry.start, reverse=True)
        pending = PendingStep(output, entries, check=self._check_values, drafting=self.drafting)
        ending = graphs.ending(entries)
        result = graphs.replay(entries, ending)
        if not self._parts.model.place.is_last:
            return PendingStep(output)
        if ending is Ending.HIDDEN:
            width = result.shape[1]
            chosen = [
                (i * width + token, entry.row, entry.start)
                for i, entry in enumerate(entries)
                for token in range(entry.num_tokens)
            ]
            numbers = torch.tensor(chosen).T.contiguous()
            tokens, rows, starts = send(numbers, self._parts.config.model.device)
            positions = self.batch.true_starts(rows, starts) + 1 + tokens % width
            self._sample(pending, result.flatten(0, 1)[tokens], rows, positions)
            return pending
        sampled = SamplerOutput(result)
        if result.shape[1] > 1:
            sampled = SamplerOutput(result[:, :-1], result[:, -1])
        pending.sampled, pending.done = self._answers.fetch(sampled)
        return pending

    def _run(self, output: SchedulerOutput, updates: list[TableUpdate]) -> PendingStep:
        """Queue the kernels of a step one by one, or those of a prompt's pass at once."""
        parts, entries = self._parts, list(output.entries)
        sampling = [entry for entry in entries if entry.samples]
        forward = Forward.put(parts, entries, self.prompt_graphs)
        rows_to_choose_from = forward.tokens.rows_to_choose_from(entries)
        chosen_from = parts.staging.put(rows_to_choose_from, np.int64)
        changes = [parts.staging.put(update, np.int64) for update in updates]
        parts.staging.upload()
        parts.batch.apply(changes)
        hidden = forward.queue()
        if not parts.model.place.is_last:
            return PendingStep(output)

        pending = PendingStep(
            output,
            sampling,
            check=self._check_values,
            drafting=self.drafting,
            prompt_scores=self._score_prompts(entries, hidden),
        )
        if sampling:
            rows, positions = forward.inputs.rows, forward.inputs.positions
            chosen = [x.index_select(0, chosen_from) for x in (hidden, rows, positions)]
            self._sample(pending, chosen[0], chosen[1], chosen[2] + 1)
        return pending

    def _sample(
        self, pending: PendingStep, hidden: Tensor, rows: Tensor, positions: Tensor
    ) -> None:
        """Choose the tokens at `positions` of `rows`, and keep them where the next step reads.

        Where drafts are verified a request has a row for each, in order, and one more.
        """
        batch, sampler = self.batch, self._parts.sampler
        chosen = [(e, p) for e in pending.sampling for p in e.chosen_positions]
        tensors = batch.sampling_tensors(rows, positions, chosen)
        drafts = None
        if len(chosen) > len(pending.sampling):
            guesses = batch.token_ids[rows, positions]
            probabilities = None
            if self._needs_probabilities and self.drafting is not None:
                turns = [p - e.chosen_positions[0] for e, p in chosen]
                probabilities = self.drafting.probabilities(
                    rows, send(torch.tensor(turns), rows.device)
                )
            drafts = Drafts(guesses, pending.first_rows, probabilities, batch.acceptance_rate)
        sampled = sampler(self._parts.model.compute_logits(hidden).float(), tensors, drafts)
        vocab_size = self._parts.model.config.vocab_size
        check_sampled(sampled, len(pending.sampling), tensors, vocab_size, self._sampler_name)
        batch.keep(rows, positions, sampled, drafts)
        pending.reasons = {
            chosen[row][0].request_id: f"request {chosen[row][0].request_id!r}: {reason}"
            for row, reason in sorted(tensors.failures.items(), reverse=True)  # the first counts
        }
        for entry in pending.sampling:
            wanted = batch.state(entry.row).params.logprobs
            if wanted is not None:
                pending.num_logprobs[entry.request_id] = wanted
        pending.sampled, pending.done = self._answers.fetch(sampled)

    def _score_prompts(
        self, entries: list[ScheduledEntry], hidden: Tensor
    ) -> dict[str, PromptScores]:
        """Score the prompt tokens that this step's positions predict."""
        scored = {}
        begin = 0
        for entry in entries:
            state = self.batch.state(entry.row)
            wanted = state.params.prompt_logprobs
            # Position p predicts the token at p + 1, as long as that is a prompt token.
            count = min(entry.num_tokens, state.num_prompt_tokens - 1 - entry.start)
            if wanted is not None and count > 0:
                first = entry.start + 1
                targets = self.batch.token_ids[entry.row, first : first + count].clone()
                model, states = self._parts.model, hidden[begin : begin + count]
                values = score_tokens(
                    model.compute_logits, states, targets, wanted, model.config.vocab_size
                )
                scored[entry.request_id] = PromptScores(first, values, targets, wanted)
            begin += entry.num_tokens
        return scored
