"""Ranks that torchrun starts: on one machine, and on two that only a network joins."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import checkpoints
import pytest

from quire import LLM, QuireError, SamplingParams

SCRIPT = """
import os, sys
from quire import LLM, SamplingParams
llm = LLM(
    sys.argv[1], device="cpu", max_model_len=96, max_num_seqs=4, tensor_parallel_size=2,
    distributed_executor_backend="external_launcher",
)
assert os.environ["RANK"] == "0", "the others only serve"
params = SamplingParams(temperature=0.9, seed=3, max_tokens=12, ignore_eos=True)
prompts = [[1, 2, 3], list(range(40))]
print([output.outputs[0].token_ids for output in llm.generate(prompts, params)], flush=True)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    spec = checkpoints.Spec("qwen3", {"hidden_size": 128, "num_attention_heads": 8})
    return checkpoints.write(tmp_path_factory.mktemp("launched"), spec)


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("script") / "generate.py"
    path.write_text(SCRIPT)
    return path


def expected(folder: Path) -> list[list[int]]:
    llm = LLM(folder, device="cpu", max_model_len=96, max_num_seqs=4)
    params = SamplingParams(temperature=0.9, seed=3, max_tokens=12, ignore_eos=True)
    return [o.outputs[0].token_ids for o in llm.generate([[1, 2, 3], list(range(40))], params)]


def torchrun(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", *arguments]


def environment(**variables: str) -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1"} | variables


def test_ranks_of_one_machine(folder: Path, script: Path) -> None:
    command = torchrun("--standalone", "--local-addr", "127.0.0.1", "--nproc-per-node", "2")
    done = subprocess.run(
        [*command, str(script), str(folder)],
        capture_output=True,
        text=True,
        timeout=120,
        env=environment(GLOO_SOCKET_IFNAME="lo"),
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert ast.literal_eval(done.stdout) == expected(folder)


def test_the_command_reads_and_prints_on_the_first_rank_alone() -> None:
    """The ranks share standard input; whoever reads a pipe takes it from the others."""
    options = ["--max-tokens", "6", "--device", "cpu", "--model", "quire-mini-draft"]
    alone = [sys.executable, "-m", "quire", "generate", "-", *options]
    ranks = ["--tensor-parallel-size", "2", "--distributed-executor-backend", "external_launcher"]
    prompt = "def fibonacci(n):\n" * 4
    launched = [
        *torchrun("--standalone", "--local-addr", "127.0.0.1", "--nproc-per-node", "2"),
        *["-m", "quire", "generate", "-", *options, *ranks],
    ]
    one, two = (
        subprocess.run(
            command,
            input=prompt,
            capture_output=True,
            text=True,
            timeout=120,
            env=environment(GLOO_SOCKET_IFNAME="lo"),
            check=False,
        )
        for command in (alone, launched)
    )
    assert (one.returncode, two.returncode) == (0, 0), two.stderr
    assert one.stdout.startswith(prompt)
    assert two.stdout == one.stdout
    assert two.stderr.count("tokens/s") == 1
    assert "Exception ignored" not in two.stderr  # each has left its group once, in order


ADDRESSES = ("10.213.7.1", "10.213.7.2")


@pytest.fixture
def machines() -> Iterator[list[str]]:
    """Two network namespaces with a cable between them: hosts that share nothing else."""
    if shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("network namespaces need root and iproute2")
    names = [f"quire-{os.getpid()}-{end}" for end in "ab"]

    def ip(*arguments: str) -> None:
        subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)

    made = []
    try:
        for name in names:
            ip("netns", "add", name)
            made.append(name)
        ip(
            "link",
            "add",
            "cable",
            "netns",
            names[0],
            "type",
            "veth",
            "peer",
            "name",
            "cable",
            "netns",
            names[1],
        )
        for name, address in zip(names, ADDRESSES, strict=True):
            ip("-n", name, "address", "add", f"{address}/24", "dev", "cable")
            ip("-n", name, "link", "set", "cable", "up")
            ip("-n", name, "link", "set", "lo", "up")
    except subprocess.CalledProcessError as error:
        for name in made:
            ip("netns", "del", name)
        pytest.skip(f"network namespaces cannot be made here: {error.stderr}")
    yield names
    for name in names:
        ip("netns", "del", name)


def test_ranks_of_two_machines(folder: Path, script: Path, machines: list[str]) -> None:
    running = []
    for number, (name, address) in enumerate(zip(machines, ADDRESSES, strict=True)):
        command = torchrun(
            "--nnodes", "2", "--node-rank", str(number), "--nproc-per-node", "1",
            "--master-addr", ADDRESSES[0], "--master-port", "29517", "--local-addr", address,
        )  # fmt: skip
        running.append(
            subprocess.Popen(
                ["ip", "netns", "exec", name, *command, str(script), str(folder)],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=environment(GLOO_SOCKET_IFNAME="cable"),
            )
        )
    said = [process.communicate(timeout=120) for process in running]
    assert [process.returncode for process in running] == [0, 0], said[0][1] + said[1][1]
    assert ast.literal_eval(said[0][0]) == expected(folder)
    assert said[1][0] == ""


def test_outside_torchrun_it_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"tensor_parallel_size": 2, "distributed_executor_backend": "external_launcher"}
    with pytest.raises(QuireError, match=r"outside torchrun \(RANK, .*--nproc-per-node 2"):
        LLM(folder, device="cpu", **options)
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.setenv(name, "0")
    for name in ("WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "4")
    with pytest.raises(QuireError, match=r"torchrun started 4 ranks, and .*= 2: make them equal"):
        LLM(folder, device="cpu", **options)
    with pytest.raises(QuireError, match=r"data_parallel_size=2 with 'external_launcher'"):
        LLM(folder, device="cpu", data_parallel_size=2, **options)
