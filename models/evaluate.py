"""Measures the shipped models and writes `models/evaluation.json`.

    python models/evaluate.py                      # everything; --device cuda where there is one
    python models/evaluate.py --only quire-mini-moe   # its figures; those of the others stay
    python models/evaluate.py --bits-only FOLDER   # bits per byte of any checkpoint, printed

Needs what is committed and no more: the weights, the tokenizer and the held-out files
(`heldout.jsonl.gz`). Weights are stored in bfloat16 and read as float32, by transformers.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from cleaning import PERSONAL
from evaluation_data import MODELS, function_heads, heldout_documents, parses, prompts
from scoring import STRIDE, WINDOW, bits_per_byte, nats
from tokenizer import NAMES
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

TARGET, DRAFT = "quire-mini", "quire-mini-draft"
EVALUATION = MODELS / "evaluation.json"
NUM_PROMPTS, PROMPT_TOKENS, GREEDY_TOKENS = 50, 128, 128
NUM_SAMPLES, SAMPLE_TOKENS, SEED = 200, 100, 1
NUM_HEADS, HEAD_TOKENS = 100, 160
BATCH = 50


def load_model(folder: Path, device: str) -> Any:
    """Returns the checkpoint as a transformers model in float32."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model.eval().to(device)


def logits_of(model: Any) -> Callable[[Tensor], Tensor]:
    def logits(ids: Tensor) -> Tensor:
        output: Tensor = model(input_ids=ids.to(model.device), use_cache=False).logits
        return output

    return logits


def text_nats(model: Any) -> dict[str, float]:
    """Returns the negative log-likelihood in nats of every held-out file."""
    documents = heldout_documents()
    totals = nats(logits_of(model), [document.ids for document in documents])
    return {document.path: total for document, total in zip(documents, totals, strict=True)}


def over(totals: dict[str, float], sizes: dict[str, int]) -> float:
    """Bits per byte over the texts that `totals` (nats) names, pooled: long texts weigh more."""
    return bits_per_byte(sum(totals.values()), sum(sizes[path] for path in totals))


def continuations(model: Any, ids: list[list[int]], new_tokens: int, **how: Any) -> list[list[int]]:
    """Returns the ids that `model` writes after each prompt, `<|endoftext|>` and after cut off.

    Prompts of different lengths are padded on the left and the padding is masked.
    """
    out: list[list[int]] = []
    for at in range(0, len(ids), BATCH):
        group = ids[at : at + BATCH]
        width = max(map(len, group))
        tokens = torch.tensor([[0] * (width - len(row)) + row for row in group])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in group])
        written = model.generate(
            input_ids=tokens.to(model.device),
            attention_mask=mask.to(model.device),
            max_new_tokens=new_tokens,
            **how,
        )
        for row in written[:, width:].tolist():
            out.append(row[: row.index(0)] if 0 in row else row)
    return out


@torch.inference_mode()
def agreement(target: Any, draft: Any) -> dict[str, object]:
    """How often the draft's most probable token is the target's, on the target's greedy text.

    Teacher-forced: the draft reads the prompt and the target's own tokens before each position.
    """
    given = prompts(NUM_PROMPTS, PROMPT_TOKENS)
    rates, agreed, positions = [], 0, 0
    for prompt, text in zip(
        given, continuations(target, given, GREEDY_TOKENS, do_sample=False), strict=True
    ):
        if not text:
            continue
        logits = logits_of(draft)(torch.tensor([prompt + text]))[0, len(prompt) - 1 : -1]
        same = int((logits.argmax(-1).cpu() == torch.tensor(text)).sum())
        agreed, positions = agreed + same, positions + len(text)
        rates.append(same / len(text))
    return {
        "prompts": len(rates),
        "prompt_tokens": PROMPT_TOKENS,
        "positions": positions,
        "agreed": agreed,
        "rate": agreed / positions,
        "lowest_prompt": min(rates),
        "highest_prompt": max(rates),
    }


def scan(target: Any, tokenizer: Any) -> dict[str, object]:
    """Samples completions and counts those in which a pattern of `PERSONAL` matches.

    Half start from `<|endoftext|>` alone, the top of a file, where a licence header would stand;
    half from held-out prompts. Temperature 1, no truncation of the distribution.
    """
    torch.manual_seed(SEED)
    half = NUM_SAMPLES // 2
    given = [[0]] * half + prompts(NUM_SAMPLES - half, 64)
    written = continuations(
        target, given, SAMPLE_TOKENS, do_sample=True, temperature=1.0, top_k=0, top_p=1.0
    )
    texts = [tokenizer.decode(ids) for ids in written]
    found = {
        name: [text for text in texts if pattern.search(text)] for name, pattern in PERSONAL.items()
    }
    for name, hits in found.items():
        for text in hits:
            print(f"--- {name}\n{text}\n---")
    return {
        "completions": len(texts),
        "tokens_each": SAMPLE_TOKENS,
        "seed": SEED,
        "matches": {name: len(hits) for name, hits in found.items()},
    }


def completed_functions(target: Any, tokenizer: Any) -> dict[str, object]:
    """Completes held-out function heads greedily; how many are functions that parse."""
    heads = function_heads(NUM_HEADS)
    ids = [tokenizer.encode(head, add_special_tokens=False) for head in heads]
    written = continuations(target, ids, HEAD_TOKENS, do_sample=False)
    good = [parses(head, tokenizer.decode(row)) for head, row in zip(heads, written, strict=True)]
    return {"heads": len(heads), "tokens_each": HEAD_TOKENS, "parse": sum(good)}


def in_tests(path: str) -> bool:
    """Whether a held-out file belongs to a test suite."""
    return "test" in path.rsplit("/", 1)[-1] or "/tests/" in path


def add_bits(result: dict[str, Any], name: str, model: Any) -> None:
    """Puts the bits per byte of one model into `result`: of each file, pooled, without tests."""
    sizes = {document.path: document.num_bytes for document in heldout_documents()}
    totals = text_nats(model)
    code = {path: total for path, total in totals.items() if not in_tests(path)}
    result.setdefault("bits_per_byte", {})[name] = over(totals, sizes)
    # Test suites repeat themselves, so the pooled figure is kinder than code alone.
    result.setdefault("bits_per_byte_without_tests", {})[name] = over(code, sizes)
    texts = result.setdefault("texts", {})
    for path, size in sizes.items():
        row = texts.setdefault(path, {"bytes": size})
        row[name] = round(bits_per_byte(totals[path], size), 5)


def heldout() -> dict[str, int]:
    """How much text the bits per byte are measured on, and how it is read."""
    documents = heldout_documents()
    return {
        "window": WINDOW,
        "stride": STRIDE,
        "files": len(documents),
        "bytes": sum(document.num_bytes for document in documents),
        "tokens": sum(len(document.ids) - 1 for document in documents),
        "bytes_in_tests": sum(d.num_bytes for d in documents if in_tests(d.path)),
    }


def evaluate(names: Sequence[str], device: str, before: dict[str, Any]) -> dict[str, Any]:
    """Returns `before` with the figures of the models `names` measured again.

    Text that a model writes is judged for all but the draft, which writes none on its own.
    """
    tokenizer = AutoTokenizer.from_pretrained(MODELS / TARGET)
    result: dict[str, Any] = {**before, "heldout": heldout()}
    models = {name: load_model(MODELS / name, device) for name in names}
    if TARGET in models and DRAFT in models:
        result["agreement"] = agreement(models[TARGET], models[DRAFT])
    for name, model in models.items():
        if name != DRAFT:
            result.setdefault("scan", {})[name] = scan(model, tokenizer)
            heads = completed_functions(model, tokenizer)
            result.setdefault("function_heads", {})[name] = heads
        print(json.dumps({key: value for key, value in result.items() if key != "texts"}, indent=1))
        add_bits(result, name, model)
        weights = (MODELS / name / "model.safetensors").read_bytes()
        result.setdefault("weights_sha256", {})[name] = hashlib.sha256(weights).hexdigest()
        result.setdefault("measured_on", {})[name] = {
            "device": torch.cuda.get_device_name() if device == "cuda" else device,
            "dtype": "float32",
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        }
        print(name, result["bits_per_byte"][name], result["bits_per_byte_without_tests"][name])
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--bits-only", type=Path, metavar="FOLDER")
    parser.add_argument("--only", choices=NAMES, help="measure one model, keep the others' figures")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    logging: Any = transformers.logging
    logging.set_verbosity_error()
    if options.bits_only is not None:
        total = sum(text_nats(load_model(options.bits_only, options.device)).values())
        size = sum(document.num_bytes for document in heldout_documents())
        print(f"{bits_per_byte(total, size):.4f} bits per byte")
        return
    if options.only is None:
        result = evaluate(NAMES, options.device, {})
    else:
        result = evaluate([options.only], options.device, json.loads(EVALUATION.read_text()))
    EVALUATION.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
