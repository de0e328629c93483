"""A reader's own parts: they are really called, and their faults come to light."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import checkpoints
import pytest
import torch
from checkpoints import Scripted
from torch import Tensor

from quire import LLM, Components, QuireError, SamplingParams, Trace
from quire.attention.torch_backend import TorchAttention
from quire.config import EngineConfig
from quire.kernels.sampling import NO_TOKEN
from quire.kv.batch import AttentionBatch
from quire.kv.block_pool import BlockPool, LRUBlockPool
from quire.kv.kv_cache_manager import KVCacheManager, PagedKVCacheManager
from quire.messages import SchedulerOutput, StepResult
from quire.policy import FirstComeFirstServed
from quire.request import Request
from quire.sampling import SamplerOutput, SamplingTensors, TorchSampler
from quire.sampling.sampler import TokenLogprobs, gather_logprobs
from quire.scheduler import TokenBudgetScheduler

PROMPTS = [[1, 2, 3], [4, 5], [6]]
GREEDY = SamplingParams(temperature=0, max_tokens=8)


@pytest.fixture(scope="module")
def folder(checkpoint: Callable[[str], Path]) -> Path:
    return checkpoint("llama3-scaled")


@pytest.fixture(scope="module")
def expected(folder: Path) -> list[list[int]]:
    return tokens(LLM(folder, device="cpu"))


def load(folder: Path, **parts: Any) -> LLM:
    return LLM(folder, device="cpu", max_num_seqs=2, components=Components(**parts))


def tokens(llm: LLM, params: SamplingParams = GREEDY) -> list[list[int]]:
    return [output.outputs[0].token_ids for output in llm.generate(PROMPTS, params)]


def test_sampler_is_called_and_its_tokens_are_used(folder: Path) -> None:
    script = [9, 8, 7, 6, 5, 4, 3, 2]
    llm = load(folder, sampler=lambda: Scripted(2, script))
    (output,) = llm.generate([[4, 5]], SamplingParams(temperature=0, max_tokens=8, logprobs=0))
    assert output.outputs[0].token_ids == script
    # The model was run on them too: these are its log-probabilities after the script.
    logits = checkpoints.oracle_logits(checkpoints.transformers_model(folder), [4, 5, *script])
    logprobs = logits[1:-1].log_softmax(-1)
    assert output.outputs[0].logprobs is not None
    for i, token in enumerate(script):
        value = output.outputs[0].logprobs[i][token].logprob
        assert value == pytest.approx(logprobs[i, token].item(), abs=1e-4)


class Recorder(TorchSampler):
    """Notes what it was given."""

    def __init__(self) -> None:
        self.calls: list[tuple[tuple[int, ...], list[int], torch.dtype]] = []

    def __call__(
        self, logits: Tensor, sampling: SamplingTensors, drafts: Tensor | None = None
    ) -> SamplerOutput:
        assert drafts is None
        assert torch.is_inference_mode_enabled()
        self.calls.append((tuple(logits.shape), sampling.positions.tolist(), logits.dtype))
        return super().__call__(logits, sampling, drafts)


def test_a_sampler_sees_one_row_a_request_that_caught_up(folder: Path) -> None:
    recorder = Recorder()
    llm = LLM(
        folder,
        device="cpu",
        max_num_seqs=2,
        max_num_batched_tokens=4,
        components=Components(sampler=lambda: recorder),
    )
    llm.generate([[1] * 3, [2] * 5], SamplingParams(temperature=0, max_tokens=2))
    # Step 1: all of the first prompt, one of the second. Step 2: its decode, three more …
    assert [positions for _, positions, _ in recorder.calls] == [[3], [4], [5], [6]]
    assert {shape for shape, *_ in recorder.calls} == {(1, checkpoints.VOCAB_SIZE)}
    assert {dtype for *_, dtype in recorder.calls} == {torch.float32}


class NewestFirst(FirstComeFirstServed):
    """Ranks whoever came last first."""

    def __init__(self) -> None:
        self.arrivals: dict[str, int] = {}

    def arrived(self, request: Request) -> None:
        self.arrivals[request.request_id] = len(self.arrivals)

    def rank(self, request: Request) -> float:
        return -self.arrivals[request.request_id]


class LastComeFirstServed(TokenBudgetScheduler):
    """Admits the newest waiting request first."""

    def __init__(self, config: EngineConfig, kv: KVCacheManager) -> None:
        super().__init__(config, kv)
        self._policy = NewestFirst()


def test_scheduler_is_used(folder: Path, expected: list[list[int]]) -> None:
    """Another order of service, the same tokens."""
    order: list[str] = []

    class Watched(LastComeFirstServed):
        def schedule(self) -> SchedulerOutput:
            output = super().schedule()
            order.extend(request.request_id for request in output.new_requests)
            return output

    assert tokens(load(folder, scheduler=Watched)) == expected
    assert order == ["2-0", "1-0", "0-0"]


def test_scheduler_gets_config_and_manager(folder: Path) -> None:
    seen: list[tuple[EngineConfig, KVCacheManager]] = []

    def factory(config: EngineConfig, kv: KVCacheManager) -> TokenBudgetScheduler:
        seen.append((config, kv))
        return TokenBudgetScheduler(config, kv)

    class Own(PagedKVCacheManager):
        pass

    llm = load(folder, scheduler=factory, kv_cache_manager=Own)
    ((config, kv),) = seen
    assert config is llm.config
    assert isinstance(kv, Own)


class Scattered(LRUBlockPool):
    """Gives out the odd blocks from the last to the first, then the even ones."""

    def __init__(self, num_blocks: int) -> None:
        super().__init__(num_blocks)
        ids = self.allocate(self.num_free)
        self.release([i for i in reversed(ids) if i % 2] + [i for i in ids if i % 2 == 0])


@pytest.mark.parametrize("name", ["llama3-scaled", "qwen2-two-groups"])
def test_block_pool_is_used(name: str, checkpoint: Callable[[str], Path]) -> None:
    """Which blocks a request has must not matter: here they are never neighbours in order."""
    prompts, long = checkpoints.random_prompts([40, 3, 20]), replace(GREEDY, max_tokens=30)
    trace = Trace()
    outputs = [
        LLM(
            checkpoint(name),
            device="cpu",
            max_num_seqs=3,
            components=components,
            trace=trace,
        ).generate(prompts, long)
        for components in (Components(block_pool=Scattered), Components())
    ]
    first = trace.steps[0].scheduled.entries[0]
    assert all(a % 2 and b % 2 and a > b for a, b in pairwise(first.new_block_ids[0]))
    assert [o.outputs for o in outputs[0]] == [o.outputs for o in outputs[1]]


def test_cache_manager_is_used(folder: Path, expected: list[list[int]]) -> None:
    """It gets a pool a KV group, the block size, and whether blocks may be found again."""
    seen: list[tuple[int, int, bool]] = []

    class Own(PagedKVCacheManager):
        def __init__(self, pools: list[BlockPool], block_size: int, caching: bool) -> None:
            seen.append((len(pools), block_size, caching))
            super().__init__(pools, block_size, caching)

        def match_prefix(self, request: Request) -> int:
            return 0  # a reader's manager may find nothing

    assert tokens(load(folder, kv_cache_manager=Own)) == expected
    assert seen == [(1, 16, True)]


def test_attention_is_used(folder: Path, expected: list[list[int]]) -> None:
    built: list[int] = []

    class Watched(TorchAttention):
        def build(self, batch: AttentionBatch, window: int | None) -> Any:
            built.append(len(batch.lengths))
            return super().build(batch, window)

    assert tokens(load(folder, attention=Watched)) == expected
    assert built[0] == 2  # both rows in the first step
    assert len(built) == 16  # one KV group: once a step, 8 steps and 8 for the third


# --- faults ------------------------------------------------------------------


class Broken(TorchSampler):
    def __call__(
        self, logits: Tensor, sampling: SamplingTensors, drafts: Tensor | None = None
    ) -> SamplerOutput:
        raise ZeroDivisionError("in the reader's sampler")


class Silent(TorchSampler):
    """Leaves out the log-probabilities."""

    def __call__(
        self, logits: Tensor, sampling: SamplingTensors, drafts: Tensor | None = None
    ) -> SamplerOutput:
        tokens = self.choose(logits, sampling)
        return SamplerOutput(tokens[:, None], torch.ones_like(tokens))


class FewRows(TorchSampler):
    """Answers for the first row only, which would be taken for every row's answer."""

    def __call__(
        self, logits: Tensor, sampling: SamplingTensors, drafts: Tensor | None = None
    ) -> SamplerOutput:
        tokens = self.choose(logits, sampling)[:1]
        return SamplerOutput(tokens[:, None], torch.ones_like(tokens))


class Flat(TorchSampler):
    """Forgets that tokens have a column."""

    def __call__(
        self, logits: Tensor, sampling: SamplingTensors, drafts: Tensor | None = None
    ) -> SamplerOutput:
        tokens = self.choose(logits, sampling)
        return SamplerOutput(tokens, torch.ones_like(tokens))


class Idle(TokenBudgetScheduler):
    """Never schedules anything."""

    def schedule(self) -> SchedulerOutput:
        return SchedulerOutput(1, ())


class Forgetful(TokenBudgetScheduler):
    """Drops a request when its first token comes."""

    def update(self, output: SchedulerOutput, result: StepResult) -> list[Request]:
        for entry in output.entries:
            self.abort(entry.request_id)
        return super().update(output, result)


@pytest.mark.parametrize(
    ("part", "called"),
    [
        ({"sampler": TorchSampler()}, r"sampler\(\); give the class, not an instance"),
        ({"sampler": object()}, r"sampler\(\)"),
        ({"attention": "torch"}, r"attention\(\)"),
        ({"scheduler": lambda: None}, r"scheduler\(config, kv_cache_manager\)"),
        ({"block_pool": LRUBlockPool(4)}, r"block_pool\(num_blocks\)"),
        ({"kv_cache_manager": lambda pools: None}, r"kv_cache_manager\(block_pools, block_size, "),
    ],
)
def test_a_part_that_cannot_be_called(part: dict[str, Any], called: str) -> None:
    """Said where the parts are named, and not when the engine is half built."""
    (name,) = part
    with pytest.raises(QuireError, match=rf"^{name}=.*: must be a class, .* called as {called}"):
        Components(**part)


def test_a_samplers_exception_comes_through(folder: Path) -> None:
    llm = load(folder, sampler=Broken)
    for _ in range(2):  # and leaves nothing behind
        with pytest.raises(ZeroDivisionError, match="in the reader's sampler"):
            llm.generate(PROMPTS, GREEDY)
        checkpoints.assert_empty(llm)


def test_a_sampler_without_logprobs(folder: Path, expected: list[list[int]]) -> None:
    llm = load(folder, sampler=Silent)
    message = r"logprobs=3 was asked for, but Silent returned none: set SamplerOutput\.logprobs"
    with pytest.raises(QuireError, match=message):
        llm.generate(PROMPTS, SamplingParams(temperature=0, max_tokens=8, logprobs=3))
    assert tokens(llm) == expected  # nobody asks: nothing is missing


Tokens = Tensor  # int64 [R, 1], the right answer
WRONG: dict[str, tuple[Callable[[Tokens], Any], str]] = {
    "nothing": (lambda t: None, r"returned None: a sampler returns SamplerOutput\(tokens\)"),
    "the tensor itself": (lambda t: t, r"returned a tensor of int64, \[2, 1\], on cpu: a sampler"),
    "a list": (lambda t: SamplerOutput(t.tolist()), r"tokens as a list: must be a tensor of int64"),
    "int32": (lambda t: SamplerOutput(t.int()), r"tokens as a tensor of int32, \[2, 1\], on cpu"),
    "floats": (lambda t: SamplerOutput(t.float()), r"tokens as a tensor of float32"),
    "past the vocabulary": (
        lambda t: SamplerOutput(t * 0 + checkpoints.VOCAB_SIZE),
        rf"token id (\d+) for row 0: must lie in \[0, {checkpoints.VOCAB_SIZE}\)",
    ),
    "negative": (lambda t: SamplerOutput(t * 0 - 5), r"token id -5 for row 0: must lie in"),
    "one row of two": (
        lambda t: SamplerOutput(t + torch.tensor([[0], [2**40]])),
        r"token id \d+ for row 1: must lie in",
    ),
    "too many accepted": (
        lambda t: SamplerOutput(t, torch.tensor([1, 2])),
        r"num_accepted=2 for row 1, which has 1 tokens: must lie in \[1, 1\]",
    ),
    "none accepted": (
        lambda t: SamplerOutput(t, torch.tensor([0, 1])),
        r"num_accepted=0 for row 0",
    ),
    "accepted of one row": (
        lambda t: SamplerOutput(t, torch.tensor([1])),
        r"num_accepted as a tensor of int64, \[1\], on cpu: must be a tensor of integers, \[2\]",
    ),
    "accepted as a list": (lambda t: SamplerOutput(t, [1, 1]), r"num_accepted as a list: must"),
}


@pytest.mark.parametrize("name", WRONG)
def test_an_answer_that_is_wrong(name: str, folder: Path) -> None:
    """It would be an error of torch's, in another place, or tokens that nobody chose."""
    change, message = WRONG[name]

    class Slip(TorchSampler):
        def __call__(self, logits: Tensor, sampling: Any, drafts: Any = None) -> Any:
            return change(self.choose(logits, sampling)[:, None])

    llm = load(folder, sampler=Slip)
    with pytest.raises(QuireError, match=f"^Slip returned {message.removeprefix('returned ')}"):
        llm.generate(PROMPTS, GREEDY)
    checkpoints.assert_empty(llm)


def replaced(part: str, change: Callable[[Tensor], Any]) -> Callable[[TokenLogprobs], Any]:
    return lambda logprobs: replace(logprobs, **{part: change(getattr(logprobs, part))})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda values: (1, 2), r"logprobs as a tuple: must be TokenLogprobs"),
        (replaced("chosen", lambda x: x[:1]), r"logprobs.chosen as a tensor of float32, \[1\], on"),
        (replaced("chosen", lambda x: x.tolist()), r"logprobs.chosen as a list: must be a tensor"),
        (replaced("rank", lambda x: x.float()), r"logprobs.rank as a tensor of float32, \[2\]"),
        (
            replaced("rank", lambda x: x[:, None]),
            r"logprobs.rank as .* \[2, 1\], .* \[2\], for 2 r",
        ),
        (
            replaced("top_ids", lambda x: x[:, :1]),
            r"logprobs.top_ids as .* \[2, 1\], .* \[2, 3\], f",
        ),
        (replaced("top_ids", lambda x: x[:1]), r"logprobs.top_ids as .* \[1, 3\], .* \[2, 3\], f"),
        (replaced("top_values", lambda x: x[:, :2]), r"logprobs.top_values as .* \[2, 2\], on cpu"),
        (replaced("top_values", lambda x: x[:1]), r"logprobs.top_values as .* \[1, 3\], on cpu"),
        (replaced("top_values", lambda x: None), r"logprobs.top_values as None: must be a tensor"),
    ],
)
def test_logprobs_that_are_wrong(
    change: Callable[[TokenLogprobs], Any], message: str, folder: Path
) -> None:
    class Slip(TorchSampler):
        def __call__(self, logits: Tensor, sampling: Any, drafts: Any = None) -> Any:
            output = super().__call__(logits, sampling, drafts)
            return SamplerOutput(output.tokens, logprobs=change(output.logprobs))

    llm = load(folder, sampler=Slip)
    with pytest.raises(QuireError, match=f"^Slip returned {message}"):
        llm.generate(PROMPTS, SamplingParams(temperature=0, max_tokens=8, logprobs=3))
    checkpoints.assert_empty(llm)


def test_more_logprobs_than_were_asked_for(folder: Path) -> None:
    class Generous(TorchSampler):
        def __call__(self, logits: Tensor, sampling: Any, drafts: Any = None) -> SamplerOutput:
            tokens = self.choose(logits, sampling)
            return SamplerOutput(tokens[:, None], logprobs=gather_logprobs(logits, tokens, 9))

    params = SamplingParams(temperature=0, max_tokens=3, logprobs=2)
    given = load(folder, sampler=Generous).generate(PROMPTS, params)
    assert [o.outputs for o in given] == [o.outputs for o in load(folder).generate(PROMPTS, params)]


def test_a_row_without_a_token_is_no_fault_of_the_sampler(folder: Path) -> None:
    class Lost(TorchSampler):
        def __call__(self, logits: Tensor, sampling: Any, drafts: Any = None) -> SamplerOutput:
            return SamplerOutput(torch.full((len(logits), 1), NO_TOKEN))

    with pytest.raises(QuireError, match="request '0-0' has no next token in step 1"):
        load(folder, sampler=Lost).generate(PROMPTS, GREEDY)


@pytest.mark.parametrize(("sampler", "shape"), [(FewRows, [1, 1]), (Flat, [2])])
def test_tokens_of_a_wrong_shape(sampler: type, shape: list[int], folder: Path) -> None:
    llm = load(folder, sampler=sampler)
    message = f"{sampler.__name__} returned tokens of shape {shape}: must be [2, 1]"
    with pytest.raises(QuireError, match=re.escape(message)):
        llm.generate(PROMPTS, GREEDY)
    checkpoints.assert_empty(llm)


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("scheduler", [Idle, Forgetful])
def test_a_scheduler_that_makes_no_progress(scheduler: type, overlap: bool, folder: Path) -> None:
    components = Components(scheduler=scheduler)
    llm = LLM(folder, device="cpu", max_num_seqs=2, overlap=overlap, components=components)

    def run() -> None:
        for prompt in PROMPTS:
            llm.engine.add_request(str(prompt), prompt, GREEDY)
        for _ in range(20):  # an engine that goes round for ever would be found out here
            llm.engine.step()

    with pytest.raises(QuireError, match=rf"{scheduler.__name__} scheduled nothing while \d"):
        run()
