"""The attack suite: submissions that try to win points or do harm, and what came of each.

    PYTHONPATH=src python tests/labs/attacks/attack_suite.py [NAME…]

prints one row an attack: what it tries, what it earned, what harm was seen, what stopped it.
The instructor's page on threats shows that output (book/instructors/output/attacks.txt). A
submission is one task cell under a head of comments: what it `tries`, the `outcome` in words, the
points that its plain code `earns`, and what the report `says`, as a regular expression.
"""

from __future__ import annotations

import hashlib
import os
import re
import socket
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, chdir
from dataclasses import dataclass
from pathlib import Path

from labkit.grading.grade import Grader
from labkit.grading.report import Report
from labkit.grading.variants import CourseKey, choose
from labkit.reader.lab import Lab, load_lab
from labkit.reader.notebook import Submission, why_not_python
from labkit.sandbox.process import Limits

SUBMISSIONS = Path(__file__).parent / "submissions"
SLUG = "autoregressive-decoding"
HEAD = re.compile(r"^# (tries|outcome|earns|says|seconds|key|with|task): (.*)$", re.M)
HEADER = "| attack | tries | earned, of what plain code earns | harm | why |\n|---|---|---|---|---|"
SECRET = "what only the grader may read"
DEVICES = [path for path in map(Path, ("/dev/null", "/dev/zero", "/dev/urandom")) if path.exists()]
KEY = CourseKey(b"a key of the tests, 32 bytes long")
WRONG_PREDECESSORS = {
    "sampler": "def distribution(logits, output_ids, params):\n    return None\n\n\n"
    "def draw(probabilities, u):\n    return 0\n",
    "stream": "def penalise(logits, prompt_ids, output_ids, params):\n    return logits\n",
}


@dataclass(frozen=True)
class Attack:
    """One submission and what is expected of it."""

    name: str
    source: str
    head: dict[str, str]

    @property
    def title(self) -> str:
        """The name in words, which a narrow column can break."""
        return self.name.replace("_", " ")

    @property
    def earns(self) -> float:
        """Points of its plain code."""
        return float(self.head["earns"])


@dataclass(frozen=True)
class Result:
    """What grading an attack gave, and what it did to the machine."""

    attack: Attack
    report: Report
    leaks: list[str]
    damage: list[str]

    @property
    def words(self) -> str:
        """All that the report says about the tests."""
        return "\n".join(o.reason for o in self.report.outcomes if o.reason is not None)


def load_attacks() -> list[Attack]:
    """Read every submission of the suite."""
    found = []
    for path in sorted(SUBMISSIONS.glob("*.py")):
        source = path.read_text("utf8")
        found.append(Attack(path.stem, source, dict(HEAD.findall(source))))
    return found


class Host:
    """What an attack might harm or read: files, devices, a server, an environment variable.

    `damage` compares all of it, and the lab's own folder, with how it was.
    """

    def __init__(self, lab: Lab) -> None:
        """Prepare a folder with a secret, and two servers."""
        self.lab = lab
        self._stack = ExitStack()

    def __enter__(self) -> Host:
        self.folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory()))
        (self.folder / "secret").write_text(SECRET, "utf8")
        self._stack.enter_context(chdir(self.folder))
        self._servers = [socket.create_server(("127.0.0.1", 0))]
        if sys.platform == "linux":
            self._servers.append(socket.socket(socket.AF_UNIX))
            self._servers[-1].bind("\0labkit-canary")
            self._servers[-1].listen()
        for server in self._servers:
            self._stack.enter_context(server)
            server.settimeout(0.0)
        os.environ["LABKIT_CANARY"] = SECRET
        self._stack.callback(os.environ.pop, "LABKIT_CANARY")
        self._before = self._digest()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def fill_in(self, source: str) -> str:
        """Tell an attack where things are, so that it need not guess."""
        places = {
            "@CANARY@": str(self.folder),
            "@LAB@": str(self.lab.folder),
            "@PORT@": str(self._servers[0].getsockname()[1]),
            "@PID@": str(os.getpid()),
            "@SITE@": sysconfig.get_path("purelib"),
        }
        for mark, value in places.items():
            source = source.replace(mark, value)
        return source

    def _digest(self) -> dict[str, str]:
        """The folder, which is also the grader's own while attacks run, and what is hidden."""
        hidden = self.lab.folder / "hidden"
        own = [p for p in self.folder.rglob("*") if ".hypothesis" not in p.parts]
        paths = [*own, self.lab.folder / "master.py", *hidden.glob("*.*")]
        found = {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in paths if p.is_file()}
        for path in DEVICES:
            kept = path.stat()
            found[str(path)] = f"{kept.st_mode:o} {kept.st_uid} {kept.st_gid} {kept.st_mtime_ns}"
        return found

    def damage(self) -> list[str]:
        """Say what is not as it was."""
        after = self._digest()
        changed = self._before.items() ^ after.items()
        found = [f"{path} changed" for path in sorted({path for path, _ in changed})]
        for server in self._servers:
            try:
                server.accept()[0].close()
                found.append("a connection came in")
            except BlockingIOError:
                pass
        return found


def secrets_of(lab: Lab) -> list[str]:
    """Lines that no report may show: of the hidden tests, the oracles and the solutions."""
    files = [*sorted((lab.folder / "hidden").glob("*.py")), lab.folder / "master.py"]
    lines = [line.strip() for file in files for line in file.read_text("utf8").splitlines()]
    given = ("#", '"', "def ", "import ", "from ")
    return [SECRET, *(line for line in lines if len(line) > 25 and not line.startswith(given))]


def run(attack: Attack, host: Host) -> Result:
    """Grade one attack; whatever it does, this returns."""
    lab = host.lab
    seconds = float(attack.head.get("seconds", 0))
    limits = Limits(call_seconds=seconds, wall_seconds=2 * seconds) if seconds else Limits()
    chosen = choose(lab, KEY if "key" in attack.head else None)
    task = attack.head["task"]
    source = host.fill_in(attack.source)
    assert why_not_python(source, task) is None, attack.name
    cells = {**(WRONG_PREDECESSORS if "with" in attack.head else {}), task: source}
    problems = {other.name: "not handed in" for other in lab.tasks if other.name not in cells}
    submission = Submission(cells=cells, problems=problems)
    grader = Grader(lab, chosen.variant, chosen.seed, limits=limits)
    report = grader.grade(submission, [lab.task(task)])
    words = "\n".join(str(outcome.reason) for outcome in report.outcomes)
    leaks = [line for line in secrets_of(lab) if line in words]
    return Result(attack, report, leaks, host.damage())


def rows(names: list[str]) -> Iterator[list[str]]:
    """Run attacks (all, or those named); yield name, what it tries, points, outcome."""
    with Host(load_lab(SLUG)) as host:
        for attack in load_attacks():
            if names and attack.name not in names:
                continue
            result = run(attack, host)
            points = f"{result.report.score:g} of {attack.earns:g}"
            harm = "; ".join([*result.leaks, *result.damage]) or "none"
            yield [attack.title, attack.head["tries"], points, harm, attack.head["outcome"]]


def line(row: Sequence[str]) -> str:
    """One row of the table."""
    return f"| {' | '.join(row)} |"


def main() -> None:
    """Print the table in Markdown."""
    print(HEADER)
    for row in rows(sys.argv[1:]):
        print(line(row), flush=True)


if __name__ == "__main__":
    main()
