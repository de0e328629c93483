"""`ModelRunner`: carries out a `SchedulerOutput` on the device."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from quire.attention.interface import AttentionBackend, AttentionBatch
from quire.config import EngineConfig
from quire.errors import QuireError
from quire.kv.storage import KVStorage
from quire.layers.attention import StepMetadata
from quire.messages import Logprob, ScheduledEntry, SchedulerOutput, StepResult
from quire.models.decoder import Decoder
from quire.runner.input_batch import InputBatch
from quire.sampling.sampler import Sampler, SamplerOutput, TokenLogprobs, gather_logprobs
from quire.sampling.tensors import SamplingTensors


@dataclass
class PendingStep:
    """A step that was queued on the device. `wait` brings its tokens to the host."""

    output: SchedulerOutput
    sampling: list[ScheduledEntry]  # the entries that chose a token, row order of `sampled`
    sampled: SamplerOutput | None
    num_logprobs: dict[str, int]
    prompt_logprobs: dict[str, tuple[TokenLogprobs, Tensor, int]]

    def wait(self) -> StepResult:
        """Block until the step is done; the only place where host and device meet."""
        token_ids: dict[str, list[int]] = {}
        logprobs: dict[str, list[dict[int, Logprob]]] = {}
        if self.sampled is not None:
            accepted = self.sampled.num_accepted.tolist()
            tokens = self.sampled.tokens.tolist()
            for entry, row, count in zip(self.sampling, tokens, accepted, strict=True):
                token_ids[entry.request_id] = row[:count]
            if self.sampled.logprobs is not None:
                chosen = [row[0] for row in tokens]
                rows = _logprob_rows(self.sampled.logprobs, chosen)
                for entry, values in zip(self.sampling, rows, strict=True):
                    wanted = self.num_logprobs.get(entry.request_id)
                    if wanted is not None:
                        logprobs[entry.request_id] = [_first(values, wanted)]
        prompt_logprobs = {
            request_id: [_first(row, wanted) for row in _logprob_rows(values, ids.tolist())]
            for request_id, (values, ids, wanted) in self.prompt_logprobs.items()
        }
        return StepResult(self.output.step, token_ids, logprobs, prompt_logprobs)


class ModelRunner:
    """Owns the model, the cache's tensors and the rows; knows no policy."""

    def __init__(
        self,
        config: EngineConfig,
        model: Decoder,
        storage: KVStorage,
        backend: AttentionBackend,
        sampler: Sampler,
        layer_groups: list[int],
    ) -> None:
        """`layer_groups[i]` is the KV group of layer i."""
        self._device = config.device
        self._model = model
        self._storage = storage
        self._backend = backend
        self._sampler = sampler
        self._layer_groups = layer_groups
        self._windows = _group_windows(model, layer_groups)
        self._batch = InputBatch(
            config.max_num_seqs, config.max_model_len, model.config.vocab_size, config.device
        )

    @torch.inference_mode()
    def execute(self, output: SchedulerOutput) -> PendingStep:
        """Queue one step: forward pass, logits, sampling. Returns without waiting."""
        entries = list(output.entries)
        self._update_rows(output)
        if not entries:
            return PendingStep(output, [], None, {}, {})
        rows, positions = self._gather_indices(entries)
        token_ids = self._batch.token_ids[rows, positions]
        step = self._step_metadata(entries, positions)
        hidden = self._model(token_ids, self._storage, step)

        sampling = [entry for entry in entries if entry.samples]
        sampled = None
        if sampling:
            logits = self._model.compute_logits(hidden, step.logits_indices)
            tensors = self._batch.sampling_tensors(sampling)
            sampled = self._sampler(logits, tensors)
            _check_sampled(sampled, tensors, type(self._sampler).__name__)
            # Behind each row's last token, where the next step reads it.
            last = step.logits_indices
            self._batch.token_ids[rows[last], positions[last] + 1] = sampled.tokens[:, 0]
        num_logprobs = {}
        for entry in sampling:
            wanted = self._batch.state(entry.request_id).params.logprobs
            if wanted is not None:
                num_logprobs[entry.request_id] = wanted
        return PendingStep(
            output, sampling, sampled, num_logprobs, self._prompt_logprobs(entries, hidden)
        )

    def _update_rows(self, output: SchedulerOutput) -> None:
        for request_id in output.finished_ids:
            self._batch.remove(request_id)
        rows = {entry.request_id: entry.row for entry in output.entries}
        for request in output.new_requests:
            self._batch.add(request, rows[request.request_id])

    def _gather_indices(self, entries: list[ScheduledEntry]) -> tuple[Tensor, Tensor]:
        """Return the row and position of every token of the step, int64 [num_tokens]."""
        rows: list[int] = []
        positions: list[int] = []
        for entry in entries:
            rows += [entry.row] * entry.num_tokens
            positions += range(entry.start, entry.start + entry.num_tokens)
        indices = torch.tensor([rows, positions], dtype=torch.int64).to(self._device)
        return indices[0], indices[1]

    def _step_metadata(self, entries: list[ScheduledEntry], positions: Tensor) -> StepMetadata:
        starts = [0]
        for entry in entries:
            starts.append(starts[-1] + entry.num_tokens)
        lengths = [entry.start + entry.num_tokens for entry in entries]
        tables = [self._batch.extend_blocks(entry) for entry in entries]
        per_group = [
            self._backend.build(
                AttentionBatch(starts, lengths, [table[group] for table in tables], positions),
                window,
            )
            for group, window in enumerate(self._windows)
        ]
        last_tokens = [
            end - 1 for entry, end in zip(entries, starts[1:], strict=True) if entry.samples
        ]
        return StepMetadata(
            positions=positions,
            attention=[per_group[group] for group in self._layer_groups],
            logits_indices=torch.tensor(last_tokens, dtype=torch.int64, device=self._device),
        )

    def _prompt_logprobs(
        self, entries: list[ScheduledEntry], hidden: Tensor
    ) -> dict[str, tuple[TokenLogprobs, Tensor, int]]:
        """Score the prompt tokens that this step's positions predict."""
        scored = {}
        begin = 0
        for entry in entries:
            state = self._batch.state(entry.request_id)
            wanted = state.params.prompt_logprobs
            # Position p predicts the token at p + 1, as long as that is a prompt token.
            count = min(entry.num_tokens, state.num_prompt_tokens - 1 - entry.start)
            if wanted is not None and count > 0:
                indices = torch.arange(begin, begin + count, device=self._device)
                targets = self._batch.token_ids[
                    entry.row, entry.start + 1 : entry.start + 1 + count
                ].clone()
                logits = self._model.compute_logits(hidden, indices)
                scored[entry.request_id] = (
                    gather_logprobs(logits, targets, wanted),
                    targets,
                    wanted,
                )
            begin += entry.num_tokens
        return scored


def _check_sampled(sampled: SamplerOutput, tensors: SamplingTensors, name: str) -> None:
    """Raise QuireError for what a swapped sampler forgot, before it does harm elsewhere."""
    num_rows, shape = len(tensors.seeds), list(sampled.tokens.shape)
    if len(shape) != 2 or shape[0] != num_rows:
        raise QuireError(
            f"{name} returned tokens of shape {shape}: must be [{num_rows}, 1], one row a request"
        )
    if tensors.num_logprobs is not None and sampled.logprobs is None:
        raise QuireError(
            f"logprobs={tensors.num_logprobs} was asked for, but {name} returned none: set "
            "SamplerOutput.logprobs (quire.sampling.sampler.gather_logprobs computes them)"
        )


def _group_windows(model: Decoder, layer_groups: list[int]) -> list[int | None]:
    windows: dict[int, int | None] = {}
    for group, window in zip(layer_groups, model.config.sliding_windows, strict=True):
        windows[group] = window
    return [windows[group] for group in range(len(windows))]


def _logprob_rows(values: TokenLogprobs, token_ids: list[int]) -> list[dict[int, Logprob]]:
    """Return a dict a row: the chosen token first, then the most probable ones by rank."""
    chosen, ranks = values.chosen.tolist(), values.rank.tolist()
    top_ids, top_values = values.top_ids.tolist(), values.top_values.tolist()
    rows = []
    for i, token_id in enumerate(token_ids):
        row = {token_id: Logprob(chosen[i], ranks[i])}
        for rank, (other, value) in enumerate(zip(top_ids[i], top_values[i], strict=True), 1):
            row.setdefault(other, Logprob(value, rank))
        rows.append(row)
    return rows


def _first(row: dict[int, Logprob], num_top: int) -> dict[int, Logprob]:
    """Keep the chosen token and the `num_top` most probable ones."""
    chosen = next(iter(row))
    return {k: v for k, v in row.items() if k == chosen or v.rank <= num_top}
