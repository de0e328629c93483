"""labkit: checks the book's labs in the notebook, and builds, verifies and grades them."""

from labkit.reader.check import CheckFailed, check
from labkit.reader.save import restore, save, submit

__all__ = ["CheckFailed", "check", "restore", "save", "submit"]
