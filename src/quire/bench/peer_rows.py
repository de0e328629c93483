"""Rows of `quire bench peers`, every run kept, and what they say of two engines.

A comparison favours vLLM wherever there is a choice: of all its settings and processes the one
with the best median stands against the runs of all of quire's processes together.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from quire.bench.measurement import Row


@dataclass(frozen=True)
class PeerRow(Row):
    """The runs of one work in one process; `value` is the median of the warm ones.

    `runs` are all of them in their order, in `unit`; the first `cold` met their load anew.
    """

    engine: str = ""
    version: str = ""
    torch: str = ""
    setting: str = ""
    runs: list[float] = field(default_factory=list)
    cold: int = 0

    @property
    def work(self) -> str:
        """`<model>-<load>`, the first part of the case."""
        return self.case.partition("/")[0]

    @property
    def warm(self) -> list[float]:
        """The runs behind the cold ones."""
        return self.runs[self.cold :]


def peer_row(
    work: str, process: int, setting: str, facts: dict[str, Any], runs: list[float], cold: int
) -> PeerRow:
    """Make the row of one work in the `process`-th process, from 1, of a setting.

    Args:
        work: `<model>-<load>`; the loads of one request, `batch1…`, are in ms a token, the
            others in tokens a second.
        facts: `engine`, `version`, `torch`, and as numbers whatever else the engine said.
    """
    single = "-batch1" in work
    engine = facts["engine"] if facts["engine"] == "quire" else _name(facts)
    return PeerRow(
        case="/".join([work, engine, setting.replace(" ", "-"), str(process)]),
        metric="ms_per_token" if single else "tokens_per_second",
        value=statistics.median(runs[cold:]),
        unit="ms" if single else "tokens/s",
        parameters={
            "process": process,
            **{key: fact for key, fact in facts.items() if isinstance(fact, int | float)},
        },
        engine=facts["engine"],
        version=facts["version"],
        torch=facts["torch"],
        setting=setting,
        runs=runs,
        cold=cold,
    )


def _name(facts: dict[str, Any]) -> str:
    return f"{facts['engine']}-{facts['version']}"


@dataclass(frozen=True)
class Comparison:
    """One work: the warm runs of quire, the best process of vLLM, and vLLM's fastest run."""

    work: str
    unit: str
    quire: list[float]
    best: PeerRow
    fastest: float  # of any setting and process, cold runs included

    @property
    def median(self) -> float:
        """Of quire's warm runs."""
        return statistics.median(self.quire)

    @property
    def ratio(self) -> float:
        """How many times as fast quire is, median against median."""
        return self.speed(self.median) / self.speed(self.best.value)

    @property
    def least(self) -> float:
        """The same for quire's slowest warm run against vLLM's fastest of all."""
        return min(map(self.speed, self.quire)) / self.speed(self.fastest)

    def speed(self, value: float) -> float:
        """Turn a value into one that grows with speed."""
        return _speed(self.unit, value)


def _speed(unit: str, value: float) -> float:
    return 1 / value if unit == "ms" else value


def compare(rows: Sequence[PeerRow], version: str | None = None) -> list[Comparison]:
    """Compare quire with vLLM, all or one version of it, on each work that both have run."""
    found = []
    for work in dict.fromkeys(row.work for row in rows):
        mine = [row for row in rows if row.work == work]
        quire = [run for row in mine if row.engine == "quire" for run in row.warm]
        peers = [r for r in mine if r.engine == "vllm" and version in (None, r.version)]
        if quire and peers:
            unit = peers[0].unit
            best = max(peers, key=lambda row: _speed(row.unit, row.value))
            fastest = max(
                (run for row in peers for run in row.runs), key=lambda run: _speed(unit, run)
            )
            found.append(Comparison(work, unit, quire, best, fastest))
    return found


def with_baselines(rows: Sequence[PeerRow]) -> list[Row]:
    """Give quire's rows vLLM's best median of each setting, by version and setting."""
    best: dict[str, dict[str, float]] = {}
    for row in rows:
        if row.engine != "quire":
            of_work = best.setdefault(row.work, {})
            name = f"{row.engine} {row.version} {row.setting}"
            known = of_work.get(name, row.value)
            of_work[name] = max(known, row.value, key=lambda value: _speed(row.unit, value))
    return [
        replace(row, baselines=best.get(row.work, {})) if row.engine == "quire" else row
        for row in rows
    ]
