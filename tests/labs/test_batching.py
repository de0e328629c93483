"""The lab on batching."""

from __future__ import annotations

from lab_suite import LabSuite


class TestBatching(LabSuite):
    slug = "batching"
