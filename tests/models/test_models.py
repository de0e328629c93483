"""The committed checkpoints, tokenizer, figures and manifest hold what the model card says."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any

import cleaning
import evaluate
import evaluation_data
import pytest
import scoring
import torch
from decoder import SHAPES, Decoder
from evaluation_data import MODELS
from moe_decoder import QUIRE_MINI_MOE, MoEDecoder
from safetensors import safe_open
from safetensors.torch import load_file
from tokenizer import NAMES
from transformers import AutoTokenizer


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    return {name: evaluate.load_model(MODELS / name, "cpu") for name in NAMES}


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(MODELS / "quire-mini")


@pytest.fixture(scope="module")
def evaluation() -> dict[str, Any]:
    result: dict[str, Any] = json.loads((MODELS / "evaluation.json").read_text())
    return result


@pytest.fixture(scope="module")
def manifest() -> dict[str, Any]:
    result: dict[str, Any] = json.loads((MODELS / "corpus.json").read_text())
    return result


# Checkpoints.


def test_sizes(models: dict[str, Any]) -> None:
    counts = {name: sum(p.numel() for p in model.parameters()) for name, model in models.items()}
    assert 7_000_000 <= counts["quire-mini"] <= 10_000_000
    assert 900_000 <= counts["quire-mini-draft"] <= 1_100_000
    assert counts["quire-mini-moe"] == 2_303_616
    assert sum(path.stat().st_size for path in MODELS.glob("*/*.safetensors")) <= 25_000_000


@pytest.mark.parametrize("name", NAMES)
def test_embeddings_are_tied_and_weights_are_bfloat16(name: str, models: dict[str, Any]) -> None:
    model = models[name]
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    with safe_open(MODELS / name / "model.safetensors", "pt") as file:
        names = set(file.keys())
        kinds = {file.get_slice(key).get_dtype() for key in names}
    assert "lm_head.weight" not in names
    assert kinds == {"BF16"}


@pytest.mark.parametrize("name", NAMES)
def test_training_decoder_computes_what_transformers_does(
    name: str, models: dict[str, Any]
) -> None:
    ours = Decoder(SHAPES[name]) if name in SHAPES else MoEDecoder(QUIRE_MINI_MOE)
    ours.load_checkpoint(load_file(MODELS / name / "model.safetensors"))
    ours.eval()
    ids = torch.tensor([evaluation_data.heldout_documents()[0].ids[:200]])
    with torch.inference_mode():
        torch.testing.assert_close(ours(ids), models[name](ids).logits, atol=1e-4, rtol=1e-4)


def test_generation_stops_at_the_separator(models: dict[str, Any]) -> None:
    for model in models.values():
        assert model.generation_config.eos_token_id == 0
        assert model.generation_config.pad_token_id == 0
        assert model.generation_config.do_sample is False


# Tokenizer.

AWKWARD = [
    "",
    " ",
    "\n\n\n",
    "\t\tif x:\r\n\t\t\tpass\r\n",
    "def f(x):\n    return x  \n",
    "naïve café — “quotes” … ½ µ",
    "日本語のテキストと한국어와中文",
    "👩‍👩‍👧‍👦 🏳️‍🌈 🫠",
    "e\u0301 stays two code points; \u00e9 stays one",
    "\x00\x01\x07\x1b[0m\x7f",
    "\ufffd\ufeff\u2028\u200b",
    "x = 0xDEAD_BEEF + 1234567890 ** -3.5e-10",
    "      leading and trailing      ",
]


@pytest.mark.parametrize("text", AWKWARD)
def test_text_survives_the_tokenizer(text: str, tokenizer: Any) -> None:
    ids = tokenizer.encode(text)
    assert all(0 <= token < 4096 for token in ids)
    assert tokenizer.decode(ids) == text


def test_every_byte_has_a_token_and_partial_characters_decode(tokenizer: Any) -> None:
    ids = tokenizer.encode("🫠")
    assert len(ids) == 4, "an emoji that is rare in the corpus is four bytes, four tokens"
    assert "\ufffd" in tokenizer.decode(ids[:2])
    assert tokenizer.decode(ids) == "🫠"
    # UTF-8 never holds the bytes C0, C1 and F5 … FF; the others all occur below.
    codes = [*range(0x100), *range(0x800, 0xD800, 0x40), *range(0xE000, 0x110000, 0x1000)]
    text = "".join(map(chr, codes))
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_special_tokens(tokenizer: Any) -> None:
    assert len(tokenizer) == 4096
    assert tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_start|>", "<|im_end|>"]) == [
        0,
        1,
        2,
    ]
    assert tokenizer.eos_token_id == tokenizer.bos_token_id == tokenizer.pad_token_id == 0
    assert tokenizer.encode("x<|im_end|>")[-1] == 2
    assert tokenizer.decode([0, *tokenizer.encode("x")], skip_special_tokens=True) == "x"
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Sort a list."}], tokenize=False, add_generation_prompt=True
    )
    assert text == "<|im_start|>user\nSort a list.<|im_end|>\n<|im_start|>assistant\n"


def test_all_models_share_the_tokenizer() -> None:
    for file in ("tokenizer.json", "tokenizer_config.json"):
        assert len({(MODELS / name / file).read_bytes() for name in NAMES}) == 1


# Figures.


def test_figures_belong_to_the_committed_weights(evaluation: dict[str, Any]) -> None:
    for name in NAMES:
        weights = (MODELS / name / "model.safetensors").read_bytes()
        assert hashlib.sha256(weights).hexdigest() == evaluation["weights_sha256"][name]


def test_bits_per_byte_recompute(models: dict[str, Any], evaluation: dict[str, Any]) -> None:
    documents = sorted(evaluation_data.heldout_documents(), key=lambda d: d.num_bytes)[:6]
    for name, model in models.items():
        totals = scoring.nats(evaluate.logits_of(model), [d.ids for d in documents])
        for document, total in zip(documents, totals, strict=True):
            recorded = evaluation["texts"][document.path]
            assert recorded["bytes"] == document.num_bytes
            assert scoring.bits_per_byte(total, document.num_bytes) == pytest.approx(
                recorded[name], abs=2e-3
            )


def test_totals_follow_from_the_texts(evaluation: dict[str, Any]) -> None:
    texts = evaluation["texts"].values()
    size = sum(row["bytes"] for row in texts)
    assert set(evaluation["texts"]) == {d.path for d in evaluation_data.heldout_documents()}
    for name in NAMES:
        bits = sum(row["bytes"] * row[name] for row in texts)
        assert bits / size == pytest.approx(evaluation["bits_per_byte"][name], abs=1e-4)


def test_figures_meet_what_the_book_needs(evaluation: dict[str, Any]) -> None:
    assert evaluation["agreement"]["rate"] >= 0.65
    assert set(evaluation["scan"]) == set(NAMES) - {evaluate.DRAFT}
    for scan in evaluation["scan"].values():
        assert sum(scan["matches"].values()) == 0
        assert scan["completions"] == 200
    assert evaluation["function_heads"]["quire-mini"]["parse"] >= 50
    runs = json.loads((MODELS / "training.json").read_text())["runs"]
    same = {run["recipe"]: run for run in runs if run["id"] in ("baseline", "shipped-same-budget")}
    assert same["baseline"]["tokens"] == same["shipped"]["tokens"]
    assert same["baseline"]["parameters"] == same["shipped"]["parameters"]
    ratio = same["shipped"]["heldout_bits_per_byte"] / same["baseline"]["heldout_bits_per_byte"]
    assert ratio <= 0.98


def test_card_states_the_recorded_figures(evaluation: dict[str, Any]) -> None:
    card = (MODELS / "README.md").read_text()
    agreement, texts = evaluation["agreement"], evaluation["heldout"]
    bits, without = evaluation["bits_per_byte"], evaluation["bits_per_byte_without_tests"]
    scans, heads = evaluation["scan"], evaluation["function_heads"]
    everything = f"{texts['files']} held-out files, {texts['bytes'] / 1e6:.2f} MB"
    rest = f"{(texts['bytes'] - texts['bytes_in_tests']) / 1e6:.2f} MB"
    rows = {
        f"Bits per byte, {everything}": " | ".join(f"{bits[name]:.3f}" for name in NAMES),
        f"Bits per byte without test suites, {rest}": " | ".join(
            f"{without[name]:.3f}" for name in NAMES
        ),
        "Completions with a match": " | ".join(
            f"{sum(scans[name]['matches'].values())} of 200" if name in scans else "–"
            for name in NAMES
        ),
        "Function heads": " | ".join(
            f"{heads[name]['parse']} of 100" if name in heads else "–" for name in NAMES
        ),
    }
    assert f": {agreement['rate']:.3f} of {agreement['positions']:,} positions." in card
    for label, figures in rows.items():
        line = next(line for line in card.split("\n") if line.startswith(f"| {label}"))
        assert figures in line
    for run in json.loads((MODELS / "training.json").read_text())["runs"]:
        line = next(line for line in card.split("\n") if line.startswith(f"| `{run['id']}`"))
        assert f"| {run['heldout_bits_per_byte']:.3f} |" in line
        assert f"| {run['tokens'] / 1e6:.0f} M |" in line
        assert f"| {run['settings']['batch_tokens']:,} |" in line
        assert f"| {run['validation_bits_per_byte']:.3f} |" in line


def test_card_states_sizes_and_words_from_the_records(
    models: dict[str, Any], evaluation: dict[str, Any], manifest: dict[str, Any]
) -> None:
    card = " ".join((MODELS / "README.md").read_text().split())
    training = json.loads((MODELS / "training.json").read_text())
    runs = {run["id"]: run for run in training["runs"]}
    mini, draft = runs["quire-mini"], runs["quire-mini-draft"]
    baseline, same = runs["baseline"], runs["shipped-same-budget"]
    gain = 1 - same["heldout_bits_per_byte"] / baseline["heldout_bits_per_byte"]
    train, tokens = manifest["splits"]["train"], manifest["tokens"]["train"]
    weights = sum(path.stat().st_size for path in MODELS.glob("*/*.safetensors"))
    agreement, texts = evaluation["agreement"], evaluation["heldout"]
    scan, heads = (evaluation[key]["quire-mini"] for key in ("scan", "function_heads"))
    configs = [models[name].config for name in NAMES]
    moe = configs[2]
    cache = [4 * c.num_hidden_layers * c.num_key_value_heads * c.head_dim for c in configs]
    for words in (
        f"{weights / 1e6:.1f} MB for all three",
        "| Parameters | {:,} | {:,} | {:,} |".format(*(runs[name]["parameters"] for name in NAMES)),
        "| Layers | {} | {} | {} |".format(*(c.num_hidden_layers for c in configs)),
        "| Hidden size | {} | {} | {} |".format(*(c.hidden_size for c in configs)),
        "| Feed-forward size | {:,} | {:,} |".format(*(c.intermediate_size for c in configs)),
        f"| {moe.num_experts} experts of {moe.moe_intermediate_size}, {moe.num_experts_per_tok} a ",
        "| Head size | {} | {} | {} |".format(*(c.head_dim for c in configs)),
        "a token (bfloat16) | {:,} | {:,} | {:,} |".format(*cache),
        f"a token is {texts['bytes'] / texts['tokens']:.2f} bytes",
        f"lowest prompt has {agreement['lowest_prompt']:.3f}",
        f"highest {agreement['highest_prompt']:.3f}",
        f"after each of {agreement['prompts']} held-out prompts of {agreement['prompt_tokens']} ",
        f"{scan['tokens_each']} tokens each at temperature 1",
        f"{heads['tokens_each']} greedy tokens",
        f"{train['bytes'] / 1e6:.0f} MB of Python source in {train['files']:,} files",
        f"{len(manifest['packages']) - 1} permissively licensed",
        f"{tokens / 1e6:.1f} M tokens",
        f"held-out shingles {100 * manifest['heldout_shingles_in_train']:.1f} % also stand",
        f"needs {100 * gain:.1f} % fewer bits",
        f"for {mini['tokens'] / same['tokens']:.1f} times the tokens",
        f"{mini['tokens'] / tokens:.0f} passes over the corpus",
        f"took {mini['seconds']:.0f} s and the draft {draft['seconds']:.0f} s",
        f"torch {mini['torch'].split('+')[0]}",
        *(
            f"{'Python' if row['name'] == 'python' else 'pip'} {row['version']}"
            for row in manifest["packages"]
            if row["name"] in ("python", "pip")
        ),
    ):
        assert words in card, words


# Corpus.


def test_manifest_matches_the_heldout_files(manifest: dict[str, Any]) -> None:
    documents = evaluation_data.heldout_documents()
    hashes = {d.path: hashlib.sha256(d.text.encode()).hexdigest() for d in documents}
    assert hashes == manifest["heldout_files"]
    assert manifest["splits"]["heldout"]["files"] == len(documents)
    assert manifest["splits"]["heldout"]["bytes"] == sum(d.num_bytes for d in documents)
    assert 0 <= manifest["heldout_shingles_in_train"] <= 0.05
    assert manifest["tokens"]["heldout"] == sum(len(d.ids) for d in documents)


def test_manifest_adds_up(manifest: dict[str, Any]) -> None:
    assert (MODELS / "corpus.json").stat().st_size <= 200_000
    for split, total in manifest["splits"].items():
        for key in ("files", "bytes"):
            assert total[key] == sum(package[split][key] for package in manifest["packages"])
    for package in manifest["packages"]:
        kept = sum(package[split]["files"] for split in manifest["splits"])
        assert package["files_found"] == kept + sum(package["files_dropped"].values())


def test_licences_are_permissive(manifest: dict[str, Any]) -> None:
    allowed = re.compile(r"MIT|Apache-2\.0|BSD|PSF-2\.0|ISC")
    refused = re.compile(r"GPL|MPL|EPL|CDDL|proprietary", re.IGNORECASE)
    for package in manifest["packages"]:
        assert package["version"]
        assert allowed.search(package["licence"])
        assert not refused.search(package["licence"])


def test_heldout_files_hold_no_notice_and_no_comment() -> None:
    for document in evaluation_data.heldout_documents():
        for pattern in cleaning.PERSONAL.values():
            assert not pattern.search(document.text)
        assert cleaning.strip_comments(document.text) == document.text
