"""How a program lists the candidates of a row from the maxima of its groups.

Why it is enough to look at them says `quire.kernels.candidates`.
"""

from __future__ import annotations

from quire.kernels.runtime import jit, tl
from quire.kernels.search import least_from, load_logits, lowest_kept, measure


@jit
def mass_of_groups(
    maxima,
    tops,
    masses,
    low,
    top,
    scale,
    num_groups: tl.constexpr,
    num_parts: tl.constexpr,
    block: tl.constexpr,
):
    """What the tokens weigh of all groups that have one of at least `low`, others of theirs too."""
    total = tl.zeros((block,), tl.float32)
    for start in range(0, num_groups, block):
        place = start + tl.arange(0, block)
        there = place < num_groups
        counts = there & (tl.load(maxima + place, there, other=-float("inf")) >= low)
        # Of other groups the factor is 0. With 0 for their top it would overflow in a row whose
        # logits are all far below 0, and 0 times infinity is not 0.
        part = tops + place // (num_groups // num_parts)
        top_of_part = tl.load(part, counts, other=-float("inf"))
        mass = tl.load(masses + place, counts, other=0.0)
        total += mass * tl.exp2((top_of_part - top) * scale)
    return tl.sum(total)


@jit
def list_candidates(
    row,
    maxima,
    tops,
    masses,
    chosen,
    values,
    token_ids,
    floor,
    top,
    scale,
    top_k,
    top_p,
    total,
    vocab_size: tl.constexpr,
    num_groups: tl.constexpr,
    group: tl.constexpr,
    num_parts: tl.constexpr,
    few: tl.constexpr,
    most: tl.constexpr,
    capacity: tl.constexpr,
    block: tl.constexpr,
    gather_block: tl.constexpr,
):
    """List the tokens of a row from some logit up, all that stay among them; return how many.

    0: there is no list, since it would be long or hold too little. Arguments are those of
    `quire.kernels.search.cut` and the row's of `Groups`.
    """
    wanted = tl.where(top_k > 0, top_k, num_groups)
    wanted = tl.where(total > 0, few, wanted).to(tl.float32)
    low = floor
    if wanted < num_groups:
        low = least_from(maxima, num_groups, floor, block)
        low = lowest_kept(maxima, num_groups, low, top, wanted, top, 0.0, False, block)
    num_chosen = _choose_groups(maxima, chosen, low, num_groups, block)
    if num_chosen < wanted:  # there are no more groups with a logit that min-p keeps
        low = floor
    mass = total  # no less than the list will hold
    if total > 0:
        mass = mass_of_groups(maxima, tops, masses, low, top, scale, num_groups, num_parts, block)
    count = 0
    if (num_chosen <= most) & (mass >= top_p * total):
        count = _list_from(
            row, chosen, num_chosen, values, token_ids, low, vocab_size, group, capacity,
            gather_block,
        )  # fmt: skip
        if count > capacity:
            count = 0
        elif (total > 0) & (low > floor):
            _, ties, mass = measure(values, count, low, top, scale, block)
            mass += ties * tl.exp2((low - top) * scale)
            count = tl.where(mass >= top_p * total, count, 0)
    return count


@jit
def _choose_groups(maxima, chosen, low, num_groups: tl.constexpr, block: tl.constexpr):
    """Write down the groups with a logit of at least `low`; return how many."""
    num_chosen = 0
    for start in range(0, num_groups, block):
        maximum = load_logits(maxima, num_groups, start, block)
        chooses = ((maximum >= low) & (maximum > -float("inf"))).to(tl.int32)
        place = num_chosen + tl.cumsum(chooses, 0) - 1
        tl.store(chosen + place, start + tl.arange(0, block), chooses > 0)
        num_chosen += tl.sum(chooses)
    tl.debug_barrier()  # a thread reads what others have written
    return num_chosen


@jit
def _list_from(
    row,
    chosen,
    num_chosen,
    values,
    token_ids,
    low,
    vocab_size: tl.constexpr,
    group: tl.constexpr,
    capacity: tl.constexpr,
    block: tl.constexpr,
):
    """List the groups' tokens of at least `low` and above -inf; return how many there are."""
    count = 0
    for start in range(0, num_chosen * group, block):
        member = start + tl.arange(0, block)
        there = member < num_chosen * group
        token = tl.load(chosen + member // group, there, other=0) * group + member % group
        value = tl.load(row + token, there & (token < vocab_size), other=-float("inf"))
        logit = value.to(tl.float32)
        lists = ((logit >= low) & (logit > -float("inf"))).to(tl.int32)
        place = count + tl.cumsum(lists, 0) - 1
        fits = (lists > 0) & (place < capacity)
        tl.store(values + place, value, fits)
        tl.store(token_ids + place, token, fits)
        count += tl.sum(lists)
    tl.debug_barrier()
    return count
