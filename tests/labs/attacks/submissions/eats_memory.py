# ruff: noqa
# tries: takes memory without end
# outcome: the address space is limited
# earns: 0
# says: MemoryError
# task: sampler
kept = []


def distribution(logits, output_ids, params):
    while True:
        kept.append(bytes(1 << 28))  # not written to: addresses, no pages, so it is quick


def draw(probabilities, u):
    return distribution(None, None, None)
