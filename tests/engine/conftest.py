"""Checkpoints that the engine's tests share, each written once a session."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import checkpoints
import pytest
import torch
from checkpoints import assert_empty
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from quire import LLM


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--impl",
        metavar="MODULE:CLASS",
        help="run a suite of tests/engine/protocols on this class instead of quire's",
    )


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny models run faster on one thread than on several that wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return the folder of a checkpoint of `checkpoints.SPECS`."""

    @cache
    def folder(name: str) -> Path:
        return checkpoints.write(tmp_path_factory.mktemp(name), checkpoints.SPECS[name])

    return folder


@pytest.fixture(scope="session")
def oracle(checkpoint: Callable[[str], Path]) -> Callable[[str], PreTrainedModel]:
    """Return transformers' model of a checkpoint."""

    @cache
    def model(name: str) -> PreTrainedModel:
        return checkpoints.transformers_model(checkpoint(name))

    return model


@pytest.fixture(scope="session")
def text_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint with a tokenizer."""
    return checkpoints.write_text_model(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="session")
def tokenizer(text_folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer of `text_folder`."""
    loaded: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(text_folder)
    return loaded


@pytest.fixture(scope="session")
def shared_llm(text_folder: Path) -> LLM:
    """An engine with text, shared: every test must leave it empty."""
    return LLM(text_folder, device="cpu", max_num_seqs=4)


@pytest.fixture
def llm(shared_llm: LLM) -> Iterator[LLM]:
    """`shared_llm`, looked over after the test."""
    yield shared_llm
    assert_empty(shared_llm)
