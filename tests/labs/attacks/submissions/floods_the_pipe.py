# ruff: noqa
# tries: writes without end to every descriptor, the reply's among them
# outcome: more than the limit ends the child
# earns: 0
# says: larger than|protocol
# task: sampler
import os


def distribution(logits, output_ids, params):
    line = b"x" * (1 << 20)
    while True:
        for number in range(3, 16):
            try:
                os.write(number, line)
            except OSError:
                pass


def draw(probabilities, u):
    return distribution(None, None, None)
