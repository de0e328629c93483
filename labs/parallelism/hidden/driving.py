"""What tests do with a reader's functions and generators: the same as the public checks do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from labkit.reader.lab import import_checks, load_lab

_CHECKS: Any = import_checks(load_lab(Path(__file__).resolve().parents[1]))

Events = list[tuple[Any, ...]]
Steps = _CHECKS.Steps
asked, count, expect, messages = _CHECKS.asked, _CHECKS.count, _CHECKS.expect, _CHECKS.messages
pure, ran, refuses = _CHECKS.pure, _CHECKS.ran, _CHECKS.refuses
sent_by, words_of = _CHECKS.sent_by, _CHECKS.words_of
