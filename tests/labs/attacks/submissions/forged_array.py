# ruff: noqa
# tries: says that four bytes are an array of a terabyte
# outcome: shape and bytes must agree
# earns: 0
# says: not what the protocol allows
# task: sampler
import sys

sys.modules["__main__"].to_wire = lambda value: {
    "$array": "AAAA",
    "dtype": "float64",
    "shape": [1 << 40],
}


def distribution(logits, output_ids, params):
    return None


def draw(probabilities, u):
    return None
