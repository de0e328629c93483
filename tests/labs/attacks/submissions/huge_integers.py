# ruff: noqa
# tries: answers with integers of a hundred thousand digits
# outcome: integers of more than 1000 bits are refused
# earns: 0
# says: not what the protocol allows|error
# task: sampler
import sys

sys.set_int_max_str_digits(0)


def distribution(logits, output_ids, params):
    return [10**100_000] * 8


def draw(probabilities, u):
    return 10**100_000
