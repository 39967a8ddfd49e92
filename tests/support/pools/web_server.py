"""A web server of a folder, in this process, that can be told to misbehave; and names that are awkward to serve."""

import functools
import http.server
import os
import threading
from collections import Counter
from contextlib import contextmanager

NAMES = (
    "a b.jpg", "ä.jpg", "50%.jpg", "x#1.jpg", "q?.jpg", "b[1].jpg", "x+y.jpg", "sub/c*.jpg", "sub/deep/e&f.jpg",
    "sub-1.jpg",
)  # fmt: skip
HIDDEN = ("sub/.hidden.jpg", ".cache/x.jpg")
"""Names of files, in no order."""


class WebServer(http.server.ThreadingHTTPServer):
    """Serves a folder.

    Attributes:
        requests: path -> number of requests for it.
        whole: path -> number of answers with the whole file.
        faults: path -> what happens instead of the first so many answers: a status, "drop", "silent", "drip" or
            "drip headers"; and how many.
        takes_ranges: whether parts of files are sent.
        pages: path -> a page that is sent for it.
    """

    daemon_threads = True

    def __init__(self, folder, takes_ranges):
        handler = functools.partial(_Handler, directory=os.fspath(folder))
        super().__init__(("127.0.0.1", 0), handler)
        self.requests = Counter()
        self.whole = Counter()
        self.faults = {}
        self.pages = {}
        self.takes_ranges = takes_ranges
        self.ended = threading.Event()

    @property
    def address(self):
        """The address of the folder."""
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request, client_address):
        """Say nothing of connections that clients have left."""


class _Handler(http.server.SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: WebServer

    def do_GET(self):
        path = self.path
        self.server.requests[path] += 1
        fault, left = self.server.faults.get(path, (None, 0))
        if left:
            self.server.faults[path] = fault, left - 1
            if fault == "silent":
                self.server.ended.wait(20)
            elif fault == "drip":
                self.send_response(200)
                self.send_header("Content-Length", "100")
                self.end_headers()
                self._drip()
            elif fault == "drip headers":
                self.wfile.write(b"HTTP/1.1 200 OK\r\nX-More: ")
                self._drip()
            elif fault == "drop":
                self.send_response(200)
                self.send_header("Content-Length", "1000")
                self.end_headers()
                self.wfile.write(b"begun")
            else:
                self.send_error(fault)
            self.close_connection = True
            return
        if path in self.server.pages:
            self._send(200, self.server.pages[path].encode(), {"Content-Type": "text/html"})
            return
        wanted = self.headers.get("Range")
        file = self.translate_path(path)
        if wanted and self.server.takes_ranges and os.path.isfile(file):
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            with open(file, "rb") as opened:
                data = opened.read()
            part = data[int(first) : int(last) + 1]
            self._send(206, part, {"Content-Range": f"bytes {first}-{int(first) + len(part) - 1}/{len(data)}"})
            return
        self.server.whole[path] += 1
        super().do_GET()

    def _drip(self):
        for _ in range(100):
            self.wfile.write(b"x")
            if self.server.ended.wait(0.02):
                break

    def _send(self, status, data, headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *words):
        pass


@contextmanager
def serving(folder, takes_ranges=False):
    """Yield a server of a folder."""
    with WebServer(folder, takes_ranges) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.ended.set()
            server.shutdown()
            thread.join()
