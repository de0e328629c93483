"""What a child sees: the bubblewrap command line.

An empty read-only root, into which come the C library, the interpreter with its standard
library, the packages that a lab allows, and `child.py`. There is nowhere to write, no /proc,
no network, no environment and no other process. quire, where a lab allows it, comes as a copy
without the modules that the lab asks the reader to write.
"""

from __future__ import annotations

import functools
import glob
import importlib.util
import os
import shutil
import stat
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from pathlib import Path

# All that bubblewrap is given, so all that it can pass on.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
DEVICES = ("null", "zero", "random", "urandom")
NOBODY = 65534
LABKIT = Path(__file__).resolve().parent
CHILD = LABKIT / "child.py"

# What stands in place of a module that a lab asks the reader to write.
WITHHELD = """
def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)

    def refuse(*args, **named):
        words = f"{__name__}.{name} is what this lab asks you to write; it is not installed here"
        raise ModuleNotFoundError(words)

    return type(name, (), {"__new__": refuse})
"""


class NoSandbox(RuntimeError):
    """A submission cannot be isolated here; the message says what to do."""


def find_bubblewrap() -> str:
    """Return the path of `bwrap`.

    Raises:
        NoSandbox: there is none, as on macOS.
    """
    found = shutil.which("bwrap")
    if found is None:
        raise NoSandbox(
            "no bubblewrap (bwrap) on this machine, so a submission cannot be isolated: install "
            "it (Debian: apt install bubblewrap), or pass --unsafe-local to run submissions with "
            "your own rights, which is for your own notebooks only"
        )
    return found


@functools.cache  # looking around costs as much as starting a child
def package_paths(packages: tuple[str, ...], withheld: tuple[str, ...]) -> dict[str, Path]:
    """What to put beside the standard library for each package: a name and where it lies.

    A package's libraries and metadata, which a wheel puts beside it, come along.

    Raises:
        NoSandbox: a package is not installed here.
    """
    found: dict[str, Path] = {}
    for name in packages:
        spec = importlib.util.find_spec(name)
        places = [*(spec.submodule_search_locations or ())] if spec else []
        if spec is None or not (spec.origin or places):
            raise NoSandbox(f"the lab's tasks may import {name!r}, which is not installed here")
        path = Path(spec.origin or places[0])  # several wheels may share a folder, as in `nvidia`
        path = path.parent if path.name == "__init__.py" else path
        beside = [*path.parent.glob(f"{name}.libs")]
        for entry in sys.path:
            beside += Path(entry).glob(f"{name}-*.dist-info")
        inside = tuple(module for module in withheld if module.startswith(f"{name}."))
        if inside:
            path = Path(copy_without(path, inside).name) / path.name
        found |= {shown.name: shown for shown in [path, *beside]}
    return found


@functools.cache
def user_without_bubblewrap(packages: tuple[str, ...], withheld: tuple[str, ...]) -> int | None:
    """Which user a child becomes under --unsafe-local: nobody, where root starts it.

    None where it stays who started it: another user than root, or root on a machine whose
    interpreter or packages nobody may read, such as one installed in root's home.
    """
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return None
    needed = [Path(path) for path in _standard_library()]
    needed += [path.resolve() for path in package_paths(packages, withheld).values()]
    return NOBODY if all(_anyone_may_read(path) for path in needed) else None


def _anyone_may_read(path: Path) -> bool:
    """Whether every user may list or read `path` and walk down to it."""
    wanted = stat.S_IROTH | (stat.S_IXOTH if path.is_dir() else 0)
    walked = all(parent.stat().st_mode & stat.S_IXOTH for parent in path.parents)
    return walked and path.stat().st_mode & wanted == wanted


@functools.cache
def copy_without(folder: Path, withheld: tuple[str, ...]) -> tempfile.TemporaryDirectory[str]:
    """Copy a package, each of its modules `withheld` (as imported) replaced by an empty one.

    The others can still import its names; whoever uses one is told why it is not there.

    Returns:
        A folder that holds the copy and is removed when this process ends.

    Raises:
        NoSandbox: there is no such module, so withholding it would withhold nothing.
    """
    places = [Path(*module.split(".")[1:]) for module in withheld]
    for module, place in zip(withheld, places, strict=True):
        if not (folder / place).is_dir() and not (folder / place).with_suffix(".py").is_file():
            raise NoSandbox(f"the lab withholds {module}, and there is no such module")
    home = tempfile.TemporaryDirectory(prefix="labkit-")
    os.chmod(home.name, 0o755)
    copy = Path(home.name) / folder.name
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("__pycache__", "_data"))
    for place in places:
        shutil.rmtree(copy / place, ignore_errors=True)  # a package; a module is overwritten
        (copy / place).with_suffix(".py").write_text(WITHHELD, "utf8")
    return home


def command(
    bubblewrap: str, packages: tuple[str, ...], withheld: tuple[str, ...], filter_fd: int
) -> list[str]:
    """Return the command line up to the interpreter's own arguments.

    Args:
        bubblewrap: the path of `bwrap`.
        packages: what may be imported beside the standard library.
        withheld: modules of those packages that are taken out.
        filter_fd: where `bwrap` reads the filter of system calls.

    Raises:
        NoSandbox: a package is missing, or this project lies where the child would see it.
    """
    interpreter = os.path.realpath(sys.executable)
    made = [bubblewrap, "--unshare-all", "--die-with-parent", "--new-session"]
    made += ["--uid", str(NOBODY), "--gid", str(NOBODY), "--hostname", "lab", "--cap-drop", "ALL"]
    made += ["--seccomp", str(filter_fd)]
    shown = _system_libraries()
    for name in ("/lib", "/lib64"):
        if os.path.islink(name):
            made += ["--symlink", os.readlink(name), name]
        elif os.path.isdir(name):
            shown.append(name)
    libraries = _interpreter_libraries()
    if libraries:
        made += ["--setenv", "LD_LIBRARY_PATH", os.path.dirname(libraries[0])]
    shown += [*_standard_library(), *libraries, interpreter]
    for path in shown:
        made += ["--ro-bind", path, path]
    # Whatever is installed for the machine's own Python: quire may be, and labkit with it.
    masked = _installed_folders(shown)
    for path in masked:
        made += ["--tmpfs", path, "--remount-ro", path]
    _refuse_to_show(LABKIT, shown, masked)
    for name, place in package_paths(packages, withheld).items():
        made += ["--ro-bind", str(place), f"/packages/{name}"]
    for name in DEVICES:  # the host's own nodes: the filter of system calls guards mode and times
        made += ["--dev-bind", f"/dev/{name}", f"/dev/{name}"]
    made += ["--ro-bind", str(CHILD), "/child.py"]
    return [*made, "--remount-ro", "/", "--chdir", "/", interpreter]


def _system_libraries() -> list[str]:
    """The C library and what packages link against, without the machine's programs."""
    by_machine = f"/usr/lib/{sysconfig.get_config_var('MULTIARCH')}"  # as Debian keeps them
    folders = [by_machine if os.path.isdir(by_machine) else "/usr/lib", "/usr/lib64"]
    return [path for path in folders if os.path.isdir(path)] + glob.glob("/usr/lib/ld-*.so*")


def _standard_library() -> list[str]:
    paths = (sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"))
    # In a virtual environment `platstdlib` names a folder of that environment.
    return sorted({p for p in paths if os.path.isfile(f"{p}/os.py") or "lib-dynload" in _list(p)})


def _list(path: str) -> list[str]:
    return os.listdir(path) if os.path.isdir(path) else []


def _interpreter_libraries() -> list[str]:
    """libpython, where the interpreter is linked with it and it lies in a place of its own."""
    folder = sysconfig.get_config_var("LIBDIR")
    if not folder or Path(folder).is_relative_to("/usr/lib"):
        return []
    return sorted(glob.glob(f"{folder}/libpython3*.so*"))


def _installed_folders(shown: Sequence[str]) -> list[str]:
    """Folders of installed packages inside what is shown."""
    found = set()
    for path in shown:
        for name in ("site-packages", "dist-packages"):
            for pattern in (name, f"python3*/{name}"):
                found |= set(glob.glob(f"{path}/{pattern}"))
    return sorted(path for path in found if os.path.isdir(path) and not os.path.islink(path))


def _refuse_to_show(folder: Path, shown: Sequence[str], masked: Sequence[str]) -> None:
    def inside(paths: Sequence[str]) -> bool:
        return any(folder.is_relative_to(path) for path in paths)

    if inside(shown) and not inside(masked):
        raise NoSandbox(
            f"labkit lies in {folder}, which a submission's process would see: move it elsewhere"
        )
