"""`HostDrafting`: after each step, guesses from the tokens that the host has just read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from quire.messages import ScheduledEntry, SchedulerOutput
from quire.sending import send
from quire.speculation.proposer import ProposeContext, Proposer


class HostDrafting:
    """Keeps the tokens of every row on the host, and writes guesses behind them on the device.

    Invariant: `_known[row, : _num_known[row]]` is the prompt and output of the row's request, as
    far as steps have told.
    """

    def __init__(
        self,
        proposer: Proposer,
        num_guesses: int,
        token_ids: Tensor,
    ) -> None:
        """Guess with `proposer` at most `num_guesses` tokens of each request and step.

        Args:
            token_ids: int64 [rows, max_model_len + 1], on the device: of each row, its tokens;
                guesses are written behind them.
        """
        self._proposer = proposer
        self._num_guesses = num_guesses
        self._token_ids = token_ids
        rows, width = token_ids.shape
        self._max_model_len = width - 1
        self._known = np.zeros((rows, width), dtype=np.int64)
        self._num_known = [0] * rows
        self._speculates = [False] * rows
        self._owners = [""] * rows  # the request of each

    def begin(self, output: SchedulerOutput) -> None:
        """Take the tokens of requests that a step gives a row."""
        for request in output.new_requests:
            self._owners[request.row] = request.request_id
            self._speculates[request.row] = request.sampling_params.speculate
            self._write(request.row, 0, request.token_ids)

    def queue(self, output: SchedulerOutput) -> None:
        """Nothing to queue: the tokens must be known first."""

    def probabilities(self, rows: Tensor, turns: Tensor) -> None:
        """Guesses that were found, and not drawn, have none."""

    def propose(
        self,
        entries: Sequence[ScheduledEntry],
        told: Mapping[str, Sequence[int]],
        num_guesses: int | None = None,
    ) -> dict[str, int]:
        """Guess what follows a step's tokens; return how many guesses each request has.

        Args:
            entries: of the requests that the step chose for.
            told: their tokens, by request id; one that fails has none.
            num_guesses: at most so many; None: as many as there may be.
        """
        most = self._num_guesses if num_guesses is None else num_guesses
        # A step that overlaps the one told of here may have given a row to somebody else.
        entries = [
            entry
            for entry in entries
            if told.get(entry.request_id) and self._owners[entry.row] == entry.request_id
        ]
        self._take(entries, told)
        guessing = [entry for entry in entries if self._speculates[entry.row]]
        if not guessing or most == 0:
            return {}
        known = [self._known[entry.row, : self._num_known[entry.row]] for entry in guessing]
        context = ProposeContext(known, [entry.row for entry in guessing])
        guesses = self._proposer.propose(context, most)
        rows: list[int] = []
        positions: list[int] = []
        tokens: list[int] = []
        numbers = {}
        for entry, guessed in zip(guessing, guesses, strict=True):
            begin = self._num_known[entry.row]
            guessed = guessed[: max(0, self._max_model_len - begin)]
            rows += [entry.row] * len(guessed)
            positions += range(begin, begin + len(guessed))
            tokens += guessed
            numbers[entry.request_id] = len(guessed)
        if tokens:
            sent = send(torch.tensor([rows, positions, tokens]), self._token_ids.device)
            self._token_ids[sent[0], sent[1]] = sent[2]
        return numbers

    def _take(self, entries: Sequence[ScheduledEntry], told: Mapping[str, Sequence[int]]) -> None:
        """Take a step's tokens of each row: in one write if it gave each one token.

        They go to their positions: a step that was queued before its request was preempted says
        a token that the request's next life says again.
        """
        if any(len(told[entry.request_id]) != 1 for entry in entries):
            for entry in entries:
                self._write(entry.row, entry.chosen_positions.start, told[entry.request_id])
            return
        rows = [entry.row for entry in entries]
        positions = [entry.chosen_positions.start for entry in entries]
        self._known[rows, positions] = [told[entry.request_id][0] for entry in entries]
        for row, position in zip(rows, positions, strict=True):
            self._num_known[row] = position + 1

    def _write(self, row: int, begin: int, token_ids: Sequence[int]) -> None:
        self._known[row, begin : begin + len(token_ids)] = token_ids
        self._num_known[row] = begin + len(token_ids)
