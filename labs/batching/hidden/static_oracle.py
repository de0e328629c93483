"""A static batch, told as its rows: what each would compute in every step."""

from __future__ import annotations

from typing import Any


class StaticOracle:
    """What `StaticScheduler` must do."""

    NAME = "StaticScheduler"

    def __init__(self, num_seats: int) -> None:
        self.num_seats = num_seats
        self.queue: list[tuple[str, int, int]] = []
        self.rows: list[dict[str, Any]] = []

    def add(self, request: str, prompt: int, output: int) -> None:
        """Take a request."""
        if request in [name for name, _, _ in self.queue] + [row["name"] for row in self.rows]:
            raise ValueError(request)
        self.queue.append((request, prompt, output))

    def schedule(self) -> dict[str, Any]:
        """The next step."""
        if not self.rows:
            self._form()
        entries = []
        for row in self.rows:
            if row["open"]:
                first = row["said"] == 0
                start = 0 if first else row["prompt"] + row["said"] - 1
                entries.append([row["name"], start, row["prompt"] if first else 1])
        width = max((count for _, _, count in entries), default=0)
        useful = sum(count for _, _, count in entries)
        return {"entries": entries, "padding": width * len(self.rows) - useful}

    def _form(self) -> None:
        chosen: list[int] = [0] if self.queue else []
        while len(chosen) < min(self.num_seats, len(self.queue)):
            others = [i for i in range(len(self.queue)) if i not in chosen]
            far = {i: abs(self.queue[i][1] - self.queue[0][1]) for i in others}
            chosen.append(min(others, key=lambda i: (far[i], i)))
        for i in sorted(chosen):
            name, prompt, output = self.queue[i]
            row = {"name": name, "prompt": prompt, "output": output}
            self.rows.append(row | {"said": 0, "open": True})
        self.queue = [item for i, item in enumerate(self.queue) if i not in chosen]

    def update(self, ended: list[str]) -> list[str]:
        """What the step said."""
        for row in self.rows:
            if row["open"]:
                row["said"] += 1
                row["open"] = row["name"] not in ended and row["said"] < row["output"]
        if any(row["open"] for row in self.rows):
            return []
        answers = [row["name"] for row in self.rows]
        self.rows = []
        return answers
