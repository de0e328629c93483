"""The lab on autoregressive decoding."""

from __future__ import annotations

from lab_suite import LabSuite


class TestAutoregressiveDecoding(LabSuite):
    slug = "autoregressive-decoding"
