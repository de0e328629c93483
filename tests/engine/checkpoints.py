"""Tiny random checkpoints of every architecture, written by transformers, and its answers.

Norm weights and biases are random too: transformers starts them at one and zero, where a
model that forgot them would look right. The scale keeps the logits some nats apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from quire import LLM, RequestOutput
from quire.attention.torch_backend import TorchAttention
from quire.kv.batch import AttentionBatch
from quire.kv.spec import layer_specs
from quire.kv.storage import KVStorage
from quire.layers.attention import StepMetadata
from quire.layers.linear import MethodFactory
from quire.messages import Logprob
from quire.models.config import ModelConfig
from quire.models.decoder import Decoder
from quire.models.loader import load_weights
from quire.parallel.part import local_config
from quire.sampling import SamplerOutput, SamplingTensors
from quire.sampling.sampler import gather_logprobs
from quire.scheduler import TokenBudgetScheduler

# The shipped models that the engine runs; quire-mini-moe joins them with its architecture.
SHIPPED = ("quire-mini", "quire-mini-draft", "quire-mini-moe")
VOCAB_SIZE = 96
TEXT_VOCAB_SIZE = 400
MAX_POSITION = 256
WINDOW = 24
CPU = torch.device("cpu")
TOLERANCE = 1e-4  # of a float32 logit, in nats
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 96,  # heads of 16, the smallest that the Triton kernels take
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": MAX_POSITION,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}


def _rope(kind: str = "default", theta: float = 10_000.0, **scaling: float) -> dict[str, Any]:
    return {"rope_type": kind, "rope_theta": theta, **scaling}


@dataclass(frozen=True)
class Spec:
    """One checkpoint: its `config.json` beside `SIZES`, and how it is stored."""

    model_type: str
    options: dict[str, Any] = field(default_factory=dict)
    max_shard_size: str = "1GB"


SPECS: dict[str, Spec] = {
    "llama3-scaled": Spec(
        "llama",
        {
            # Wavelengths of 6 to 20,000 positions: some kept, some blended, some stretched.
            "rope_parameters": _rope(
                "llama3",
                factor=4.0,
                low_freq_factor=1.0,
                high_freq_factor=4.0,
                original_max_position_embeddings=32,
            ),
        },
    ),
    "llama-linear-biased": Spec(
        "llama",
        {
            "rope_parameters": _rope("linear", factor=3.0),
            "attention_bias": True,
            "mlp_bias": True,
            "tie_word_embeddings": True,
            "num_key_value_heads": 6,
        },
    ),
    "qwen2": Spec("qwen2", {"rope_parameters": _rope(theta=1e6), "num_key_value_heads": 1}),
    "qwen2-two-groups": Spec(
        "qwen2",
        {
            "use_sliding_window": True,
            "sliding_window": WINDOW,
            "max_window_layers": 1,
            "tie_word_embeddings": True,
        },
    ),
    "qwen3-sharded": Spec(
        "qwen3",
        {"head_dim": 32, "rope_parameters": _rope(theta=1e6), "tie_word_embeddings": True},
        max_shard_size="220KB",
    ),
    "mistral": Spec(
        "mistral", {"head_dim": 32, "sliding_window": WINDOW, "rms_norm_eps": 1e-5}, "220KB"
    ),
}


def write(folder: Path, spec: Spec, seed: int = 0) -> Path:
    """Write a checkpoint of random weights and return its folder."""
    config = AutoConfig.for_model(spec.model_type, **{**SIZES, **spec.options})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "norm" in name:
                parameter.copy_(1 + 0.3 * noise)
            elif parameter.dim() == 1:  # a bias
                parameter.copy_(0.3 * noise)
            elif "embed" in name or "lm_head" in name:
                parameter.copy_(0.5 * noise)
            else:
                parameter.copy_(1.5 * noise / parameter.shape[-1] ** 0.5)
    model.save_pretrained(folder, max_shard_size=spec.max_shard_size)
    return folder


SAMPLE_TEXT = """\
def fibonacci(n):
    if n < 2:
        return n
    return fibonacci(n - 1) + fibonacci(n - 2)

class Stack:
    def __init__(self):
        self.items = []

    def push(self, item):
        self.items.append(item)
"""


def write_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer: 256 bytes, some merges, `<|end|>`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=TEXT_VOCAB_SIZE,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([SAMPLE_TEXT] * 2, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>")
    fast.save_pretrained(folder)
    return fast


def write_text_model(folder: Path) -> Path:
    """A checkpoint with a tokenizer, whose eos is the tokenizer's."""
    tokenizer = write_tokenizer(folder)
    options = {"vocab_size": TEXT_VOCAB_SIZE, "eos_token_id": tokenizer.eos_token_id}
    return write(folder, Spec("qwen3", {"head_dim": 32, **options}), seed=1)


def transformers_model(folder: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """The oracle: the same weights in transformers."""
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    if dtype == torch.float64 and getattr(model.config, "num_local_experts", 0):
        model.set_experts_implementation("eager")  # torch's grouped product takes no float64
    return model.eval()


@torch.no_grad()
def oracle_logits(model: PreTrainedModel, token_ids: Sequence[int]) -> Tensor:
    """Logits after each token of one sequence, float32 [len(token_ids), vocab_size]."""
    logits: Tensor = model(torch.tensor([list(token_ids)], device=model.device)).logits
    return logits[0].float()


def load_decoder(folder: Path, method_for: MethodFactory | None = None) -> Decoder:
    """quire's decoder of a checkpoint, alone, in float32 on a CPU."""
    config = ModelConfig.from_folder(folder)
    model = Decoder(config, TorchAttention(), MAX_POSITION, torch.float32, CPU, method_for)
    load_weights(model, folder)
    return model


def decoder_logits(
    model: Decoder,
    token_ids: Sequence[int],
    chunks: Sequence[int] | None = None,
    num_ranks: int = 1,
) -> Tensor:
    """Logits of every position, computed chunk after chunk over a poisoned cache.

    Of `num_ranks` each calls this with its own part of the model.
    """
    config, backend = local_config(model.config, num_ranks), TorchAttention()
    specs, block_size = layer_specs(config, torch.float32), 16
    storage = KVStorage(specs, [0] * len(specs), 40, block_size, CPU)
    for kv in storage.layers:
        kv.key.fill_(torch.nan)
        kv.value.fill_(torch.nan)
    blocks = [5, 6, 7, 30, 2, 1, 9, 10, 11]  # some neighbours, some not
    logits, start = [], 0
    for size in chunks or [len(token_ids)]:
        batch = AttentionBatch.of([0, size], [start + size], [blocks], block_size, CPU)
        attention = [backend.build(batch, window) for window in config.sliding_windows]
        step = StepMetadata(batch.positions, attention, [batch.slots] * len(specs))
        hidden = model(torch.tensor(token_ids[start : start + size]), storage, step)
        logits.append(model.compute_logits(hidden))
        start += size
    assert start == len(token_ids)
    return torch.cat(logits)


def oracle_greedy(model: PreTrainedModel, prompt: Sequence[int], num_tokens: int) -> list[int]:
    """What transformers' own `generate` continues a prompt with, past any end of sequence."""
    output = model.generate(
        torch.tensor([list(prompt)], device=model.device),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long, device=model.device),
        do_sample=False,
        min_new_tokens=num_tokens,
        max_new_tokens=num_tokens,
        pad_token_id=0,
    )
    return list(output[0, len(prompt) :].tolist())


def assert_greedy(model: PreTrainedModel, output: RequestOutput) -> None:
    """Every token is transformers' argmax after the tokens before it.

    By induction that is what transformers' greedy decoding gives, at the cost of one pass.
    Where two tokens are closer than rounding can tell, either is right.
    """
    prompt = output.prompt_token_ids
    for completion in output.outputs:
        tokens = torch.tensor(completion.token_ids, dtype=torch.int64)
        logits = oracle_logits(model, prompt + completion.token_ids)[len(prompt) - 1 : -1].cpu()
        behind = logits.amax(dim=-1) - logits.gather(-1, tokens[:, None])[:, 0]
        wrong = (behind > TOLERANCE).nonzero()[:, 0].tolist()
        assert not wrong, f"token {wrong[0]} of {len(tokens)} is {behind[wrong[0]]} nats behind"


def assert_logprobs(model: PreTrainedModel, output: RequestOutput) -> None:
    """The log-probabilities of the outputs, and of the prompt if asked for, are right."""
    prompt = output.prompt_token_ids
    for completion in output.outputs:
        tokens = prompt + completion.token_ids
        expected = oracle_logits(model, tokens)[:-1].cpu().log_softmax(dim=-1)
        assert completion.logprobs is not None
        rows: list[dict[int, Logprob] | None] = [*completion.logprobs]
        if output.prompt_logprobs is not None:
            first, *others = output.prompt_logprobs
            assert first is None
            assert None not in others
            rows = others + rows
        first_row = len(expected) - len(rows)
        assert first_row == (len(prompt) - 1 if output.prompt_logprobs is None else 0)
        for position, row in enumerate(rows, first_row):
            assert row is not None
            assert tokens[position + 1] in row
            for token_id, value in row.items():
                assert abs(value.logprob - expected[position, token_id].item()) < TOLERANCE
        chosen = [
            row[token].logprob
            for row, token in zip(completion.logprobs, completion.token_ids, strict=True)
        ]
        assert completion.cumulative_logprob is not None
        assert abs(completion.cumulative_logprob - sum(chosen)) < TOLERANCE


def random_prompts(
    lengths: Sequence[int], seed: int = 0, vocab: int = VOCAB_SIZE
) -> list[list[int]]:
    """One prompt of random token ids a length."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(vocab, (n,), generator=generator).tolist() for n in lengths]


def assert_empty(llm: LLM) -> None:
    """Every request is gone and everything it held is free again."""
    engine = llm.engine
    scheduler = engine._scheduler
    assert isinstance(scheduler, TokenBudgetScheduler)
    assert not engine.has_requests
    assert not engine._owners
    assert not engine._in_flight
    assert not scheduler.has_requests
    assert sorted(scheduler._free_rows) == list(range(llm.config.scheduling.max_num_seqs))
    manager = scheduler._kv
    manager.check()
    assert manager.num_free_blocks == manager.num_blocks


class Scripted:
    """A sampler that gives tokens by position: output i of a prompt of `start` tokens."""

    def __init__(self, start: int, token_ids: Sequence[int]) -> None:
        self.start = start
        self.token_ids = list(token_ids)

    def __call__(
        self, logits: Tensor, sampling: SamplingTensors, drafts: Tensor | None = None
    ) -> SamplerOutput:
        tokens = torch.tensor([self.token_ids[p - self.start] for p in sampling.positions.tolist()])
        logprobs = None
        if sampling.num_logprobs is not None:
            logprobs = gather_logprobs(logits, tokens, sampling.num_logprobs)
        return SamplerOutput(tokens[:, None], torch.ones_like(tokens), logprobs)
