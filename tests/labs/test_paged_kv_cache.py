"""The lab on the paged KV cache."""

from __future__ import annotations

from lab_suite import LabSuite


class TestPagedKVCache(LabSuite):
    slug = "paged-kv-cache"
