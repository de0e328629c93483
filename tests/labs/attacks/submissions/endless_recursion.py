# ruff: noqa
# tries: calls itself without end
# outcome: the error is the answer
# earns: 0
# says: RecursionError
# task: sampler
def distribution(logits, output_ids, params):
    return distribution(logits, output_ids, params)


def draw(probabilities, u):
    return draw(probabilities, u)
