"""The engine on a CUDA device: float32 exactly, bfloat16 and float16 by the top-five rule.

Each way to run a step is tried: captured graphs or kernel by kernel, a step ahead or one at a
time, Triton's attention and sampler or torch's.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import checkpoints
import pytest
import torch
from checkpoints import SPECS, WINDOW, assert_greedy, assert_logprobs, random_prompts
from runs import Folder, Oracle, Run

from quire import LLM, Components, QuireError, SamplingParams
from quire.attention.torch_backend import TorchAttention
from quire.kernels.runtime import runs_triton
from quire.resources import shipped_models
from quire.runner.decode_graphs import DecodeGraphs, Ending
from quire.runner.pending import PendingStep
from quire.runner.prompt_graphs import PromptGraphs
from quire.sampling import TorchSampler

pytestmark = pytest.mark.gpu

DEVICE = "cuda"
NUM_TOKENS = 128
RAGGED = [1, 2, 5, WINDOW - 1, WINDOW, WINDOW + 1, 40, 77]
GREEDY = SamplingParams(temperature=0, max_tokens=NUM_TOKENS, ignore_eos=True)
MODES: dict[str, dict[str, Any]] = {
    "graphs": {},
    "graphs, one at a time": {"overlap": False},
    "kernel by kernel": {"cuda_graphs": False},
    "kernel by kernel, one at a time": {"cuda_graphs": False, "overlap": False},
    "torch": {"components": Components(attention=TorchAttention, sampler=TorchSampler)},
    "torch, one at a time": {
        "components": Components(attention=TorchAttention, sampler=TorchSampler),
        "overlap": False,
    },
    "graphs, torch's sampler": {"components": Components(sampler=TorchSampler)},
}
SIZES: dict[str, Any] = {"num_blocks": 400, "block_size": 8, "max_num_seqs": 5}


@pytest.fixture(autouse=True)
def exact_float32() -> None:
    """float32 means float32, not TF32, on both sides of a comparison."""
    assert torch.get_float32_matmul_precision() == "highest"


@pytest.fixture(autouse=True)
def memory_of_its_own() -> Iterator[None]:
    """What a test allocated is given back: some sizes are measured from what is left."""
    yield
    gc.collect()
    torch.cuda.empty_cache()


@pytest.fixture
def replays(monkeypatch: pytest.MonkeyPatch) -> list[Ending]:
    """How the captured steps that were replayed ended."""
    endings: list[Ending] = []
    replay = DecodeGraphs.replay

    def noted(self: DecodeGraphs, entries: Any, ending: Ending) -> torch.Tensor:
        endings.append(ending)
        starts = [entry.start for entry in entries]
        assert starts == sorted(starts, reverse=True)  # the longest first
        return replay(self, entries, ending)

    monkeypatch.setattr(DecodeGraphs, "replay", noted)
    return endings


def captures(mode: str) -> bool:
    """Whether steps are replayed in this mode on this GPU."""
    return mode.startswith("graphs") and runs_triton(torch.device(DEVICE))


# --- float32 is transformers on the CPU --------------------------------------


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("budget", [7, 4096])
def test_float32_is_transformers(
    name: str, budget: int, checkpoint: Folder, oracle: Oracle
) -> None:
    """Tokens and log-probabilities of a ragged batch."""
    run = Run.of(checkpoint(name), DEVICE, max_num_batched_tokens=budget, **SIZES)
    params = replace(GREEDY, logprobs=0, prompt_logprobs=0)
    for output in run.generate(random_prompts(RAGGED, seed=2), params):
        assert len(output.outputs[0].token_ids) == NUM_TOKENS
        assert_greedy(oracle(name), output)
        assert_logprobs(oracle(name), output)


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("mode", MODES)
def test_every_mode(
    mode: str, name: str, checkpoint: Folder, oracle: Oracle, replays: list[Ending]
) -> None:
    """Greedy alone, then with log-probabilities, whose captured steps end before sampling."""
    run = Run.of(checkpoint(name), DEVICE, max_num_batched_tokens=40, **SIZES, **MODES[mode])
    prompts, params = random_prompts(RAGGED, seed=90), replace(GREEDY, max_tokens=24)
    for output in run.generate(prompts, params):
        assert_greedy(oracle(name), output)
    assert bool(replays) == captures(mode)
    if captures(mode):
        own_sampler = "components" not in MODES[mode]
        assert set(replays) == {Ending.GREEDY if own_sampler else Ending.HIDDEN}
    replays.clear()
    scored = replace(params, logprobs=1, prompt_logprobs=1)
    for output in run.generate(prompts, scored):
        assert_greedy(oracle(name), output)
        assert_logprobs(oracle(name), output)
    assert set(replays) == ({Ending.HIDDEN} if captures(mode) else set())


@pytest.fixture
def prompt_replays(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The prompts whose layers were replayed: the captured length, and the request's tokens."""
    replayed: list[tuple[int, int]] = []
    replay = PromptGraphs.replay

    def noted(self: PromptGraphs, size: int, num_tokens: int) -> torch.Tensor:
        replayed.append((size, num_tokens))
        return replay(self, size, num_tokens)

    monkeypatch.setattr(PromptGraphs, "replay", noted)
    return replayed


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("budget", [24, 4096])
def test_prompts_that_come_alone(
    name: str,
    budget: int,
    checkpoint: Folder,
    oracle: Oracle,
    prompt_replays: list[tuple[int, int]],
) -> None:
    """Whole, in chunks and behind a prefix."""
    run = Run.of(checkpoint(name), DEVICE, max_num_batched_tokens=budget, **SIZES)
    params = replace(GREEDY, max_tokens=8, logprobs=0, prompt_logprobs=0)
    lengths = [1, 2, 16, 17, 63, 77, 129]
    for asked in (params, replace(params, prompt_logprobs=None)):  # which takes a prefix
        for length in lengths:
            (output,) = run.generate(random_prompts([length], seed=length), asked)
            assert_greedy(oracle(name), output)
            assert_logprobs(oracle(name), output)
        if not runs_triton(torch.device(DEVICE)):
            assert not prompt_replays
            return
        if asked is params:
            whole = [(16, 2), (16, 16), (32, 17), (64, 63), (128, 77), (192, 129)]
            begun = [(16, 2), (16, 16), (24, 17), (24, 24), (24, 24), (16, 15), (24, 24)]
            expected = begun if budget == 24 else whole
            assert prompt_replays[: len(expected)] == expected
            prompt_replays.clear()
    assert all(size >= count > 1 for size, count in prompt_replays)
    assert prompt_replays


@pytest.mark.parametrize(
    "options",
    [{}, {"kv_cache_dtype": "int8"}, {"quantization": "int4"}, {"quantization": "fp8"}],
    ids=str,
)
def test_prompts_of_every_length_captured(
    options: dict[str, Any], prompt_replays: list[tuple[int, int]]
) -> None:
    """In bfloat16 beside the same prompts run kernel by kernel; the longest is not replayed."""
    if not runs_triton(torch.device(DEVICE)):
        pytest.skip("nothing is captured here")
    model = "quire-mini" if options else "quire-mini-moe"
    llm = LLM(model, dtype="bfloat16", num_blocks=200, **options)
    runner = llm.engine.executor.worker.runner
    graphs, params = runner.prompt_graphs, replace(GREEDY, max_tokens=1, prompt_logprobs=0)
    lengths = [9, 33, 70, 129, 200, 321, 450, 700, 1000, 1024, 1025]
    found: dict[bool, list[float]] = {}
    for replays in (True, False):
        runner.prompt_graphs = graphs if replays else None
        outputs = [
            llm.generate([[i * 37 % 1000 + 4 for i in range(n)]], params, use_tqdm=False)[0]
            for n in lengths
        ]
        rows = [row for output in outputs for row in (output.prompt_logprobs or [])[1:]]
        found[replays] = [v.logprob for row in rows for v in (row or {}).values()]
    assert [count for _, count in prompt_replays] == lengths[:-1]
    differences = (torch.tensor(found[True]) - torch.tensor(found[False])).abs()
    assert differences.mean() < 0.02
    assert differences.max() < 0.5  # a rounding may choose another expert


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["qwen2-two-groups", "llama3-scaled"])
def test_preemption_hits_and_samples(
    name: str, mode: str, checkpoint: Folder, oracle: Oracle, replays: list[Ending]
) -> None:
    """A cache of 12 blocks: requests lose theirs, find some again, and fork."""
    tight = {**SIZES, "num_blocks": 13, "max_model_len": 80, "max_num_seqs": 6}
    run = Run.of(checkpoint(name), DEVICE, max_num_batched_tokens=24, **tight, **MODES[mode])
    prompts = random_prompts([20, 13, 33, 6], seed=91)
    params = replace(GREEDY, max_tokens=40)
    handles = [
        run.add(prompt, replace(params, n=n, logprobs=logprobs))
        for prompt, n, logprobs in zip(prompts, (1, 3, 1, 1), (None, None, 0, None), strict=True)
    ]
    outputs = run.finish_all(handles)
    assert run.preemptions()
    assert run.decisions("copy")
    for prompt in (prompts[2], prompts[2][:17], [*prompts[2], 5]):
        outputs += run.generate([prompt], replace(params, max_tokens=8))
    assert run.hits()[-2:] == [16, 32]  # of 17 tokens, one is left to compute
    for output in outputs:
        assert_greedy(oracle(name), output)
    assert bool(replays) == captures(mode)


@pytest.mark.parametrize("mode", MODES)
def test_replays_after_the_cache_was_reused(
    mode: str, checkpoint: Folder, oracle: Oracle, replays: list[Ending]
) -> None:
    """Between rounds the whole cache is overwritten: no step reads what another left there."""
    run = Run.of(
        checkpoint("mistral"),
        DEVICE,
        enable_prefix_caching=False,
        **{**SIZES, "num_blocks": 60, "max_model_len": 110},
        **MODES[mode],
    )
    for seed, lengths in enumerate(([77, 40, 3, 9, 24], [1, 60], [30, 31, 32, 33])):
        for kv in run.llm.engine.executor.worker.runner._parts.storage.layers:
            kv.key.fill_(1e4)  # finite: what is masked is multiplied by 0
            kv.value.fill_(-1e4)
        replays.clear()
        prompts = random_prompts(lengths, seed=92 + seed)
        for output in run.generate(prompts, replace(GREEDY, max_tokens=30)):
            assert_greedy(oracle("mistral"), output)
        assert (len(replays) >= 25) == captures(mode)


@pytest.mark.parametrize("place", ["before its upload", "after it", "at its answer", "waiting"])
def test_an_interrupted_step(
    place: str, checkpoint: Folder, oracle: Oracle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its requests compute it again, and no step in flight beside it reads what is not its own."""
    run = Run.of(checkpoint("qwen3-sharded"), DEVICE, **SIZES)
    runner, calls = run.llm.engine.executor.worker.runner, 0
    owner, name = {
        "before its upload": (runner._parts.staging, "upload"),
        "after it": (runner._parts.staging, "upload"),
        "at its answer": (runner._answers, "fetch"),
        "waiting": (PendingStep, "wait"),
    }[place]
    inner = getattr(owner, name)

    def sometimes(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        torch.cuda._sleep(3_000_000)  # the device is behind, as it is with a large model
        interrupted = calls % 7 == 0
        if interrupted and place in ("before its upload", "waiting"):
            raise KeyboardInterrupt
        answer = inner(*arguments)
        if interrupted:
            raise KeyboardInterrupt
        return answer

    monkeypatch.setattr(owner, name, sometimes)
    handles = [run.add(p, replace(GREEDY, max_tokens=40)) for p in random_prompts([20, 7, 33])]
    interrupts = 0
    while run.llm.engine.has_requests:
        try:
            run.llm.engine.step()
        except KeyboardInterrupt:
            interrupts += 1
    assert interrupts >= 4
    for output in run.finish_all(handles):
        assert len(output.outputs[0].token_ids) == 40
        assert_greedy(oracle("qwen3-sharded"), output)


def test_reused_memory_is_not_read(checkpoint: Folder, oracle: Oracle) -> None:
    """torch's allocator hands out used memory; the cache must not show it."""
    poison = [torch.full((1 << 20,), torch.nan, device=DEVICE) for _ in range(64)]
    del poison
    run = Run.of(checkpoint("mistral"), DEVICE, max_num_seqs=8, num_blocks=200)
    for output in run.generate(random_prompts(RAGGED, seed=8), GREEDY):
        assert_greedy(oracle("mistral"), output)


# --- half precision ----------------------------------------------------------


def assert_top_five(model: Any, outputs: list[Any], num_tokens: int) -> int:
    """Where two greedy texts part, each side's token is among the other's five best.

    Returns how many tokens agreed before that, over all outputs.
    """
    agreed = 0
    for output in outputs:
        prompt, ours = output.prompt_token_ids, output.outputs[0]
        theirs = checkpoints.oracle_greedy(model, prompt, num_tokens)
        parted = [i for i in range(num_tokens) if ours.token_ids[i] != theirs[i]]
        agreed += parted[0] if parted else num_tokens
        if parted:
            first = parted[0]
            assert theirs[first] in ours.logprobs[first]
            logits = checkpoints.oracle_logits(model, prompt + theirs[:first])[-1]
            assert ours.token_ids[first] in logits.topk(5).indices.tolist()
    return agreed


@pytest.mark.parametrize("mode", ["graphs", "kernel by kernel", "torch"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", checkpoints.SHIPPED)
def test_half_precision_follows_the_top_five_rule(name: str, dtype: str, mode: str) -> None:
    folder = shipped_models()[name]
    model = checkpoints.transformers_model(folder, getattr(torch, dtype)).to(DEVICE)
    llm = LLM(folder, dtype=dtype, device=DEVICE, max_num_seqs=8, num_blocks=400, **MODES[mode])
    prompts = ["def fibonacci(n):\n", "import os", "class Stack:\n", "for i in range("]
    outputs = llm.generate(prompts, replace(GREEDY, logprobs=5))
    agreed = assert_top_five(model, outputs, NUM_TOKENS)
    assert agreed >= NUM_TOKENS // 2  # a broken model would part at once
    checkpoints.assert_empty(llm)


@pytest.mark.parametrize("name", SPECS)
def test_every_architecture_in_bfloat16(name: str, checkpoint: Folder) -> None:
    """Chunked prefill, windows and groups; random weights part sooner than trained ones."""
    model = checkpoints.transformers_model(checkpoint(name), torch.bfloat16).to(DEVICE)
    llm = LLM(checkpoint(name), dtype="bfloat16", device=DEVICE, max_num_batched_tokens=40, **SIZES)
    outputs = llm.generate(random_prompts(RAGGED, seed=93), replace(GREEDY, logprobs=5))
    agreed = assert_top_five(model, outputs, NUM_TOKENS)
    assert agreed >= 2 * len(RAGGED)


@pytest.mark.whole_gpu
def test_dtype_of_the_device() -> None:
    """Every default at once, the size of the cache among them."""
    major, _ = torch.cuda.get_device_capability()
    llm = LLM("quire-mini-draft")
    assert llm.config.model.device.type == "cuda"
    assert llm.config.model.dtype is (torch.bfloat16 if major >= 8 else torch.float16)
    assert (
        next(llm.engine.executor.worker.runner._parts.model.parameters()).dtype
        is llm.config.model.dtype
    )
    assert llm.config.scheduling.overlap
    assert (llm.engine.executor.worker.runner.graphs is not None) == (major >= 8)
    (output,) = llm.generate("def fib", replace(GREEDY, max_tokens=20))
    assert len(output.outputs[0].token_ids) == 20


# --- memory ------------------------------------------------------------------


@pytest.mark.whole_gpu
def test_the_cache_takes_what_is_left() -> None:
    """Weights, cache, graphs and all stay within the share that was asked for."""
    free, total = torch.cuda.mem_get_info()
    share = round(1 - 0.7 * free / total, 3)  # leaves well over half of what is free
    llm = LLM("quire-mini", device=DEVICE, gpu_memory_utilization=share)
    allowed = share * total - (total - free)
    held = llm.engine.executor.worker.runner._parts.storage.num_bytes
    assert 0.5 * allowed - (2 << 30) < held < allowed
    free_after, _ = torch.cuda.mem_get_info()
    assert total - free_after < share * total + (1 << 30)
    assert len(llm.generate("import", replace(GREEDY, max_tokens=8))[0].outputs[0].token_ids) == 8


@pytest.mark.parametrize("share", [0.001, 0.004])
def test_no_memory_left_by_the_share(share: float) -> None:
    message = rf"no memory is left for the KV cache: .* raise gpu_memory_utilization={share}, "
    with pytest.raises(QuireError, match=message):
        LLM("quire-mini", device=DEVICE, gpu_memory_utilization=share)


@pytest.mark.whole_gpu
def test_no_memory_left_by_others() -> None:
    """What something else holds is not the engine's to use."""
    free, total = torch.cuda.mem_get_info()
    taken = torch.empty(free - total // 20, dtype=torch.uint8, device=DEVICE)
    with pytest.raises(QuireError, match=r"no memory is left for the KV cache: .*smaller model"):
        LLM("quire-mini", device=DEVICE, gpu_memory_utilization=0.9)
    del taken
    torch.cuda.empty_cache()
    assert LLM("quire-mini", device=DEVICE, gpu_memory_utilization=0.9).config.scheduling.overlap


def test_a_cache_larger_than_the_gpu(checkpoint: Folder) -> None:
    with pytest.raises(QuireError, match=r"num_blocks=1000000000: the KV cache needs .* lower"):
        LLM(checkpoint("qwen2"), device=DEVICE, num_blocks=10**9)


def test_a_device_that_is_not_there() -> None:
    with pytest.raises(QuireError, match=r"device='cuda:99': torch sees \d+ CUDA devices"):
        LLM("quire-mini-draft", device="cuda:99")


@pytest.mark.two_gpus
@pytest.mark.parametrize("mode", ["graphs", "kernel by kernel", "torch"])
def test_a_second_gpu(mode: str, checkpoint: Folder, oracle: Oracle) -> None:
    """The engine computes where it was told to, whichever GPU the calling thread is on."""
    before = torch.cuda.memory_allocated(0)
    run = Run.of(checkpoint("qwen2"), "cuda:1", **SIZES, **MODES[mode])
    prompts = random_prompts([5, 17, 40], seed=74)
    params = replace(GREEDY, max_tokens=20)
    for output in run.generate(prompts, params):
        assert_greedy(oracle("qwen2"), output)
    with ThreadPoolExecutor(1) as pool:  # another thread, whose current GPU is the first
        for output in pool.submit(run.generate, prompts, params).result():
            assert_greedy(oracle("qwen2"), output)
    assert torch.cuda.current_device() == 0
    assert torch.cuda.memory_allocated(0) == before
    assert torch.cuda.memory_allocated(1) > 0
