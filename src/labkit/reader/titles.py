"""What a public check says that it is about: one line, in the words of the reader's variant."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

Check = TypeVar("Check", bound=Callable[..., Any])


def titled(**of_variant: str) -> Callable[[Check], Check]:
    """Give a check a title for each variant named, where its docstring would speak of all."""

    def give(check: Check) -> Check:
        check.titles = of_variant  # type: ignore[attr-defined]
        return check

    return give


def title_of(check: Callable[..., Any], variant: str) -> str:
    """The check's title for this variant, else its docstring, without the last full stop."""
    titles: dict[str, str] = getattr(check, "titles", {})
    words = titles.get(variant) or check.__doc__ or check.__name__
    return " ".join(words.split()).rstrip(".")
