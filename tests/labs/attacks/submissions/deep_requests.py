# ruff: noqa
# tries: asks the reference with lists nested so deep that they can be read but not written again
# outcome: more than 32 levels are refused here too, and what cannot be read ends the child
# task: engine
# earns: 0
# says: not what the protocol allows
import sys

frame = sys._getframe()
while "replies" not in frame.f_locals:
    frame = frame.f_back
replies, requests = frame.f_locals["replies"], frame.f_locals["requests"]
for depth in range(600, 2200):  # about 980 can be read on Python 3.11, 1,500 on 3.12
    deep = b"[" * depth + b"]" * depth
    replies.write(b'{"ask": {"op": "call", "name": "penalise", "args": ' + deep + b"}}\n")
    replies.flush()
    requests.readline()
