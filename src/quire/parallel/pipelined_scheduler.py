"""`PipelinedScheduler`: steps for the stages of a pipeline, which work on different requests.

A stage can begin a step while those behind it are at earlier ones, if no request is in two of
them: the first stage must know a request's last token, and that is still on its way. So each step
takes its share of the requests that run, and brings along the outputs that the last stage chose
and the first has not seen. See the page "Stages, rings, machines".
"""

from __future__ import annotations

from quire.config import EngineConfig
from quire.kv.host.scheduler import OffloadingScheduler
from quire.kv.kv_cache_manager import KVCacheManager
from quire.messages import ScheduledEntry, SchedulerOutput
from quire.scheduler import TokenBudgetScheduler, _Tracked
from quire.step_builder import StepBuilder


# docs: pipelined begin
class PipelinedScheduler(TokenBudgetScheduler):
    """`TokenBudgetScheduler` for as many steps in flight as there are stages."""

    def __init__(self, config: EngineConfig, kv: KVCacheManager) -> None:
        """See `TokenBudgetScheduler`."""
        super().__init__(config, kv)
        self._num_stages = config.parallel.pipeline_parallel_size
        self._continuing: StepBuilder | None = None  # while those that run catch up

    def schedule(self) -> SchedulerOutput:
        """Return the next step's work, with the outputs at its positions."""
        output = super().schedule()
        for entry in output.entries:
            entry.token_ids = self._outputs_at(entry)
        return output

    def _continue_running(self, step: StepBuilder) -> None:
        self._continuing = step
        super()._continue_running(step)
        self._continuing = None

    def _catch_up(self, tracked: _Tracked, budget: int) -> int:
        if self._continuing is not None:
            share = -(-len(self._running) // self._num_stages)
            if tracked.request.num_placeholders > 0 or len(self._continuing.entries) >= share:
                return 0
        return super()._catch_up(tracked, budget)

    def _outputs_at(self, entry: ScheduledEntry) -> tuple[int, ...]:
        request = self._tracked[entry.request_id].request
        begin = entry.start - len(request.prompt_token_ids)
        outputs = slice(max(begin, 0), max(begin + entry.num_tokens, 0))
        return tuple(request.output_token_ids[outputs])


# docs: pipelined end


class PipelinedOffloadingScheduler(PipelinedScheduler, OffloadingScheduler):
    """The same where blocks go to host memory."""
