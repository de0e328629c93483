"""Taking the task cells and written answers out of whatever a reader hands in.

A submission is a notebook, or the small file that `labkit submit` writes. Only task cells and
written answers count. A cell is found by its `# task: name` line, failing that by the metadata
or the id that it was released with, failing that by a task line with a slip of the pen. What
cannot be used gets a reason, and the rest is graded.
"""

from __future__ import annotations

import difflib
import json
import re
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from labkit.reader.cells import (
    MAX_SOURCE,
    WRITTEN_LINE,
    cell_source,
    encodable,
    frontier_cells,
    task_of,
    written_frontier,
    written_of,
)
from labkit.reader.lab import Lab
from labkit.reader.outputs import TooLarge, without_outputs

MAGIC = re.compile(r"^([ \t]*)[%!]", re.MULTILINE)
CELLS_BEGIN = re.compile(r'"cells"\s*:\s*\[')
# What a starter holds where an answer goes; nbgrader writes the second into its own.
UNANSWERED = ("*Your answer here.*", "YOUR ANSWER HERE")
MAX_QUOTED = 60  # characters that a note quotes of what the file says
MAX_WORDS = 300  # characters of Python's own words, which may quote a name of any length
SUBMIT_FORMAT = 1


@dataclass
class Submission:
    """The task cells and written answers of one hand-in.

    `problems` holds, by task, why its cell cannot be graded; `notes` what the reader
    should know though nothing is lost by it.
    """

    cells: dict[str, str] = field(default_factory=dict)
    written: dict[str, str] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    variant: str | None = None  # as the notebook names it
    other_lab: str | None = None  # the lab that the notebook says it is of, where it is another
    student: str = ""  # whose it is, as the file's name says
    frontier: list[str] = field(default_factory=list)  # names of the frontier cells written

    @property
    def defects(self) -> list[str]:
        """Every sentence about what is wrong with the hand-in, each once."""
        return list(dict.fromkeys([*self.notes, *self.problems.values()]))


def read_submission(path: Path, lab: Lab) -> Submission:
    """Read a notebook or submit file; never raises for what a reader may have done to it."""
    try:
        with path.open("rb") as file:
            return read(file, lab)
    except OSError as error:
        return unreadable(lab, f"the file cannot be read: {error.strerror}")


def read(stream: IO[bytes], lab: Lab) -> Submission:
    """Read an open notebook or submit file, of whatever size its outputs are."""
    try:
        data = without_outputs(stream)
    except TooLarge as large:
        return unreadable(lab, str(large))
    return parse(data, lab)


def parse(data: bytes, lab: Lab) -> Submission:
    """Read the bytes of a notebook or submit file; see `read`."""
    if not data.strip():
        return unreadable(lab, "the file is empty")
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        return _truncated(data, lab)
    if type(content) is dict and type(content.get("cells")) is list:
        return collect(lab, content, content["cells"])
    if type(content) is dict and "labkit" in content and type(content.get("cells")) is dict:
        return _collect_submit_file(lab, content)
    return unreadable(lab, "the file is not a notebook: it holds no list of cells")


def unreadable(lab: Lab, reason: str) -> Submission:
    """A submission of which nothing can be used."""
    return Submission(problems={task.name: reason for task in lab.tasks})


def _truncated(data: bytes, lab: Lab) -> Submission:
    """Save the whole cells of a notebook whose JSON breaks off or breaks."""
    text = data.decode("utf8", "replace")
    cells: list[Any] = []
    begin = CELLS_BEGIN.search(text)
    position = begin.end() if begin else len(text)
    decoder = json.JSONDecoder()
    while True:
        while position < len(text) and text[position] in " \t\r\n,":
            position += 1
        try:
            cell, position = decoder.raw_decode(text, position)
        except (ValueError, RecursionError):
            break
        cells.append(cell)
    if not cells:
        return unreadable(lab, "the file is not a notebook: it is not valid JSON")
    submission = collect(lab, {}, cells)
    submission.notes.insert(
        0, f"the file is damaged: its first {len(cells)} cells could be read, the rest is lost"
    )
    return submission


def _collect_submit_file(lab: Lab, content: dict[str, Any]) -> Submission:
    """Take the cells out of what `labkit submit` or `labkit save` wrote."""
    submission = Submission()
    _note_variant(lab, submission, _dig(content, "variant"))
    if content["labkit"] != SUBMIT_FORMAT:
        submission.notes.append(
            f"the file says format {_quoted(content['labkit'])}, read as format {SUBMIT_FORMAT}"
        )
    if content.get("lab") != lab.slug:
        _note_other_lab(lab, submission, content.get("lab"))
    for task in lab.tasks:
        source = content["cells"].get(task.name)
        if type(source) is str:
            submission.cells[task.name] = encodable(source)
    answers = content.get("written")
    for question in lab.written:
        answer = answers.get(question.name) if type(answers) is dict else None
        if type(answer) is str:
            _keep_answer(submission, question.name, answer)
    frontier = content.get("frontier")
    if type(frontier) is dict:
        _note_frontier(lab, submission, frontier)
    _prepare_all(lab, submission, "in the file")
    return submission


def collect(lab: Lab, notebook: dict[str, Any], cells: list[Any]) -> Submission:
    """Take what is to be graded out of a notebook's JSON."""
    submission = find(lab, notebook, cells)
    _note_frontier(lab, submission, frontier_cells(cells))
    _prepare_all(lab, submission, "in the notebook")
    submission.notes = list(dict.fromkeys(submission.notes))  # a million copies are one sentence
    return submission


def find(lab: Lab, notebook: dict[str, Any], cells: list[Any]) -> Submission:
    """Find the task cells and answers of a notebook's JSON, as they stand there."""
    submission = Submission()
    of_lab = _dig(notebook, "metadata", "labkit", "lab")
    if of_lab in (None, lab.slug):
        _note_variant(lab, submission, _dig(notebook, "metadata", "labkit", "variant"))
    else:
        _note_other_lab(lab, submission, of_lab)
    names = [task.name for task in lab.tasks]
    by_label: dict[str, str] = {}
    by_slip: dict[str, tuple[str, str]] = {}
    for cell in cells:
        source = cell_source(cell)
        if source is None:
            continue
        label = _label(cell)
        if cell.get("cell_type") != "code":
            _collect_written(lab, submission, label, source)
            continue
        name = task_of(source, lab)
        if name in names:
            if name in submission.cells:
                submission.notes.append(f"several cells say `# task: {name}`: the last one counts")
            submission.cells[name] = source
        elif label in names:
            by_label.setdefault(label, source)
        elif name is not None:
            near = difflib.get_close_matches(name, names, n=1, cutoff=0.7)
            by_slip.setdefault(near[0] if near else "", (name, source))
    for name, source in by_label.items():
        if name not in submission.cells:
            submission.cells[name] = source
            submission.notes.append(f"{name}: found by its metadata, its `# task:` line is gone")
    for meant, (slip, source) in by_slip.items():
        words = f"a cell says `# task: {slip}`, which is no task here"
        if meant and meant not in submission.cells:
            submission.cells[meant] = source
            words += f": taken for {meant}"
        submission.notes.append(words)
    return submission


def _note_other_lab(lab: Lab, submission: Submission, named: Any) -> None:
    """Keep which lab a file says it is of, where that is another."""
    submission.other_lab = _quoted(named).strip("'")
    submission.notes.append(f"the file is of the lab {_quoted(named)}, not {lab.slug}")


def _note_frontier(lab: Lab, submission: Submission, cells: dict[str, Any]) -> None:
    """Keep which of the lab's frontier cells the reader has written; each has its own judge."""
    sources = {name: cells[name] for name in lab.frontier if type(cells.get(name)) is str}
    submission.frontier = [*written_frontier(sources, lab)]


def _note_variant(lab: Lab, submission: Submission, named: str | None) -> None:
    """Take over the variant that a file names, where the lab has such a one."""
    if named is None or named in lab.variants:
        submission.variant = named
    else:
        known = ", ".join(lab.variants)
        submission.notes.append(f"the file names the variant {_quoted(named)}, none of: {known}")


def _quoted(value: Any) -> str:
    """What a file says, short and printable, as a note quotes it."""
    if type(value) in (list, dict):
        return f"a {type(value).__name__}"
    text = repr(value[:MAX_QUOTED] if type(value) is str else value)
    return text if len(text) <= MAX_QUOTED else text[: MAX_QUOTED - 1] + "…"


def _label(cell: dict[str, Any]) -> str:
    """The task or question that a cell was released as: from metadata, else from its id."""
    for role in ("task", "written"):
        found = _dig(cell, "metadata", "labkit", role)
        if found is not None:
            return found
    for found in (_dig(cell, "metadata", "nbgrader", "grade_id"), _dig(cell, "id")):
        role, _, name = (found or "").partition("-")
        if role in ("task", "written"):
            return name
    return ""


def _prepare_all(lab: Lab, submission: Submission, where: str) -> None:
    for task in lab.tasks:
        if task.name not in submission.cells:
            submission.problems[task.name] = f"no cell with the line `# task: {task.name}` {where}"
        else:
            _prepare(submission, task.name)
    for question in lab.written:
        if question.name not in submission.written:
            submission.notes.append(f"no answer to `{question.name}` {where}")


def _prepare(submission: Submission, name: str) -> None:
    """Set notebook magics aside and find what cannot be compiled."""
    source = submission.cells[name]
    reason = why_not_python(source, name)
    if reason is not None and len(source) <= MAX_SOURCE:
        without, count = MAGIC.subn(r"\1pass  # ", source)
        if count and why_not_python(without, name) is None:
            submission.notes.append(f"{name}: {count} line(s) starting with % or ! are left out")
            submission.cells[name], reason = without, None
    if reason is not None:
        del submission.cells[name]
        submission.problems[name] = reason


def why_not_python(source: str, name: str) -> str | None:
    """Say why a cell cannot be compiled, or return None."""
    if len(source) > MAX_SOURCE:
        return f"the cell has {len(source)} characters; {MAX_SOURCE} are allowed"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            compile(source, f"<cell {name}>", "exec", dont_inherit=True)
    except SyntaxError as error:
        return f"syntax error in line {error.lineno}: {error.msg}"[:MAX_WORDS]
    except MemoryError:
        return "the cell cannot be compiled: it takes more memory than reading a hand-in may"
    except (ValueError, RecursionError) as error:
        return f"the cell cannot be compiled: {error}"[:MAX_WORDS]
    return None


def _collect_written(lab: Lab, submission: Submission, label: str, source: str) -> None:
    name = written_of(source) or label
    if any(question.name == name for question in lab.written):
        _keep_answer(submission, name, source)


def _keep_answer(submission: Submission, name: str, source: str) -> None:
    """Keep an answer unless it is the starter's empty one; the longest text that is one counts."""
    answer = WRITTEN_LINE.sub("", source)
    for stub in UNANSWERED:
        answer = answer.replace(stub, "")
    answer = encodable(answer.strip())
    if len(answer) > MAX_SOURCE:
        submission.notes.append(f"{name}: the answer is cut after {MAX_SOURCE:,} characters")
        answer = answer[:MAX_SOURCE]
    if len(answer) > len(submission.written.get(name, "")):
        submission.written[name] = answer


def _dig(value: Any, *keys: str) -> str | None:
    for key in keys:
        value = value.get(key) if type(value) is dict else None
    return value if type(value) is str else None
