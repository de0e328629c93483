# ruff: noqa
# tries: sleeps past every limit on processor time
# outcome: wall time is limited too
# earns: 0
# says: no answer within 2 s
# seconds: 2
# task: sampler
import time


def distribution(logits, output_ids, params):
    return time.sleep(1e6)


def draw(probabilities, u):
    return time.sleep(1e6)
