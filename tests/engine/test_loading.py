"""How weights come in: by what each layer takes, from mapped files, within a memory limit."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import checkpoints
import pytest
import torch
from checkpoints import CPU, SPECS, TOLERANCE, decoder_logits, load_decoder, oracle_logits
from safetensors.torch import load_file, save_file
from torch import Tensor

from quire import CheckpointError
from quire.attention.torch_backend import TorchAttention
from quire.layers.linear import Linear
from quire.layers.module import copy_checked
from quire.models.config import ModelConfig
from quire.models.decoder import Decoder
from quire.models.loader import initialize_random
from quire.models.weight_files import WeightFile, open_weights
from quire.quantization.factory import unquantized

Folder = Callable[[str], Path]
TOKENS = checkpoints.random_prompts([60], seed=3)[0]
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


# --- what each layer takes ---------------------------------------------------


@pytest.mark.parametrize("name", SPECS)
def test_layers_take_what_transformers_stores(name: str, checkpoint: Folder) -> None:
    stored = {n for file in open_weights(checkpoint(name)) for n in file.names}
    takers = load_decoder(checkpoint(name)).takes()
    optional = {n for n, taker in takers.items() if not taker.required}
    assert optional == ({EMBEDDING, HEAD} if HEAD not in stored else set())
    assert set(takers) - {HEAD} == stored - {HEAD}


class Codes:
    """A `QuantMethod` of another format: INT8 codes, a scale a row and, if stored, a shift."""

    def tensors(self, layer: Linear) -> dict[str, bool]:
        return {"codes": True, "scale": True, "shift": False}

    def create_weights(self, layer: Linear, dtype: torch.dtype, device: torch.device) -> None:
        layer.codes = torch.zeros(layer.out_features, layer.in_features, dtype=torch.int8)
        layer.scale, layer.shift = torch.zeros(2, layer.out_features)

    def load_shard(self, layer: Linear, name: str, shard: str, tensor: Tensor) -> None:
        begin, size = layer.shard_rows[shard]
        copy_checked(getattr(layer, name)[begin : begin + size], tensor)

    def finish_load(self, layer: Linear) -> None:
        layer.packed = self.dequantize(layer).T.contiguous()

    def apply(self, layer: Linear, x: Tensor) -> Tensor:
        product: Tensor = x @ layer.packed
        return product

    def dequantize(self, layer: Linear) -> Tensor:
        weight: Tensor = layer.codes * layer.scale[:, None] + layer.shift[:, None]
        return weight

    def fill_random(self, layer: Linear, generator: torch.Generator) -> None:
        layer.codes.random_(-127, 128, generator=generator)
        layer.scale.fill_(1e-3)


def write_codes(source: Path, folder: Path) -> None:
    """Turn a checkpoint without biases into one of codes, and its plain one into what they mean."""
    plain, coded = {}, {}
    for name, tensor in load_file(source / "model.safetensors").items():
        if not name.endswith("_proj.weight"):
            plain[name] = coded[name] = tensor
            continue
        stem = name.removesuffix(".weight")
        scale = tensor.abs().amax(1) / 127
        codes = (tensor / scale[:, None]).round()
        plain[name] = codes * scale[:, None]
        coded |= {f"{stem}.codes": codes.to(torch.int8), f"{stem}.scale": scale}
        if stem.endswith("k_proj"):
            coded[f"{stem}.shift"] = torch.full_like(scale, 0.01)
            plain[name] = plain[name] + 0.01
    for sub, tensors in (("plain", plain), ("coded", coded)):
        (folder / sub).mkdir()
        shutil.copy(source / "config.json", folder / sub)
        save_file(tensors, folder / sub / "model.safetensors")


def test_a_packed_format_needs_no_change_in_the_loader(checkpoint: Folder, tmp_path: Path) -> None:
    write_codes(checkpoint("llama3-scaled"), tmp_path)
    asked: list[tuple[str, ...]] = []

    def method_for(names: object) -> Codes:
        asked.append(tuple(names))  # type: ignore[call-overload]
        return Codes()

    model = load_decoder(tmp_path / "coded", method_for)
    expected = decoder_logits(load_decoder(tmp_path / "plain"), TOKENS)
    torch.testing.assert_close(decoder_logits(model, TOKENS), expected, atol=TOLERANCE, rtol=0)
    attention, mlp = "model.layers.1.self_attn", "model.layers.1.mlp"
    assert asked[4:8] == [
        (f"{attention}.q_proj", f"{attention}.k_proj", f"{attention}.v_proj"),
        (f"{attention}.o_proj",),
        (f"{mlp}.gate_proj", f"{mlp}.up_proj"),
        (f"{mlp}.down_proj",),
    ]
    tensors = load_file(tmp_path / "coded" / "model.safetensors")
    del tensors["model.layers.2.mlp.up_proj.scale"]
    save_file(tensors, tmp_path / "coded" / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"lacks 1 .*'model\.layers\.2\.mlp\.up_proj\.scale'"):
        load_decoder(tmp_path / "coded", method_for)


@pytest.mark.parametrize("name", ["qwen2", "qwen3-sharded"])
@pytest.mark.parametrize("method_for", [None, lambda names: Codes()], ids=["plain", "codes"])
def test_random_weights(name: str, method_for: None, checkpoint: Folder) -> None:
    """As a model is initialised for training, whatever the method stores; the same each time."""

    def model(seed: int) -> Decoder:
        config = ModelConfig.from_folder(checkpoint(name))
        made = Decoder(config, TorchAttention(), 64, torch.float32, CPU, method_for)
        initialize_random(made, seed)
        return made

    logits = decoder_logits(model(0), TOKENS)
    assert logits.isfinite().all()
    assert logits.std() > 1e-3
    assert torch.equal(decoder_logits(model(0), TOKENS), logits)
    assert not torch.equal(decoder_logits(model(1), TOKENS), logits)
    norms = {n: p for n, p in model(0).named_parameters() if "norm" in n}
    assert len(norms) >= 7
    assert all(p.eq(1).all() for p in norms.values())
    assert 0.015 < model(0).vocabulary.embedding.std() < 0.025


def test_a_layer_takes_a_part_of_a_tensor(checkpoint: Folder) -> None:
    """What a rank does: rows of one shard, columns of another, as views of the file."""
    (file,) = open_weights(checkpoint("llama3-scaled"))
    attention = "model.layers.0.self_attn"
    whole = file.tensor(f"{attention}.q_proj.weight")
    method_for = unquantized(torch.float32, CPU)
    x = torch.randn(3, 96, generator=torch.Generator().manual_seed(0))
    options = {"bias": False, "dtype": torch.float32, "device": CPU}
    rows = Linear(96, {"q": 40}, method_for, **options)
    rows.takes()["q.weight"].take(whole[40:80])
    columns = Linear(48, {"o": 96}, method_for, **options)
    columns.takes()["o.weight"].take(whole[:, 48:])
    with pytest.raises(CheckpointError, match=r"shape \[96, 96\] where .* \[40, 96\]"):
        rows.takes()["q.weight"].take(whole)
    for layer in (rows, columns):
        layer.finish_load()
    torch.testing.assert_close(rows(x), x @ whole[40:80].T)
    torch.testing.assert_close(columns(x[:, 48:].contiguous()), x[:, 48:] @ whole[:, 48:].T)


# --- tied tables -------------------------------------------------------------


Tied = Callable[[Callable[[dict[str, Tensor]], object]], Path]


@pytest.fixture
def tied(checkpoint: Folder, tmp_path: Path) -> Tied:
    """Return a copy of a tied checkpoint whose tensors were changed."""

    def copy(change: Callable[[dict[str, Tensor]], object]) -> Path:
        folder = tmp_path / "copy"
        shutil.copytree(checkpoint("llama-linear-biased"), folder)
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return folder

    return copy


def as_transformers(folder: Path) -> Decoder:
    model = load_decoder(folder)
    expected = oracle_logits(checkpoints.transformers_model(folder), TOKENS)
    assert expected.std() > 0.5
    torch.testing.assert_close(decoder_logits(model, TOKENS), expected, atol=TOLERANCE, rtol=0)
    return model


def test_a_head_of_its_own_in_a_tied_checkpoint_is_kept(tied: Tied) -> None:
    folder = tied(lambda t: t.update({HEAD: t[EMBEDDING].flip(0).contiguous()}))
    with pytest.warns(
        UserWarning, match=r"tie_word_embeddings=true, but lm_head\.weight .*differs"
    ):
        as_transformers(folder)


def test_a_tied_table_that_is_stored_twice(tied: Tied) -> None:
    as_transformers(tied(lambda t: t.update({HEAD: t[EMBEDDING].clone()})))


def test_a_tied_table_that_is_stored_as_the_head(tied: Tied) -> None:
    as_transformers(tied(lambda t: t.update({HEAD: t.pop(EMBEDDING)})))


# --- files and memory --------------------------------------------------------


FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn)
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)


@pytest.mark.parametrize("dtype", [*FLOATS, *INTEGERS])
def test_a_tensor_is_what_the_library_reads(dtype: torch.dtype, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "matrix": torch.randint(0, 2, (5, 7), generator=generator).to(dtype),
        "scalar": torch.tensor(1).to(dtype),
        "empty": torch.empty(0, 4, dtype=dtype),
    }
    save_file(tensors, tmp_path / "x.safetensors", metadata={"format": "pt"})
    file = WeightFile(tmp_path / "x.safetensors")
    assert set(file.names) == set(tensors)
    for name, tensor in tensors.items():
        found = file.tensor(name)
        assert (found.dtype, found.shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(as_bytes(found), as_bytes(tensor))


def as_bytes(x: Tensor) -> Tensor:
    return x.reshape(-1).view(torch.uint8)


def test_a_tensor_at_an_odd_offset(tmp_path: Path) -> None:
    """The format asks for no alignment, and the library's own writer is not the only one."""
    values = torch.randn(5, generator=torch.Generator().manual_seed(0))
    header = {
        "odd": {"dtype": "U8", "shape": [3], "data_offsets": [0, 3]},
        "floats": {"dtype": "F32", "shape": [5], "data_offsets": [3, 23]},
    }
    text = json.dumps(header).encode()
    content = len(text).to_bytes(8, "little") + text + b"abc" + values.numpy().tobytes()
    (tmp_path / "x.safetensors").write_bytes(content)
    assert torch.equal(WeightFile(tmp_path / "x.safetensors").tensor("floats"), values)


def resident_bytes(path: Path) -> int:
    """Bytes of a mapped file that this process has touched, rounded up to what was read ahead."""
    total, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split(" ", 1)[0]:
            inside = line.endswith(str(path))
        elif inside and line.startswith("Rss:"):
            total += int(line.split()[1]) * 1024
    return total


needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="counts pages as Linux does")


@needs_linux
def test_a_slice_reads_its_own_bytes(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"weight": torch.arange(2**24).float().view(8192, 2048)}, path)
    weight = WeightFile(path).tensor("weight")  # 64 MB
    before = resident_bytes(path)
    part = weight[2048:2560].clone()  # 4 MB
    read = resident_bytes(path) - before
    assert part[0, 0] == 2048 * 2048
    assert part.nbytes <= read + 2**21
    assert read <= part.nbytes + 2**22  # the kernel maps up to 2 MB around a page with it
    weight.clone()
    assert resident_bytes(path) >= weight.nbytes


LOADS_WITHIN = """
import resource, sys
from pathlib import Path
import torch
from quire.attention.torch_backend import TorchAttention
from quire.models.config import ModelConfig
from quire.models.decoder import Decoder
from quire.models.loader import load_weights

def load(folder):
    config = ModelConfig.from_folder(folder)
    model = Decoder(config, TorchAttention(), 64, torch.float32, torch.device("cpu"))
    load_weights(model, Path(folder))
    return model

small, big, allowed = sys.argv[1:]
load(small)  # whatever is set up once
for line in Path("/proc/self/status").read_text().splitlines():
    if line.startswith("VmData:"):
        limit = int(line.split()[1]) * 1024 + int(allowed)
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
hidden = torch.arange(96.0)[None] / 96
print(load(big).compute_logits(hidden)[0, ::1000].tolist())
"""


@needs_linux
def test_a_load_within_a_memory_limit(checkpoint: Folder, tmp_path: Path) -> None:
    """The model's own size and 120 MB more: no second copy, whether packed or mapped."""
    vocab_size = 200_000
    shutil.copytree(checkpoint("qwen2"), tmp_path, dirs_exist_ok=True)
    raw = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**raw, "vocab_size": vocab_size}))
    tensors = load_file(tmp_path / "model.safetensors")
    generator = torch.Generator().manual_seed(0)
    for name in (EMBEDDING, HEAD):
        tensors[name] = torch.randn(vocab_size, 96, generator=generator)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    size = (tmp_path / "model.safetensors").stat().st_size
    assert size > 150e6
    allowed = size + 120 * 2**20
    answer = subprocess.run(
        [sys.executable, "-c", LOADS_WITHIN, checkpoint("qwen2"), tmp_path, str(allowed)],
        capture_output=True,
        text=True,
    )
    assert answer.returncode == 0, answer.stderr
    expected = tensors[HEAD][::1000] @ (torch.arange(96.0) / 96)
    torch.testing.assert_close(torch.tensor(json.loads(answer.stdout)), expected)
