"""The way through a checkpoint: calibrate a layer, quantize it, keep it, run it, go on.

The text enters a layer as the quantized layers before leave it, as in GPTQ, so that a layer
answers the errors of those before as well. See the chapter "Quantization".
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from quire.errors import QuireError
from quire.interrupts import uninterrupted
from quire.layers.embedding import HEAD
from quire.models.decoder import DecoderLayer
from quire.quantize.assemble import assemble
from quire.quantize.judge import Judgement, judge
from quire.quantize.layer import quantize_layer, record
from quire.quantize.partial import Partial
from quire.quantize.recipe import Recipe, check_shapes, layers_to_quantize
from quire.quantize.report import Report
from quire.quantize.source import Source
from quire.quantize.texts import TextSequence, read_documents, require_disjoint, sequences
from quire.tokenizer import Tokenizer, load_tokenizer


@torch.no_grad()
def quantize(
    model: Path,
    out: Path,
    recipe: Recipe,
    calibration: Sequence[Path] = (),
    evaluate: Sequence[Path] = (),
    device: torch.device | None = None,
    show_progress: bool | None = None,
) -> Report:
    """Quantize a checkpoint into a new folder; go on where an earlier call was stopped.

    Args:
        model: the checkpoint's folder.
        out: the result's folder, not there yet, or with a part of the same quantization.
        recipe: how.
        calibration: files of text; needed by every method but rounding to nearest.
        evaluate: files of other text, on which the result is compared with the original.
        device: that computes; None: the CPU.
        show_progress: on stderr; None: if that is a terminal.

    Raises:
        CheckpointError: the checkpoint cannot be read.
        QuireError: an argument that makes no sense; the message names it.
    """
    source = Source(model, device or torch.device("cpu"), recipe.length)
    if recipe.needs_calibration and not calibration:
        method = recipe.method if recipe.smooth is None else "smooth"
        raise QuireError(f"{method} needs text to calibrate on: give --calibration FILE")
    fused = source.linear_names()
    quantized = layers_to_quantize(fused, recipe.ignore)
    check_shapes(_columns(source, fused, quantized), recipe.scheme)
    calibrating, judging = _read(source, recipe, calibration, evaluate)
    partial = Partial(out, _manifest(source, recipe, calibrating))
    errors = _quantize_layers(source, partial, recipe, quantized, calibrating, show_progress)
    judgement = None
    if judging:
        judgement = _judge(source, partial, recipe, judging, show_progress)
    ignored = [name for names in fused for name in names if name not in quantized]
    sizes = assemble(source, partial, recipe, [HEAD.removesuffix(".weight"), *ignored])
    report = Report(
        model=model.name,
        arguments=recipe.arguments(),
        bytes_before=sum(source.tensor(name).nbytes for name in source.files),
        bytes_after=sizes.all_bytes,
        bits_a_weight=8 * sizes.quantized_bytes / sizes.quantized_weights,
        calibration_tokens=sum(len(s.token_ids) for s in calibrating),
        fewest_tokens_wanted=max(_columns(source, fused, quantized).values()),
        errors=errors,
        judgement=judgement,
    )
    report.save(partial.result)
    with uninterrupted():
        partial.move_into_place()
    return report


# docs: layers begin
def _quantize_layers(
    source: Source,
    partial: Partial,
    recipe: Recipe,
    quantized: set[str],
    calibrating: Sequence[TextSequence],
    show_progress: bool | None,
) -> dict[str, float]:
    """Finish every layer that is not; return the relative errors of outputs by name."""
    hidden = [source.embed(sequence.token_ids) for sequence in calibrating]
    errors: dict[str, float] = {}
    indices = range(source.config.num_layers)
    for index in _bar(indices, f"{recipe.method} {recipe.scheme}", show_progress):
        errors |= _through_layer(source, partial, recipe, quantized, index, hidden)
    return errors


def _through_layer(
    source: Source,
    partial: Partial,
    recipe: Recipe,
    quantized: set[str],
    index: int,
    hidden: list[Tensor],
) -> dict[str, float]:
    """Finish a layer and run the text through it as quantized, in place of what entered it."""
    if partial.has(index):
        finished = partial.load(index, recipe.scheme)
        layer = finished.rebuild(source, index, recipe.scheme)
        hidden[:] = [source.run(layer, index, states) for states in hidden]
        return finished.errors
    layer = source.layer(index)
    outputs = record(source, layer, index, hidden)
    finished = quantize_layer(source, layer, recipe, quantized)
    del layer  # with what it noted, before the quantized one is made
    layer = finished.rebuild(source, index, recipe.scheme)
    lost = whole = 0.0  # of what the layer adds to the residual stream
    for i, states in enumerate(hidden):
        hidden[i] = source.run(layer, index, states)
        lost += float((hidden[i] - outputs[i]).double().square().sum())
        whole += float((outputs[i] - states).double().square().sum())
    if hidden:
        finished.errors[f"model.layers.{index}"] = (lost / whole) ** 0.5 if whole else 0.0
    partial.save(index, finished)
    return finished.errors


# docs: layers end


def _judge(
    source: Source,
    partial: Partial,
    recipe: Recipe,
    judging: Sequence[TextSequence],
    show_progress: bool | None,
) -> Judgement:
    def layer(index: int) -> DecoderLayer:
        return partial.load(index, recipe.scheme).rebuild(source, index, recipe.scheme)

    with tqdm(total=source.config.num_layers, **_options("judging", show_progress)) as bar:
        return judge(source, layer, judging, lambda index: bar.update(1))


def _columns(
    source: Source, fused: Sequence[tuple[str, ...]], quantized: set[str]
) -> dict[str, int]:
    """Return the input features of each linear layer that is quantized."""
    names = [name for group in fused for name in group if name in quantized]
    return {name: source.tensor(f"{name}.weight").shape[1] for name in names}


def _read(
    source: Source, recipe: Recipe, calibration: Sequence[Path], evaluate: Sequence[Path]
) -> tuple[list[TextSequence], list[TextSequence]]:
    """Return the sequences to calibrate and to judge on."""
    if not calibration and not evaluate:
        return [], []
    loaded = load_tokenizer(source.folder)
    if loaded is None:
        raise QuireError(f"{source.folder} has no tokenizer, and text is no use without: add it")
    tokenizer, length = Tokenizer(loaded), source.longest
    found: list[list[TextSequence]] = []
    for paths, num_tokens in ((calibration, recipe.num_tokens), (evaluate, None)):
        documents = read_documents(paths)
        found.append(sequences(documents, tokenizer, length, num_tokens) if paths else [])
    require_disjoint(*found)
    return found[0], found[1]


def _manifest(
    source: Source, recipe: Recipe, calibrating: Sequence[TextSequence]
) -> dict[str, Any]:
    """Return all that the codes depend on. Two models of one shape differ in their bytes."""
    weights = hashlib.sha256()
    for path in sorted({file.path for file in source.files.values()}):
        with path.open("rb") as file:
            weights.update(hashlib.file_digest(file, "sha256").digest())
    tokens = repr([sequence.token_ids for sequence in calibrating]).encode()
    return {
        **recipe.arguments(),
        "source": weights.hexdigest(),
        "config": hashlib.sha256((source.folder / "config.json").read_bytes()).hexdigest(),
        "calibration": hashlib.sha256(tokens).hexdigest() if calibrating else None,
    }


def _bar(indices: range, name: str, show: bool | None) -> tqdm[int]:
    return tqdm(indices, **_options(name, show))


def _options(name: str, show: bool | None) -> dict[str, Any]:
    """Return tqdm's options; its None asks whether stderr is a terminal."""
    return {"desc": name, "unit": "layer", "disable": None if show is None else not show}
