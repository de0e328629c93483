# ruff: noqa
# tries: raises an exception that raises when it is printed
# outcome: the child says so
# earns: 0
# says: cannot be printed
# task: sampler
class Silent(Exception):
    def __str__(self):
        raise SystemExit(0)

    __repr__ = __str__


raise Silent
