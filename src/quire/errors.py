"""The errors a user of quire can cause, each naming the value and the remedy.

They derive from the built-in exception a caller would expect, so that code which
catches `ValueError` keeps working.
"""


class QuireError(Exception):
    """Base of every error that quire raises on purpose."""


class InvalidRequestError(QuireError, ValueError):
    """A prompt or a sampling parameter that cannot be served."""


class UnsupportedModelError(QuireError, ValueError):
    """A checkpoint whose architecture or option quire does not implement."""


class CheckpointError(QuireError, ValueError):
    """A weight file that is missing, truncated or does not match its config."""


class NoFreeBlocks(QuireError):
    """The KV cache has fewer free blocks than were asked for."""
