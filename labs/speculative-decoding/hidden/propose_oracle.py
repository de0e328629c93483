"""A vote of all places, as a list of what followed them."""

from __future__ import annotations


def followers(tokens: list[int], end: list[int]) -> list[int]:
    """What followed each place of `end`, the earliest first."""
    return [
        tokens[after]
        for after in range(len(end), len(tokens))
        if tokens[after - len(end) : after] == end
    ]


def next_draft(
    tokens: list[int], drafts: list[int], longest: int, shortest: int, separator: int
) -> int | None:
    """The draft behind these drafts, or None where drafting ends."""
    text = [*tokens, *drafts]
    sizes = [size for size in range(shortest, longest + 1) if size <= len(text)]
    ends = [text[len(text) - size :] for size in sizes]
    votes = [followers(tokens, end) for end in ends if separator not in end]
    found = [vote for vote in votes if vote]
    if not found:
        return None
    latest_first = found[-1][::-1]
    most = max(latest_first.count(token) for token in latest_first)
    winner = next(token for token in latest_first if latest_first.count(token) == most)
    return None if winner == separator else winner


def propose(
    tokens: list[int], longest: int, shortest: int, separator: int, k: int
) -> list[int]:  # fmt: skip
    """What `propose` must return."""
    drafts: list[int] = []
    while len(drafts) < k:
        draft = next_draft(tokens, drafts, longest, shortest, separator)
        if draft is None:
            break
        drafts.append(draft)
    return drafts
