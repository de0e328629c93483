# ruff: noqa
# tries: never returns
# outcome: the call's time ends the child, and the cell's other tests with it
# earns: 0
# says: no answer within 2 s
# seconds: 2
# task: sampler
while True:
    pass
