"""labkit: checks the book's labs in the notebook, and builds, verifies and grades them."""

from labkit.check import CheckFailed, check

__all__ = ["CheckFailed", "check"]
