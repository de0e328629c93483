# ruff: noqa
# tries: returns a string of 200 MB
# outcome: an answer larger than the limit ends the child
# earns: 0
# says: larger than 8388608
# task: sampler
def distribution(logits, output_ids, params):
    return "x" * (200 << 20)


def draw(probabilities, u):
    return "x" * (200 << 20)
