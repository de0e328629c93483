"""Serve a folder on the loopback interface, with gzip and the right types.

`python scripts/serve.py _build/html --port 8000` is what `make book` runs; the site's tests
and Lighthouse use the same server, so what they measure is what a static host sends.
"""

from __future__ import annotations

import argparse
import errno
import gzip
import sys
from functools import lru_cache, partial
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

HOST = "127.0.0.1"
COMPRESSIBLE = {".css", ".html", ".js", ".json", ".map", ".mjs", ".svg", ".txt", ".xml", ".inv"}


@lru_cache(maxsize=512)
def _gzipped(path: Path, modified_ns: int) -> bytes:
    return gzip.compress(path.read_bytes(), compresslevel=6, mtime=0)


class Handler(SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    extensions_map = SimpleHTTPRequestHandler.extensions_map | {
        ".css": "text/css; charset=utf-8",
        ".html": "text/html; charset=utf-8",
        ".js": "text/javascript; charset=utf-8",
        ".json": "application/json",
        ".mjs": "text/javascript; charset=utf-8",
        ".svg": "image/svg+xml",
        ".wasm": "application/wasm",
        ".woff2": "font/woff2",
    }

    def do_GET(self) -> None:
        self._send(body=True)

    def do_HEAD(self) -> None:
        self._send(body=False)

    def _send(self, body: bool) -> None:
        path = Path(self.translate_path(self.path))
        if path.is_dir():
            if not unquote(urlsplit(self.path).path).endswith("/"):
                self.send_response(HTTPStatus.MOVED_PERMANENTLY)
                self.send_header("Location", urlsplit(self.path).path + "/")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            path /= "index.html"
        if not path.is_file():
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        zipped = path.suffix in COMPRESSIBLE and "gzip" in self.headers.get("Accept-Encoding", "")
        data = _gzipped(path, path.stat().st_mtime_ns) if zipped else path.read_bytes()
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", self.guess_type(str(path)))
        self.send_header("Content-Length", str(len(data)))
        # `?v=…` names one version of a file for good; a page may change under its name.
        fixed = "v=" in urlsplit(self.path).query or "digest=" in urlsplit(self.path).query
        self.send_header("Cache-Control", "max-age=31536000" if fixed else "max-age=600")
        if zipped:
            self.send_header("Content-Encoding", "gzip")
            self.send_header("Vary", "Accept-Encoding")
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing for each request."""


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A reader who leaves a page half-loaded is no error."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


def make_server(folder: Path, port: int = 0) -> Server:
    """A server of `folder` on the loopback interface, not yet running.

    `port` 0 takes a free one. Raises OSError if the port is taken.
    """
    return Server((HOST, port), partial(Handler, directory=str(folder)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("folder", type=Path)
    parser.add_argument("--port", type=int, default=8000)
    arguments = parser.parse_args()
    if not (arguments.folder / "index.html").is_file():
        raise SystemExit(f"{arguments.folder} holds no site; build it with: make html")
    try:
        server = make_server(arguments.folder, arguments.port)
    except OSError as error:
        if error.errno not in (errno.EADDRINUSE, errno.EACCES):
            raise
        reason = "taken" if error.errno == errno.EADDRINUSE else "not allowed"
        other = f"make book PORT={arguments.port + 81}"
        raise SystemExit(f"port {arguments.port} is {reason}; choose another: {other}") from None
    print(f"The book: http://{HOST}:{server.server_port}/   (Ctrl-C ends)", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        print()


if __name__ == "__main__":
    main()
