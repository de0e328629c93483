class NoFreeBlocks(Exception):
    """The pool has fewer free blocks than were asked for."""
