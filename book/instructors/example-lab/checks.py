"""The public checks: a few fixed cases whose answers fit in a line."""

from __future__ import annotations

from labkit.reader.subject import Subject


def full_then_empty(student: Subject, variant: str) -> None:
    """A burst of 10 is spent, refused, and refilled at 2 tokens a second."""
    bucket = student.new("TokenBucket", 2, 10)
    bucket.expect("admit", "ada", 10, 0, want=True, because="the bucket starts full")
    bucket.expect("admit", "ada", 1, 499, want=False, because="0.998 tokens have come in")
    bucket.expect("admit", "ada", 1, 500, want=True, because="2 a second for half a second")


def two_clients(student: Subject, variant: str) -> None:
    """What one client takes is not missed by another."""
    bucket = student.new("TokenBucket", 1, 5)
    bucket.expect("admit", "ada", 5, 0, want=True)
    bucket.expect("admit", "bob", 5, 0, want=True, because="bob's bucket is his own")
    bucket.expect("level", "ada", want=0)


def the_rule(student: Subject, variant: str) -> None:
    """The rule of this notebook, on one client."""
    bucket = student.new("Admission", 1, 5)
    bucket.expect("admit", "ada", 4, 0, want=True)
    if variant == "refund":
        bucket.expect("finish", "ada", 3, want=None)
        bucket.expect("level", "ada", want=4000, because="1 was left and 3 came back")
    elif variant == "debt":
        bucket.expect("admit", "ada", 4, 0, want=True, because="one token is left")
        bucket.expect("level", "ada", want=-3000)
    else:
        bucket.expect("admit", "ada", 4, 0, want=False, because="one token is left")
        bucket.expect("level", "ada", want=0, because="the refusal cost it")


CHECKS = {"bucket": [full_then_empty, two_clients], "admission": [the_rule]}
