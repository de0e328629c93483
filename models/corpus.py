"""Builds the corpus that quire-mini is trained on, from Python source on this machine.

    python models/corpus.py --jobs 2

reads the packages of `packages.py` from the running interpreter, cleans each file
(`cleaning.py`), drops copies, splits by a fixed hash of the path, trains the tokenizer on the
training files (`tokenizer.py`) and writes

- `models/corpus.json`: packages, versions, licences, counts, hashes (committed);
- `models/heldout.jsonl.gz`: the held-out files themselves, for `evaluate.py` (committed), and
  `models/heldout-licences.txt.gz`, the licences under which they are passed on;
- `models/corpus/{train,validation,heldout}.bin.xz`: token ids as little-endian uint16, each
  file preceded by `<|endoftext|>` (not committed).

It stops where an installed version is not the one in `models/corpus.json`; `--any-version` makes
another corpus of what is there.

Copies. transformers' modelling files repeat each other function by function, and packages vendor
one another, so equal files are not the whole problem. A *shingle* is three consecutive non-blank
lines with blanks removed. Held-out files are placed first, then validation, then training
files in a fixed order, and a file is dropped when more than 40 % of its shingles stand in files
placed before it. That bounds how much of a training file repeats anything else. A long training
file may still hold a short held-out file whole, so last every held-out or validation file is
dropped when more than 20 % of its shingles stand in the training files that remain.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import importlib.metadata
import json
import lzma
import os
import tokenize
from collections import Counter, defaultdict
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from cleaning import Refused, clean_source
from packages import PACKAGES, installed_version, licence_texts, source_paths

MODELS = Path(__file__).resolve().parent
SPLITS = ("heldout", "validation", "train")


@dataclass
class File:
    """One cleaned source file."""

    package: str
    path: str  # "<package>/<path below its root>", "/" as the separator
    text: str
    shingles: set[int] = field(default_factory=set, repr=False)

    @property
    def split(self) -> str:
        """heldout for 1.6 % of the paths, validation for 0.6 %, train for the rest."""
        bucket = int.from_bytes(hashlib.sha256(self.path.encode()).digest()[:4], "big") % 1000
        return "heldout" if bucket < 16 else "validation" if bucket < 22 else "train"


def read_clean(task: tuple[str, Path]) -> tuple[str, str, str]:
    """Returns (corpus path, cleaned text, "") or (corpus path, "", reason of refusal)."""
    name, path = task
    try:
        if path.stat().st_size > 250_000:
            return name, "", "longer than 250 kB"
        with tokenize.open(path) as handle:
            return name, clean_source(handle.read()), ""
    except Refused as refusal:
        return name, "", str(refusal)
    except (OSError, SyntaxError, UnicodeDecodeError):
        return name, "", "not readable"


def shingles(text: str) -> set[int]:
    """Hashes of every three consecutive non-blank lines, blanks inside the lines removed."""
    lines = [line for line in ("".join(raw.split()) for raw in text.split("\n")) if line]
    triples = ("\n".join(lines[at : at + 3]) for at in range(max(1, len(lines) - 2)))
    return {
        int.from_bytes(hashlib.blake2b(triple.encode(), digest_size=8).digest(), "big")
        for triple in triples
    }


def deduplicate(files: list[File], *, repeated: float = 0.4, leaked: float = 0.2) -> list[File]:
    """Keeps the files that do not repeat the others (the rule stands at the top of this file)."""
    order = sorted(files, key=lambda file: (SPLITS.index(file.split), file.path))
    seen: set[int] = set()
    trained: set[int] = set()
    kept: list[File] = []
    for file in order:
        file.shingles = shingles(file.text)
        if len(file.shingles & seen) > repeated * len(file.shingles):
            continue
        seen |= file.shingles
        if file.split == "train":
            trained |= file.shingles
        kept.append(file)
    return [
        file
        for file in kept
        if file.split == "train" or len(file.shingles & trained) <= leaked * len(file.shingles)
    ]


def collect(jobs: int) -> tuple[list[File], dict[str, Counter[str]]]:
    """Cleans and deduplicates every package; also returns why files were left out, by package."""
    tasks = [(package, *item) for package in PACKAGES for item in source_paths(package)]
    outcomes: dict[str, Counter[str]] = defaultdict(Counter)
    files: list[File] = []
    with ProcessPoolExecutor(jobs) as pool:
        cleaned = pool.map(read_clean, [task[1:] for task in tasks], chunksize=32)
        for (package, *_), (name, text, reason) in zip(tasks, cleaned, strict=True):
            outcomes[package]["found"] += 1
            if reason:
                outcomes[package][reason] += 1
            else:
                files.append(File(package, name, text))
    kept = deduplicate(files)
    for package in PACKAGES:
        before = sum(file.package == package for file in files)
        after = sum(file.package == package for file in kept)
        outcomes[package]["copies"] = before - after
    return kept, outcomes


def version_differences() -> list[str]:
    """Returns a line for each package that is not installed as `corpus.json` records it."""
    recorded = {
        row["name"]: row["version"]
        for row in json.loads((MODELS / "corpus.json").read_text())["packages"]
    }
    lines = []
    for package in PACKAGES:
        try:
            installed = installed_version(package)
        except importlib.metadata.PackageNotFoundError:
            installed = "not installed"
        if installed != recorded.get(package):
            lines.append(f"{package}: {installed}, recorded {recorded.get(package, 'nowhere')}")
    return lines


def digest(files: list[File]) -> str:
    """SHA-256 over the paths and texts in path order."""
    total = hashlib.sha256()
    for file in sorted(files, key=lambda file: file.path):
        total.update(f"{file.path}\0{file.text}\0".encode())
    return total.hexdigest()


def manifest(files: list[File], outcomes: dict[str, Counter[str]]) -> dict[str, object]:
    """The record that is committed: what the corpus was made of, to the byte."""
    packages = []
    for package, licence in PACKAGES.items():
        row: dict[str, object] = {
            "name": package,
            "version": installed_version(package),
            "licence": licence,
        }
        for split in SPLITS:
            part = [file for file in files if file.package == package and file.split == split]
            row[split] = {"files": len(part), "bytes": sum(len(f.text.encode()) for f in part)}
        row["sha256"] = digest([file for file in files if file.package == package])
        found = outcomes[package]
        row["files_found"] = found["found"]
        row["files_dropped"] = {
            reason: count for reason, count in sorted(found.items()) if reason != "found" and count
        }
        packages.append(row)
    splits = {}
    for split in SPLITS:
        part = [file for file in files if file.split == split]
        splits[split] = {
            "files": len(part),
            "bytes": sum(len(file.text.encode()) for file in part),
            "sha256": digest(part),
        }
    heldout = {
        file.path: hashlib.sha256(file.text.encode()).hexdigest()
        for file in files
        if file.split == "heldout"
    }
    return {
        "splits": splits,
        "heldout_shingles_in_train": round(overlap(files), 4),
        "packages": packages,
        "heldout_files": heldout,
    }


def overlap(files: list[File]) -> float:
    """Returns the share of the held-out files' shingles that also stand in a training file."""
    trained = {one for file in files if file.split == "train" for one in file.shingles}
    held = [file.shingles for file in files if file.split == "heldout"]
    return sum(len(one & trained) for one in held) / sum(map(len, held))


def write_texts(files: list[File], path: Path) -> None:
    """Writes one JSON object a line, compressed, byte-identical on every run."""
    rows = [json.dumps({"path": file.path, "text": file.text}) for file in files]
    write_compressed("\n".join(rows) + "\n", path)


def write_compressed(text: str, path: Path) -> None:
    with open(path, "wb") as raw, gzip.GzipFile("", "wb", 9, raw, mtime=0) as handle:
        handle.write(text.encode())


def write_tokens(files: list[File], path: Path) -> int:
    """Writes the ids of `files` in hash order, `<|endoftext|>` before each; returns the count."""
    from tokenizer import SPECIAL_TOKENS, load_tokenizer

    tokenizer = load_tokenizer()
    separator = SPECIAL_TOKENS.index("<|endoftext|>")
    order = sorted(files, key=lambda file: hashlib.sha256(file.path[::-1].encode()).digest())
    chunks: list[np.ndarray] = []
    for start in range(0, len(order), 256):
        batch = [file.text for file in order[start : start + 256]]
        chunks += [
            np.array([separator, *encoding.ids], dtype="<u2")
            for encoding in tokenizer.encode_batch(batch)
        ]
    ids = np.concatenate(chunks)
    path.write_bytes(lzma.compress(ids.tobytes(), preset=1))
    return int(ids.size)


def main() -> None:
    from tokenizer import train_tokenizer

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument(
        "--any-version", action="store_true", help="make another corpus, of what is installed here"
    )
    options = parser.parse_args()
    if not options.any_version and (differences := version_differences()):
        raise SystemExit(
            "the corpus would not be the one that the models were trained on:\n  "
            + "\n  ".join(differences)
            + "\ninstall the recorded versions (models/README.md), or pass --any-version"
        )
    jobs = options.jobs
    files, outcomes = collect(jobs)
    record = manifest(files, outcomes)
    by_split = {split: [f for f in files if f.split == split] for split in SPLITS}
    write_texts(by_split["heldout"], MODELS / "heldout.jsonl.gz")
    licences = [licence_texts(name) for name in sorted({f.package for f in by_split["heldout"]})]
    write_compressed("\n\n".join(licences), MODELS / "heldout-licences.txt.gz")
    train_tokenizer(file.text for file in by_split["train"])
    (MODELS / "corpus").mkdir(exist_ok=True)
    record["tokens"] = {
        split: write_tokens(by_split[split], MODELS / "corpus" / f"{split}.bin.xz")
        for split in SPLITS
    }
    (MODELS / "corpus.json").write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps({"splits": record["splits"], "tokens": record["tokens"]}, indent=1))


if __name__ == "__main__":
    main()
