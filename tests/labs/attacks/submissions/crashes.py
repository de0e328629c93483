# ruff: noqa
# tries: crashes the interpreter
# outcome: the process ended, and the next test has another
# earns: 0
# says: the process ended
# task: sampler
import ctypes


def distribution(logits, output_ids, params):
    return ctypes.string_at(0)


def draw(probabilities, u):
    return ctypes.string_at(0)
