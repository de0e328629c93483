# ruff: noqa
# tries: answers with integers that no float can hold
# outcome: they are numbers, and the wrong ones
# earns: 0
# says: not what the protocol allows|expected
# task: sampler
def distribution(logits, output_ids, params):
    return [10**400] * len(logits)


def draw(probabilities, u):
    return 10**400
