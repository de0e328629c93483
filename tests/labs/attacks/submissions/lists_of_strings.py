# ruff: noqa
# tries: answers with one long string among many short ones, for which numpy makes 400 GB of room
# outcome: a list with a string in it is no list of numbers
# task: sampler
# earns: 0
# says: got a value of type list|expected numbers
def distribution(logits, output_ids, params):
    return ["9" * 1_000_000] + [""] * 100_000


def draw(probabilities, u):
    return ["9" * 1_000_000] + [""] * 100_000
