"""labkit: checks the book's labs in the notebook, and builds, verifies and grades them."""

from labkit.check import CheckFailed, check
from labkit.save import restore, save, submit

__all__ = ["CheckFailed", "check", "restore", "save", "submit"]
