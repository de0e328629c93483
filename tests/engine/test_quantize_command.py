"""`quire quantize`: others load what it writes, a stopped run goes on, bad input is named."""

from __future__ import annotations

import gzip
import json
import math
import random
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from checkpoints import SAMPLE_TEXT, oracle_logits, transformers_model
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, CompressedTensorsConfig, PreTrainedModel

from quire.cli import main
from quire.models.config import ModelConfig
from quire.models.weight_files import open_weights
from quire.quantization.checkpoint import QuantConfig
from quire.quantization.rounding import round_to_nearest
from quire.quantization.scheme import Scheme
from quire.quantization.write import pack
from quire.quantize import assemble, driver
from quire.quantize.judge import change_interval
from quire.quantize.texts import TextSequence, read_documents, sequences
from quire.tokenizer import Tokenizer, load_tokenizer

WORDS = SAMPLE_TEXT.split()
LENGTH = 100
SCHEMES = (
    "int4-g16",
    "int4-g16-asym",
    "int4-channel",
    "int4-channel-asym",
    "int8-g16",
    "int8-channel",
    "int8",
    "fp8",
    "fp8_block",
)
LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def some_text(seed: int, num_words: int = 300) -> str:
    generator = random.Random(seed)
    return " ".join(generator.choice(WORDS) for _ in range(num_words))


@pytest.fixture(scope="session")
def calibration(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("texts") / "calibration.jsonl"
    lines = [json.dumps({"text": some_text(seed)}) for seed in range(3)]
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return path


@pytest.fixture(scope="session")
def heldout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("texts") / "heldout.txt"
    path.write_text(some_text(99), "utf-8")
    return path


def run(model: Path | str, out: Path, *options: str | Path) -> int:
    """Run the command with short sequences on a CPU."""
    arguments = ["quantize", model, "--out", out, "--device", "cpu", "--length", LENGTH]
    return main([str(argument) for argument in (*arguments, *options)])


def weights(folder: Path) -> dict[str, Tensor]:
    return {
        name: tensor
        for path in sorted(folder.glob("*.safetensors"))
        for name, tensor in load_file(path).items()
    }


def linear_names(num_layers: int) -> list[str]:
    return [
        f"model.layers.{i}.{'mlp' if name in LINEARS[4:] else 'self_attn'}.{name}"
        for i in range(num_layers)
        for name in LINEARS
    ]


# --- what is written ---------------------------------------------------------


@pytest.mark.parametrize("name", SCHEMES)
def test_quires_readers_find_the_codes(name: str, text_folder: Path, tmp_path: Path) -> None:
    """Each weight's codes are those of rounding to nearest, and all else is as it was."""
    out = tmp_path / "out"
    assert run(text_folder, out, "--scheme", name) == 0
    scheme = Scheme.named(name)
    original, written = weights(text_folder), weights(out)
    config = ModelConfig.from_folder(out)
    assert config.quantization is not None
    formats = QuantConfig.of(config.quantization, config)
    names = linear_names(config.num_layers)
    for layer in names:
        stored = formats.format_for(layer)
        assert stored is not None
        assert stored.scheme == scheme
        weight = original.pop(f"{layer}.weight")
        found = {
            last: written.pop(f"{layer}.{last}")
            for last in stored.tensors()
            if f"{layer}.{last}" in written
        }
        codes = stored.read(found, *weight.shape)
        codes.check()
        expected = round_to_nearest(weight, scheme, torch.float32)
        assert torch.equal(codes.dequantize(), expected.dequantize())
    assert formats.format_for("lm_head") is None
    assert set(written) == set(original)  # embedding, norms, head
    for other, tensor in original.items():
        assert torch.equal(written[other], tensor)


def bits_per_byte(model: PreTrainedModel, texts: Sequence[TextSequence]) -> float:
    nats, num_bytes = 0.0, 0
    for text in texts:
        scores = oracle_logits(model, text.token_ids)[:-1].log_softmax(-1)
        nats -= float(scores.gather(1, torch.tensor(text.token_ids[1:])[:, None]).sum())
        num_bytes += text.num_bytes
    return nats / math.log(2) / num_bytes


@pytest.mark.filterwarnings("ignore:You passed `quantization_config`")
@pytest.mark.parametrize(
    ("name", "options", "tolerance"),
    [
        ("int4-g16", ["--method", "gptq", "--act-order"], 1e-6),
        ("int4-g16-asym", ["--method", "awq"], 1e-6),
        ("int4-channel", ["--method", "gptq", "--ignore", "down_proj", "model.layers.1"], 1e-6),
        ("int8-g16", ["--method", "awq"], 1e-6),
        # compressed-tensors divides the largest input by 127.5, quire and vLLM by 127, so that
        # other inputs are rounded to the other side on other processors: 1e-4 to 5e-4.
        ("int8", ["--smooth", "0.5"], 7e-4),
        # Rounding is the same, but a sum's last bit decides to which side: 6 % of an input.
        ("fp8", [], 2e-3),
    ],
)
def test_transformers_says_what_the_report_says(
    name: str,
    options: list[str],
    tolerance: float,
    text_folder: Path,
    calibration: Path,
    heldout: Path,
    tmp_path: Path,
) -> None:
    """transformers with compressed-tensors loads the result; its bits a byte are the report's."""
    out = tmp_path / "out"
    texts = ["--calibration", str(calibration), "--tokens", "500", "--evaluate", str(heldout)]
    assert run(text_folder, out, "--scheme", name, *options, *texts) == 0
    report = json.loads((out / "quantization-report.json").read_text("utf-8"))
    found = report["judgement"]
    tokenizer = Tokenizer(load_tokenizer(text_folder))
    judged = sequences(read_documents([heldout]), tokenizer, LENGTH)
    assert found["num_tokens"] == sum(len(text.token_ids) - 1 for text in judged)
    # Zeros lie in words, and transformers' layout for compressed weights expects them plain.
    dequantize = {"quantization_config": CompressedTensorsConfig(dequantize=True)}
    model = AutoModelForCausalLM.from_pretrained(
        out, dtype=torch.float32, **(dequantize if name.endswith("asym") else {})
    )
    quantized = bits_per_byte(model.eval(), judged)
    original = bits_per_byte(transformers_model(text_folder), judged)
    assert found["original_bits_per_byte"] == pytest.approx(original, rel=1e-6)
    assert found["quantized_bits_per_byte"] == pytest.approx(quantized, rel=tolerance)
    assert abs(quantized / original - 1) > tolerance  # the comparison says something
    assert found["change"] == pytest.approx(quantized / original - 1, abs=2 * tolerance)
    assert found["change_low"] < found["change"] < found["change_high"]
    assert 0 < found["kl_mean"] < found["kl_99"]
    assert 0.5 < found["kept"] < 1


def test_what_lies_beside_the_weights(text_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    assert run(text_folder, out, "--scheme", "int4-g16") == 0
    copied = ("tokenizer.json", "tokenizer_config.json", "generation_config.json")
    for name in copied:
        assert (out / name).read_bytes() == (text_folder / name).read_bytes()
    config = json.loads((out / "config.json").read_text("utf-8"))
    quantization = config.pop("quantization_config")
    assert config == json.loads((text_folder / "config.json").read_text("utf-8"))
    assert quantization["ignore"] == ["lm_head"]
    written = {"config.json", "model.safetensors", "quantization-report.json", *copied}
    assert {path.name for path in out.iterdir()} == written


def test_several_weight_files(
    text_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a size that is not exceeded, with an index that quire's own loader reads."""
    one, several = tmp_path / "one", tmp_path / "several"
    assert run(text_folder, one, "--scheme", "int4-g16") == 0
    monkeypatch.setattr(assemble, "MOST_BYTES", 60_000)
    assert run(text_folder, several, "--scheme", "int4-g16") == 0
    files = list(open_weights(several))
    assert len(files) > 3
    names = [name for file in files for name in file.names]
    expected = weights(one)
    assert sorted(names) == sorted(expected)
    for file in files:
        tensors = {name: file.tensor(name) for name in file.names}
        assert sum(x.nbytes for x in tensors.values()) <= 60_000 or len(tensors) == 1
        for name, tensor in tensors.items():
            assert torch.equal(tensor, expected[name])


@pytest.mark.parametrize("bits", range(1, 9))
def test_packing_is_compressed_tensors(bits: int) -> None:
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

    generator = torch.Generator().manual_seed(bits)
    for columns in (1, 7, 32, 45):
        values = torch.randint(1 << bits, (5, columns), generator=generator, dtype=torch.uint8)
        signed = (values.int() - (1 << (bits - 1))).to(torch.int8)
        assert torch.equal(pack(values, bits), pack_to_int32(signed, bits))


def test_the_report(
    text_folder: Path,
    calibration: Path,
    heldout: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Sizes by counting, errors by layer, and the table that is printed."""
    out = tmp_path / "out"
    options = ["--scheme", "int4-g16-asym", "--method", "gptq", "--ignore", "model.layers.2"]
    texts = ["--calibration", str(calibration), "--evaluate", str(heldout)]
    assert run(text_folder, out, *options, *texts) == 0
    report = json.loads((out / "quantization-report.json").read_text("utf-8"))
    before, after = weights(text_folder), weights(out)
    assert report["bytes_before"] == sum(x.nbytes for x in before.values())
    assert report["bytes_after"] == sum(x.nbytes for x in after.values())
    assert report["bits_a_weight"] == pytest.approx(4 + (32 + 4) / 16)  # float32 scales
    names = linear_names(2)
    layers = {f"model.layers.{i}" for i in range(3)}
    assert set(report["errors"]) == {*names, *layers}
    assert report["errors"].pop("model.layers.2") < 1e-6  # ignored
    assert all(0.005 < error < 0.5 for error in report["errors"].values())
    shown = capsys.readouterr()
    assert "6.25 in quantized layers" in shown.out
    assert f"{report['judgement']['change']:+.2%}" in shown.out
    assert f"wrote {out}" in shown.err


def test_methods_better_than_rounding_to_nearest(
    calibration: Path, text_folder: Path, tmp_path: Path
) -> None:
    """By the error of outputs, in every layer."""
    errors = {}
    for method in ("rtn", "gptq", "awq"):
        options = ["--scheme", "int4-g16", "--method", method, "--calibration", str(calibration)]
        assert run(text_folder, tmp_path / method, *options) == 0
        report = json.loads((tmp_path / method / "quantization-report.json").read_text("utf-8"))
        errors[method] = report["errors"]
    first = {name: error for name, error in errors["rtn"].items() if ".0." in name}
    for name, error in first.items():  # of the first layer: inputs are the same
        assert errors["gptq"][name] < 0.9 * error
        assert errors["awq"][name] <= 1.05 * error  # down_proj reads what up_proj's rounding left


# --- stopping and going on ---------------------------------------------------


def test_a_stopped_run_goes_on(
    text_folder: Path,
    calibration: Path,
    heldout: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Stopped in the second layer, then while judging: the result is that of one run."""
    options = ["--scheme", "int4-g16", "--method", "gptq"]
    texts = ["--calibration", str(calibration), "--evaluate", str(heldout)]
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert run(text_folder, whole, *options, *texts) == 0
    done: list[str] = []
    exact, judge = driver.quantize_layer, driver.judge

    def stop_in_the_second(*arguments: object) -> object:
        if len(done) == 1:
            raise KeyboardInterrupt
        done.append("layer")
        return exact(*arguments)  # type: ignore[arg-type]

    def stop(*arguments: object) -> object:
        raise KeyboardInterrupt

    monkeypatch.setattr(driver, "quantize_layer", stop_in_the_second)
    assert run(text_folder, out, *options, *texts) == 130
    assert "goes on" in capsys.readouterr().err
    assert [path.name for path in out.iterdir()] == [".partial"]
    assert len(list(out.glob(".partial/layer-*.safetensors"))) == 1

    def count(*arguments: object) -> object:
        done.append("layer")
        return exact(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(driver, "quantize_layer", count)
    monkeypatch.setattr(driver, "judge", stop)
    assert run(text_folder, out, *options, *texts) == 130
    assert len(done) == 3  # each layer once
    monkeypatch.setattr(driver, "judge", judge)
    assert run(text_folder, out, *options, *texts) == 0
    assert len(done) == 3
    for path in whole.iterdir():
        assert (out / path.name).read_bytes() == path.read_bytes()
    assert not (out / ".partial").exists()


@pytest.mark.parametrize(
    ("other", "named"),
    [
        (["--method", "rtn"], "method='gptq'"),
        (["--damp", "0.05"], "damp=0.01"),
        (["--scheme", "int4-channel"], "scheme='int4-g16'"),
        (["--ignore", "o_proj"], "ignore=[]"),
        (["--calibration"], "calibration="),
    ],
)
def test_other_arguments_do_not_go_on(
    other: list[str],
    named: str,
    text_folder: Path,
    calibration: Path,
    heldout: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    options = ["--scheme", "int4-g16", "--method", "gptq", "--calibration", str(calibration)]
    with monkeypatch.context() as patch:
        patch.setattr(driver, "assemble", lambda *arguments: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(text_folder, out, *options)
    if other == ["--calibration"]:
        other = ["--calibration", str(heldout)]
    before = sorted(out.rglob("*"))
    assert run(text_folder, out, *options, *other) == 2
    error = capsys.readouterr().err
    assert named in error
    assert str(out) in error
    assert sorted(out.rglob("*")) == before
    assert run(text_folder, out, *options) == 0


def test_another_model_of_the_same_shape_does_not_go_on(
    text_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out, other = tmp_path / "out", tmp_path / "other"
    other.mkdir()
    for path in text_folder.iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    content = bytearray((other / "model.safetensors").read_bytes())
    content[-5] ^= 1
    (other / "model.safetensors").write_bytes(content)
    with monkeypatch.context() as patch:
        patch.setattr(driver, "assemble", lambda *arguments: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(text_folder, out, "--scheme", "int4-g16")
    assert run(other, out, "--scheme", "int4-g16") == 2
    assert "source=" in capsys.readouterr().err


def test_a_file_in_the_way(
    text_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither a folder with something in it nor a file is written over."""
    precious = tmp_path / "out" / "thesis.txt"
    precious.parent.mkdir()
    precious.write_text("years of work", "utf-8")
    assert run(text_folder, precious.parent, "--scheme", "int4-g16") == 2
    assert "not empty" in capsys.readouterr().err
    assert run(text_folder, precious, "--scheme", "int4-g16") == 2
    assert "is a file" in capsys.readouterr().err
    assert [path.name for path in precious.parent.iterdir()] == ["thesis.txt"]


def test_stopped_while_files_are_moved(
    text_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A crash there leaves some files in place and no config.json; the next run finishes."""
    out = tmp_path / "out"
    moved: list[Path] = []

    def move_one(self: driver.Partial) -> None:
        first = min(path for path in self.result.iterdir() if path.name != "config.json")
        moved.append(first.rename(self.out / first.name))
        raise OSError("the machine went away")

    with monkeypatch.context() as patch:
        patch.setattr(driver.Partial, "move_into_place", move_one)
        assert run(text_folder, out, "--scheme", "int4-g16") == 2
    assert moved[0].is_file()
    assert run(text_folder, out, "--scheme", "int4-g16") == 0
    assert (out / "config.json").is_file()
    assert not (out / ".partial").exists()


# --- bad input ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--scheme", "int5"], ["'int5'", "int4"]),
        (["--scheme", "int3-g32"], ["int3-g32", "4 or 8"]),
        (["--scheme", "int4"], ["int4", "q_proj", "96", "int4-g32"]),
        (["--scheme", "int4-g32"], ["down_proj", "80", "int4-g16"]),
        (["--method", "magic"], ["'magic'", "gptq"]),
        (["--scheme", "int4-g16", "--method", "gptq"], ["gptq", "--calibration"]),
        (["--scheme", "int8", "--smooth", "0.5"], ["smooth", "--calibration"]),
        (["--scheme", "int8", "--smooth", "1.5"], ["1.5", "[0, 1]"]),
        (["--scheme", "int4-g16", "--method", "awq", "--smooth", "0.5"], ["awq", "one"]),
        (["--scheme", "fp8", "--method", "gptq"], ["'gptq'", "rtn"]),
        (["--act-order"], ["act_order", "'rtn'"]),
        (["--damp", "0"], ["damp=0", "0.01"]),
        (["--tokens", "0"], ["num_tokens=0", "1"]),
        (["--ignore", "c_attn"], ["'c_attn'", "q_proj"]),
        (["--ignore", "q_proj"], ["'q_proj'", "k_proj", "v_proj", "one matrix"]),
        (["--ignore", "model"], ["every linear layer"]),
        (["--scheme", "int4-g16", "--calibration", "nowhere.txt"], ["nowhere.txt", "exist"]),
    ],
)
def test_an_error_is_one_line_that_names_value_and_remedy(
    options: list[str],
    named: list[str],
    text_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(text_folder, tmp_path / "out", *options) == 2
    error = capsys.readouterr().err
    assert error.startswith("quire: ")
    assert error.count("\n") == 1
    for words in named:
        assert words in error
    assert not (tmp_path / "out").exists()


def test_text_that_is_no_use(
    text_folder: Path,
    calibration: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def error_of(*options: str | Path) -> str:
        assert run(text_folder, tmp_path / "out", "--scheme", "int4-g16", *options) == 2
        return capsys.readouterr().err

    short, broken, binary = (tmp_path / name for name in ("a.txt", "b.jsonl", "c.txt"))
    short.write_text("two words", "utf-8")
    broken.write_text('{"text": "fine"}\n{"content": "not"}\n', "utf-8")
    binary.write_bytes(b"\xff\xfe\x00")
    assert "more text" in error_of("--calibration", short)
    assert "b.jsonl, line 2" in error_of("--calibration", broken)
    assert "c.txt" in error_of("--calibration", binary)
    same = error_of("--calibration", calibration, "--evaluate", calibration)
    assert "calibration text too" in same
    assert "document 1" in same


def test_a_model_that_is_quantized_already(
    text_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(text_folder, tmp_path / "out", "--scheme", "int4-g16") == 0
    capsys.readouterr()
    assert run(tmp_path / "out", tmp_path / "again", "--scheme", "int4-g16") == 2
    error = capsys.readouterr().err
    assert "already" in error
    assert "compressed-tensors" in error


def test_a_model_without_a_tokenizer(
    text_folder: Path, calibration: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        (bare / name).write_bytes((text_folder / name).read_bytes())
    assert run(bare, tmp_path / "out", "--scheme", "int4-g16") == 0
    assert run(bare, tmp_path / "b", "--scheme", "int4-g16", "--calibration", calibration) == 2
    assert "tokenizer" in capsys.readouterr().err


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("name", "options"), [("int4-g16", ["--method", "gptq"]), ("int8", ["--smooth", "0.5"])]
)
def test_on_a_gpu(
    name: str,
    options: list[str],
    text_folder: Path,
    calibration: Path,
    heldout: Path,
    tmp_path: Path,
) -> None:
    """Sums differ in their last bits, and with them a few codes; what it costs is the same."""
    texts = ["--calibration", str(calibration), "--evaluate", str(heldout)]
    found = {}
    for device in ("cpu", "cuda"):
        out = tmp_path / device
        arguments = ["--scheme", name, *options, *texts, "--device", device]
        assert run(text_folder, out, *arguments) == 0
        report = json.loads((out / "quantization-report.json").read_text("utf-8"))
        found[device] = report["judgement"], weights(out)
    cpu, gpu = (found[device][0] for device in ("cpu", "cuda"))
    for key in ("original_bits_per_byte", "quantized_bits_per_byte"):
        assert gpu[key] == pytest.approx(cpu[key], rel=3e-3)
    for key, tensor in found["cpu"][1].items():
        assert found["cuda"][1][key].dtype == tensor.dtype
        assert found["cuda"][1][key].shape == tensor.shape


# --- texts and intervals -----------------------------------------------------


def test_sequences_of_documents(text_folder: Path, tmp_path: Path) -> None:
    """All text is there once, ends too short to be of use left out; fewer are spread evenly."""
    compressed = tmp_path / "a.jsonl.gz"
    texts = [some_text(seed, 400) for seed in range(5)]
    lines = "".join(json.dumps({"text": text}) + "\n\n" for text in texts)
    compressed.write_bytes(gzip.compress(lines.encode()))
    documents = read_documents([compressed])
    assert documents == texts
    tokenizer = Tokenizer(load_tokenizer(text_folder))
    found = sequences(documents, tokenizer, 64)
    for number, text in enumerate(texts):
        token_ids = tokenizer.encode(text)
        pieces = [s.token_ids for s in found if s.document == number]
        joined = [token for piece in pieces for token in piece]
        assert joined == token_ids[: len(joined)]
        assert len(token_ids) - len(joined) < 16
        whole = tokenizer.decode(joined)
        firsts = sum(len(tokenizer.decode(piece[:1])) for piece in pieces)
        assert sum(s.num_bytes for s in found if s.document == number) == len(whole) - firsts
    some = sequences(documents, tokenizer, 64, 64 * 10)
    assert len(some) == pytest.approx(10, abs=1)
    assert {s.document for s in some} == set(range(5))


def test_the_interval_is_of_documents() -> None:
    """Twenty documents, each of four sequences that change alike: not eighty independent ones."""
    generator = torch.Generator().manual_seed(0)
    change = 0.03 + 0.02 * torch.randn(20, generator=generator, dtype=torch.float64)
    original = 100 + 10 * torch.rand(80, generator=generator, dtype=torch.float64)
    numbers = [i // 4 for i in range(80)]
    nats = torch.stack([original, original * (1 + change[numbers])], 1)
    low, high = change_interval(nats, numbers)
    spread = float(change.std() / 20**0.5)
    assert (low + high) / 2 == pytest.approx(float(change.mean()), abs=0.002)
    assert high - low == pytest.approx(2 * 1.96 * spread, rel=0.15)
    low, high = change_interval(nats, list(range(80)))
    assert high - low == pytest.approx(2 * 1.96 * spread / 2, rel=0.15)
