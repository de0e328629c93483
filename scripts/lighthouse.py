"""Run Lighthouse over the built site and hold its scores to the book's marks.

Called by `scripts/lighthouse.sh`, which provides node, Lighthouse and CHROME_PATH.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading

import chromium
from serve import make_server

sys.path.insert(0, "book/_ext")
from bookmeta import ROOT, pages, slugs

CATEGORIES = ("performance", "accessibility", "best-practices", "seo")
# A phone's processor and network vary so much that its other three are the desktop's.
MARKS = {"desktop": dict.fromkeys(CATEGORIES, 95), "mobile": {"performance": 80}}


def scores(url: str, form: str) -> dict[str, int]:
    """Lighthouse's score of each category, 0 to 100."""
    command = [
        str(ROOT / "node_modules" / ".bin" / "lighthouse"),
        url,
        "--quiet",
        "--output=json",
        f"--only-categories={','.join(CATEGORIES)}",
        f"--chrome-flags=--headless=new {' '.join(chromium.FLAGS)}",
    ]
    if form == "desktop":
        command.append("--preset=desktop")
    report = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    folder = ROOT / "_build" / "lighthouse"
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{url.rstrip('/').rsplit('/', 1)[1]}-{form}.json"
    (folder / name).write_text(json.dumps(report))
    return {key: round(100 * report["categories"][key]["score"]) for key in CATEGORIES}


def main() -> int:
    server = make_server(ROOT / "_build" / "html")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    failed = False
    for page in [pages()[0], *(f"chapters/{slug}" for slug in slugs())]:
        for form, marks in MARKS.items():
            found = scores(f"http://127.0.0.1:{server.server_port}/{page}.html", form)
            low = [key for key, mark in marks.items() if found[key] < mark]
            failed |= bool(low)
            line = "  ".join(f"{key} {found[key]}" for key in CATEGORIES)
            print(f"{page:36} {form:8} {line}{'  UNDER: ' + ', '.join(low) if low else ''}")
    server.shutdown()
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
