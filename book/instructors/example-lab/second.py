# %%
# An independent second solution: a dict a client, and the rule held beside the bucket.

# %% task="bucket"
# task: bucket
class TokenBucket:
    def __init__(self, rate, burst):
        self.rate, self.cap, self.clients = rate, burst * 1000, {}

    def admit(self, client, tokens, now):
        bucket = self.clients.setdefault(client, {"held": self.cap, "at": now})
        bucket["held"] += (now - bucket["at"]) * self.rate
        if bucket["held"] > self.cap:
            bucket["held"] = self.cap
        bucket["at"] = now
        if bucket["held"] // 1000 < tokens:
            return False
        bucket["held"] -= tokens * 1000
        return True

    def level(self, client):
        return self.clients[client]["held"] if client in self.clients else self.cap

    def change(self, client, thousandths):
        bucket = self.clients[client]
        bucket["held"] = sorted([self.cap, bucket["held"] + thousandths])[0]


# %% task="admission"
# task: admission
class Admission:
    def __init__(self, rate, burst):
        self.inner = TokenBucket(rate, burst)

    def level(self, client):
        return self.inner.level(client)

    ### BEGIN VARIANT refund
    def admit(self, client, tokens, now):
        return self.inner.admit(client, tokens, now)

    def finish(self, client, unused):
        for _ in range(unused):
            self.inner.change(client, 1000)

    ### END VARIANT
    ### BEGIN VARIANT debt
    def admit(self, client, tokens, now):
        self.inner.admit(client, 10**9, now)  # refused, so it only refills
        held = self.level(client)
        self.inner.change(client, 0 if held <= 0 else -tokens * 1000)
        return held > 0

    ### END VARIANT
    ### BEGIN VARIANT fee
    def admit(self, client, tokens, now):
        if self.inner.admit(client, tokens, now):
            return True
        held = self.level(client)
        self.inner.change(client, max(held - 1000, 0) - held)
        return False

    ### END VARIANT
