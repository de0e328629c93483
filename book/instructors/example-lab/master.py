# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # Lab: who is let in
#
# A server that takes every request answers none of them in time. You write the part
# that refuses: a token bucket for each client, then one with a rule of its own. 100
# points, about an hour.

# %%
import importlib.util

if importlib.util.find_spec("labkit") is None:
    # In Colab; torch is there already and stays as it is.
    get_ipython().run_line_magic("pip", "install -q 'quire[labs] @ git+{{repository}}'")

import labkit

LAB = "{{lab}}"  # which lab this is, and which variant

# %% [markdown]
# ## Task 1: a token bucket per client (core, 60 points)
#
# **Specification.** `admit` says whether a request for `tokens` tokens of `client` is
# let in at `now` (milliseconds, an integer), and takes them from the client's bucket
# if it is.
#
# - Each client has a bucket of its own. A client's bucket is full at its first
#   request: it holds `burst` tokens.
# - Between two requests it refills by `rate` tokens a second, to the thousandth of a
#   token, and never above `burst`.
# - A request is let in when the bucket holds at least `tokens`. A refused request
#   takes nothing.
# - `level` is what the client's bucket held after its latest request, in thousandths
#   of a token; for a client not seen yet, what a full one holds.
# - `change` moves the level of a client that was seen by so many thousandths, below
#   zero if need be and never above `burst`.
# - `now` never decreases.
#
# *Deliverable:* `TokenBucket`; its check passes.


# %% task="bucket"
# task: bucket
class TokenBucket:
    """Let each client use `rate` tokens a second, and `burst` at once."""

    def __init__(self, rate: int, burst: int) -> None:
        ### BEGIN SOLUTION
        self.rate, self.burst = rate, burst
        self._seen: dict[str, tuple[int, int]] = {}  # level in thousandths, time in ms
        ### END SOLUTION

    def admit(self, client: str, tokens: int, now: int) -> bool:
        """Say whether the request is let in, and take its tokens if it is."""
        ### BEGIN SOLUTION
        level, then = self._seen.get(client, (self.level(client), now))
        level = min(1000 * self.burst, level + self.rate * (now - then))
        let_in = level >= 1000 * tokens
        self._seen[client] = (level - 1000 * tokens if let_in else level, now)
        return let_in
        ### END SOLUTION

    def level(self, client: str) -> int:
        """Thousandths of a token in the client's bucket after its latest request."""
        ### BEGIN SOLUTION
        return self._seen.get(client, (1000 * self.burst, 0))[0]
        ### END SOLUTION

    def change(self, client: str, thousandths: int) -> None:
        """Put so much into the client's bucket, or take it out; the time stays."""
        ### BEGIN SOLUTION
        level, then = self._seen[client]
        self._seen[client] = (min(1000 * self.burst, level + thousandths), then)
        ### END SOLUTION


# %% check="bucket"
labkit.check("bucket")

# %% [markdown]
# ## Task 2: a rule of its own (depth, 30 points)
#
# **Specification.** `Admission` has the interface of task 1 and one difference. Your
# class of task 1 is called here, by its three methods alone: in grading it may be
# another's. This is, in one sentence, the rule:
#
# ### BEGIN VARIANT refund
# `finish(client, unused)` puts back `unused` tokens that a request had reserved,
# never above `burst`, and returns nothing.
# ### END VARIANT
# ### BEGIN VARIANT debt
# A client whose bucket holds any part of a token is let in whatever it asks for, the
# bucket may fall below zero, and refilling pays the debt first.
# ### END VARIANT
# ### BEGIN VARIANT fee
# A refused request costs one token, or what is left if that is less.
# ### END VARIANT
#
# All else is as in task 1.
#
# *Deliverable:* `Admission`; its check passes.


# %% task="admission"
# task: admission
class Admission(TokenBucket):
    """A token bucket per client, with this notebook's rule."""

    ### BEGIN VARIANT refund
    def finish(self, client: str, unused: int) -> None:
        """Put back what a request had reserved and did not use."""
        ### BEGIN SOLUTION
        self.change(client, 1000 * unused)
        ### END SOLUTION

    ### END VARIANT
    ### BEGIN VARIANT debt
    def admit(self, client: str, tokens: int, now: int) -> bool:
        """Let in whoever has any part of a token."""
        ### BEGIN SOLUTION
        super().admit(client, 0, now)  # refills
        if self.level(client) <= 0:
            return False
        self.change(client, -1000 * tokens)
        return True
        ### END SOLUTION

    ### END VARIANT
    ### BEGIN VARIANT fee
    def admit(self, client: str, tokens: int, now: int) -> bool:
        """Let in or take the fee."""
        ### BEGIN SOLUTION
        let_in = super().admit(client, tokens, now)
        if not let_in:
            self.change(client, -min(1000, self.level(client)))
        return let_in
        ### END SOLUTION

    ### END VARIANT


# %% check="admission"
labkit.check("admission")

# %% [markdown]
# ## The bound explained (10 points)
#
# How many tokens can one client be given in any `n` seconds, with the bucket of task
# 1? Say why, and name a client that gets as many. Three to five sentences.

# %% [markdown] written="explain"
# <!-- written: explain -->
# ### BEGIN SOLUTION
# At most `burst + n · rate`: what the bucket held when the time began, which is
# `burst` at most, and what came in since. A client that waits until its bucket is
# full, takes all of it and then asks for one token each time one has come in gets
# exactly that.
# ### END SOLUTION
