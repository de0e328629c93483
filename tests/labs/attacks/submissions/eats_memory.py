# ruff: noqa
# tries: takes memory without end
# outcome: the address space is limited
# earns: 0
# says: MemoryError
# task: sampler
kept = []


def distribution(logits, output_ids, params):
    while True:
        kept.append(bytearray(1 << 28))


def draw(probabilities, u):
    return distribution(None, None, None)
