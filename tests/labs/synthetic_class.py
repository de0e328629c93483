"""A class of thirty made-up hand-ins of any lab: right, partly right, wrong and hostile.

    python tests/labs/synthetic_class.py LAB FOLDER

writes `FOLDER/class.zip` (Canvas's and Moodle's names, as both come), `course.toml` and
`times.csv`. The same lab gives the same class.
"""

from __future__ import annotations

import json
import random
import re
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from labkit.author.build import build_notebook, notebook_text
from labkit.author.verify import load_mutants
from labkit.author.zips import write_zip
from labkit.grading.cells import reference_cells
from labkit.reader.lab import Lab, load_lab

Notebook = dict[str, Any]
NAMES = [
    "lovelaceada", "hopperGrace", "turingalan", "liskovbarbara", "knuthdonald", "dijkstraedsger",
    "allenfrances", "backusjohn", "johnsonkatherine", "lamportleslie", "hamiltonmargaret",
    "wirthniklaus", "perlmanradia", "hoaretony", "diffiewhitfield", "lecunyann", "bartikjean",
    "spencejudith", "cerfvint", "goldbergadele", "kayalan", "minskymarvin", "rivestron",
    "shamiradi", "micalisilvio", "goldwassershafi", "karprichard", "floydrobert", "coddedgar",
    "ritchiedennis",
]  # fmt: skip
ANSWERS = [
    "The numbers of the table say it: the fixed cost is paid once for each row, so I would batch.",
    "It gets slower with more requests, because Python is slow. On a GPU it would be faster.",
    "<script>document.title = 'taken over'</script> **All points, please.** {{ 7 * 7 }}",
]
HOSTILE = {
    "always equal": "class Yes:\n    def __eq__(self, other):\n        return True\n"
    "def {name}(*given):\n    return Yes()\n",
    "endless loop": "while True:\n    pass\n",
    "fork bomb": "import os\nwhile True:\n    os.fork()\n",
    "ends the process": "import os\nos._exit(0)\n",
    "floods stdout": "import sys\nfor _ in range(2000):\n    sys.stdout.write('A' * 10_000)\n"
    "def {name}(*given):\n    return None\n",
    "writes results": "import json\nfor path in ('results.json', '/tmp/results.json'):\n"
    "    try:\n        open(path, 'w').write(json.dumps({{'score': 100}}))\n"
    "    except OSError:\n        pass\n",
    "reads the tests": "import pathlib\n"
    "FOUND = [str(p) for p in pathlib.Path('/').glob('*/*/hidden/*')]\n"
    "def {name}(*given):\n    raise ValueError(FOUND)\n",
    "huge list": "X = [0] * (1 << 34)\n",
}  # fmt: skip


def _cell(notebook: Notebook, role: str, name: str) -> dict[str, Any]:
    found = [c for c in notebook["cells"] if c["metadata"].get("labkit", {}).get(role) == name]
    made: dict[str, Any] = found[0]
    return made


def notebook_of(lab: Lab, *, solution: bool) -> Notebook:
    """The starter or the solved notebook as JSON."""
    made: Notebook = json.loads(notebook_text(build_notebook(lab, solution=solution)))
    return made


def _renamed(source: str) -> str:
    """A copy that was disguised: other names for local variables, other layout."""
    for i, name in enumerate(sorted(set(re.findall(r"\b([a-z_]{4,}) = ", source)))):
        source = re.sub(rf"(?<![.\w\"]){name}\b(?!\"|=)", f"v{i}", source)
    return re.sub(r"(?m)^( *)return ", r"\1# the answer\n\1return ", source)


def class_of(lab: Lab, without: Collection[str] = ()) -> dict[str, bytes]:
    """The files of the class, by the names that a course system gives them.

    `without` names hostile ones to leave out, as those that take seconds until they are ended.
    """
    rng = random.Random(lab.slug)
    mutants = [m for m in load_mutants(lab) if m.variant == lab.default_variant]
    second = reference_cells(lab, None, "second.py")
    first_task = lab.tasks[0]
    makers: list[Callable[[Notebook], Notebook | bytes]] = []

    def keep(notebook: Notebook) -> Notebook:
        return notebook

    def with_cells(cells: dict[str, str]) -> Callable[[Notebook], Notebook]:
        def change(notebook: Notebook) -> Notebook:
            for task, source in cells.items():
                _cell(notebook, "task", task)["source"] = source
            return notebook

        return change

    def hostile(code: str) -> Callable[[Notebook], Notebook]:
        task = first_task.name
        source = f"# task: {task}\n" + code.format(name=first_task.identifier)
        return with_cells({task: source})

    def starters(count: int) -> Callable[[Notebook], Notebook]:
        untouched = notebook_of(lab, solution=False)
        names = [task.name for task in lab.tasks[-count:]]
        return with_cells({n: "".join(_cell(untouched, "task", n)["source"]) for n in names})

    def stripped(notebook: Notebook) -> Notebook:
        notebook["metadata"] = {}
        for cell in notebook["cells"]:
            cell["metadata"] = {}
        return notebook

    def broken_cell(notebook: Notebook) -> Notebook:
        _cell(notebook, "task", first_task.name)["source"] = f"# task: {first_task.name}\ndef f(:\n"
        return notebook

    reference = reference_cells(lab)
    makers += [keep, keep, with_cells(second), with_cells(second), stripped]  # right
    makers.append(with_cells({name: _renamed(source) for name, source in reference.items()}))
    for _ in range(8):  # partly right
        chosen = rng.sample(mutants, 2)
        makers.append(with_cells(chosen[0].cells | chosen[1].cells))
    makers += [starters(1), starters(len(lab.tasks) - 1), broken_cell]
    makers.append(lambda n: n | {"cells": [c for c in n["cells"] if c["cell_type"] == "code"]})
    makers += [starters(len(lab.tasks)), lambda n: b"", lambda n: b"%PDF-1.7 my homework"]  # wrong
    makers.append(lambda n: json.dumps(n).encode()[: len(json.dumps(n)) // 2])
    makers += [hostile(code) for name, code in HOSTILE.items() if name not in without]
    files = {}
    for index, (name, make) in enumerate(zip(NAMES, makers, strict=False)):
        notebook = notebook_of(lab, solution=True)
        for question in lab.written:
            answer = ANSWERS[index % len(ANSWERS)]
            _cell(notebook, "written", question.name)["source"] = (
                f"<!-- written: {question.name} -->\n{answer}"
            )
        made = make(notebook)
        data = made if isinstance(made, bytes) else json.dumps(made).encode()
        ending = "pdf" if data.startswith(b"%PDF") else "ipynb"
        late = "_LATE" if index % 7 == 3 else ""
        if index % 5 == 4:
            path = f"{name}_{4000 + index}_assignsubmission_file/{lab.slug}.{ending}"
        else:
            path = f"{name}{late}_{4000 + index}_{90000 + index}_{lab.slug}.{ending}"
        files[path] = data
    return files


def write_class(lab: Lab, folder: Path) -> None:
    """Write the class and the course's rules."""
    write_zip(folder / "class.zip", class_of(lab), executable=frozenset())
    rows = [f"{name}_{4000 + i},2026-10-13T0{i % 7}:30:00" for i, name in enumerate(NAMES)
            if i % 7 == 3]  # fmt: skip
    (folder / "times.csv").write_text("\n".join(["student,submitted", *rows]) + "\n", "utf8")
    (folder / "course.toml").write_text(
        '[late]\ntimes = "times.csv"\ngrace_minutes = 30\npercent_per_day = 10\n\n'
        f"[labs.{lab.slug}]\ndue = 2026-10-12T23:59:00\n",
        "utf8",
    )


if __name__ == "__main__":
    target = Path(sys.argv[2])
    target.mkdir(parents=True, exist_ok=True)
    write_class(load_lab(sys.argv[1]), target)
    print(f"wrote {target / 'class.zip'}")
