"""A server of our own, in this process, that answers in every bad way."""

import contextlib
import hashlib
import socketserver
import threading
import time

import pytest

from cnnjax.data import download as module
from cnnjax.data.download import download
from cnnjax.errors import InputError

CONTENT = bytes(range(256)) * 1000
SHA256 = hashlib.sha256(CONTENT).hexdigest()
HEADER = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(CONTENT)


def trickle(send, data, pause=0.02):
    for byte in data:
        send(bytes([byte]))
        time.sleep(pause)


# What the server sends. Each ends by itself within seconds, so that its thread does.
ANSWERS = {
    "good": lambda send: send(HEADER + CONTENT),
    "another content": lambda send: send(HEADER + CONTENT[::-1]),
    "cut": lambda send: send(HEADER + CONTENT[:1000]),
    "more": lambda send: send(HEADER.replace(b"256000", b"999999") + CONTENT * 3),
    "nothing": lambda send: time.sleep(2),
    "headers and then nothing": lambda send: (send(HEADER), time.sleep(2)),
    "headers byte by byte": lambda send: trickle(send, (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 80)),
    "bytes now and then": lambda send: (send(HEADER), trickle(send, CONTENT[:100])),
    "no such file": lambda send: send(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"),
    "no HTTP": lambda send: send(b"\0\1\2\3"),
    "goes in circles": lambda send: send(b"HTTP/1.1 302 Found\r\nLocation: /x\r\nContent-Length: 0\r\n\r\n"),
}


@pytest.fixture
def fetch(tmp_path, monkeypatch):
    """`fetch(answer)` downloads what a server with this answer sends to `tmp_path / "file"`."""
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)

    def get(answer, progress=None):
        if "byte" in answer or "nothing" in answer:
            monkeypatch.setattr(module, "STALL", 0.5)

        class Handler(socketserver.BaseRequestHandler):
            def handle(self):
                self.request.recv(1 << 16)
                with contextlib.suppress(OSError):  # the other side has given up
                    ANSWERS[answer](self.request.sendall)

        with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
            server.daemon_threads, server.block_on_close = True, False
            threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
            url = f"http://127.0.0.1:{server.server_address[1]}/file"
            try:
                download(
                    url,
                    tmp_path / "file",
                    size=len(CONTENT),
                    sha256=hashlib.sha256(CONTENT).hexdigest(),
                    progress=progress,
                )
            finally:
                server.shutdown()

    return get


def test_a_file_comes_whole_and_its_progress_is_told(fetch, tmp_path):
    reports = []
    fetch("good", lambda *report: reports.append(report))
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert reports[-1] == ("download file", len(CONTENT), len(CONTENT))


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ("another content", "wrong checksum"),
        ("cut", "cannot be reached"),
        ("more", "must have 256,000 bytes, and sends more"),
        ("nothing", "cannot be (reached|downloaded)"),
        ("headers and then nothing", "cannot be (reached|downloaded)"),
        ("headers byte by byte", r"fewer than 65,536 bytes in 0\.5 seconds"),
        ("bytes now and then", r"fewer than 65,536 bytes in 0\.5 seconds"),
        ("no such file", "404"),
        ("no HTTP", "cannot be reached"),
        ("goes in circles", "cannot be reached"),
    ],
)
def test_a_bad_server_is_one_line_and_leaves_no_file(fetch, tmp_path, answer, message):
    with pytest.raises(InputError, match=rf"http://127\.0\.0\.1.*{message}") as error:
        fetch(answer)
    assert "\n" not in str(error.value) and list(tmp_path.iterdir()) == []
