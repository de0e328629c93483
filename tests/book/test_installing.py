"""What `make` says before it installs, and which Python and Chromium it takes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import chromium
import pytest
from bookmeta import ROOT

TOOLS = ("sh", "cat", "cksum", "sed", "awk", "dirname", "basename", "touch", "rm", "mkdir")


class Machine:
    """A clone's root, and a PATH with no more than what a test puts on it."""

    def __init__(self, folder: Path) -> None:
        self.root, self.bin = folder / "clone", folder / "bin"
        (self.root / "scripts").mkdir(parents=True)
        self.bin.mkdir()
        for name in ("setup.sh", "gpu_tools.sh"):
            shutil.copy(ROOT / "scripts" / name, self.root / "scripts")
        for name in ("pyproject.toml", "requirements.lock"):
            shutil.copy(ROOT / name, self.root)
        for tool in TOOLS:
            path = shutil.which(tool)
            assert path
            (self.bin / tool).symlink_to(path)
        self.put("uname", "echo Linux")
        self.put("id", "echo 1000")
        self.disk(megabytes=500_000)

    def put(self, name: str, script: str, folder: Path | None = None) -> None:
        path = (folder or self.bin) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def disk(self, megabytes: int) -> None:
        self.put("df", f"echo header; echo /dev/x 1 1 {1000 * megabytes} 1% /")

    def python(self, name: str, version: tuple[int, int]) -> None:
        """A Python of a version that can make no virtual environment."""
        shown = f"import sys; sys.version_info = ({version[0]}, {version[1]}, 0, 'final', 0)"
        self.put(
            name,
            f'[ "$1" = -c ] || exit 1\nprogram=$2; shift 2\n'
            f'exec {sys.executable} -c "{shown}\n$program" "$@"',
        )

    def run(self, script: str, **environment: str) -> str:
        """Return the one line on stderr of a script that stops."""
        done = subprocess.run(
            ["sh", str(self.root / "scripts" / script)],
            env={"PATH": str(self.bin), **environment},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 1, done.stdout + done.stderr
        (line,) = done.stderr.splitlines()
        return line


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


@pytest.mark.parametrize(
    ("there", "taken"),
    [
        ({"python3": (3, 11)}, "python3"),
        ({"python3": (3, 14), "python3.12": (3, 12)}, "python3.12"),
        ({"python3": (3, 14), "python3.11": (3, 11)}, "python3.11"),
        ({"python3": (3, 10), "python3.13": (3, 13)}, "python3.13"),
    ],
)
def test_a_tested_python_comes_before_a_newer_one(
    there: dict[str, tuple[int, int]], taken: str, machine: Machine
) -> None:
    for name, version in there.items():
        machine.python(name, version)
    assert f"stopped: {taken} cannot make a virtual environment" in machine.run("setup.sh")


def test_the_range_of_pyproject_decides(machine: Machine) -> None:
    machine.python("python3", (3, 10))
    assert "stopped: no Python >=3.11" in machine.run("setup.sh")
    project = machine.root / "pyproject.toml"
    text = project.read_text("utf8")
    begin = text.index("requires-python")
    end = text.index("\n", begin)
    project.write_text(text[:begin] + 'requires-python = ">=3.9,<3.11"' + text[end:], "utf8")
    assert "stopped: python3 cannot make" in machine.run("setup.sh")
    machine.python("python3", (3, 11))
    assert "stopped: no Python >=3.9,<3.11" in machine.run("setup.sh")


def test_the_disk_must_hold_the_cuda_libraries_where_they_may_come(machine: Machine) -> None:
    machine.python("python3", (3, 12))
    machine.disk(megabytes=11_000)
    assert "11000 MB free here; the environment and the build need 12 GB" in machine.run("setup.sh")
    enough = "cannot make a virtual environment"
    assert enough in machine.run("setup.sh", TORCH_INDEX="file:///wheels")
    machine.disk(megabytes=3_000)
    line = machine.run("setup.sh", TORCH_INDEX="file:///wheels")
    assert line == "stopped: 3000 MB free here; the environment and the build need 4 GB"
    machine.disk(megabytes=5_000)
    machine.put("uname", "echo Darwin")
    assert enough in machine.run("setup.sh")


def test_triton_needs_headers_and_a_compiler(machine: Machine, tmp_path: Path) -> None:
    include = tmp_path / "python3.12"
    include.mkdir()
    machine.put("python", f"echo {include}", machine.root / ".venv" / "bin")
    line = machine.run("gpu_tools.sh")
    assert f"no Python headers in {include}" in line
    assert "apt install python3.12-dev" in line
    (include / "Python.h").touch()
    assert "no C compiler (gcc, clang)" in machine.run("gpu_tools.sh")
    assert "no C compiler (no-such-cc)" in machine.run("gpu_tools.sh", CC="no-such-cc")
    machine.put("clang", "")
    done = subprocess.run(
        ["sh", str(machine.root / "scripts" / "gpu_tools.sh")],
        env={"PATH": str(machine.bin)},
        check=False,
    )
    assert done.returncode == 0


class Installs:
    """Stands for the commands that install: notes them, and fails those that contain a word."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, user: int, failing: str) -> None:
        self.commands: list[str] = []
        self.failing = failing
        monkeypatch.setattr(os, "geteuid", lambda: user)
        monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
        monkeypatch.setattr(chromium, "find", lambda: "/opt/chromium")
        monkeypatch.setattr(subprocess, "run", self)

    def __call__(self, command: tuple[str, ...], **_: object) -> subprocess.CompletedProcess[str]:
        line = " ".join(command)
        self.commands.append(line)
        failed = self.failing in line
        return subprocess.CompletedProcess(command, int(failed), "", "why\nE: it failed\n")


def test_root_takes_debian_s_chromium(monkeypatch: pytest.MonkeyPatch) -> None:
    installs = Installs(monkeypatch, user=0, failing="nothing")
    chromium.install()
    assert [line.split()[0] for line in installs.commands] == ["apt-get", "apt-get"]


def test_root_falls_back_to_playwright_s(monkeypatch: pytest.MonkeyPatch) -> None:
    installs = Installs(monkeypatch, user=0, failing="apt-get install")
    chromium.install()
    assert installs.commands[2].endswith("-m playwright install --with-deps chromium")
    assert installs.commands[3:] == ["/opt/chromium --version"]


@pytest.mark.parametrize("failing", ["playwright", "--version"])
def test_without_root_the_error_names_the_libraries(
    failing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    installs = Installs(monkeypatch, user=1000, failing=failing)
    with pytest.raises(SystemExit, match=r"E: it failed.*playwright install-deps.*CHROME") as stop:
        chromium.install()
    assert "\n" not in str(stop.value)
    assert installs.commands[0].endswith("-m playwright install chromium")
