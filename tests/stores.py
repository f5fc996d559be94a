"""Real stores that fail on demand: a web server of ranges, and moto's S3 behind the same faults."""

from __future__ import annotations

import hashlib
import http.client
import logging
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

BLOCK = 1024


@dataclass
class Answer:
    """What a store without faults says."""

    status: int
    headers: dict[str, str]
    body: bytes = b""


Fault = Callable[["Request", Answer], None]
"""Answers a request in a way of its own."""


@dataclass
class Request:
    """One request as it came; `number` counts them from 0."""

    number: int
    method: str
    path: str
    headers: dict[str, str]
    handler: BaseHTTPRequestHandler = field(repr=False)
    again: Callable[[], Answer] = field(repr=False)
    """Asks once more, with the headers as they are by now."""

    @property
    def start(self) -> int:
        """First byte asked for."""
        return int(re.split("[=-]", self.headers.get("range", "bytes=0-"))[1])


def unavailable(request: Request, answer: Answer) -> None:
    send(request, Answer(503, {"Content-Length": "0"}))


def not_found(request: Request, answer: Answer) -> None:
    send(request, Answer(404, {"Content-Length": "0"}))


def unauthorized(request: Request, answer: Answer) -> None:
    send(request, Answer(401, {"Content-Length": "0"}))


def expired(request: Request, answer: Answer) -> None:
    """S3's answer to a session token whose time is over."""
    send_s3_error(request, 400, "ExpiredToken", "The provided token has expired.")


def denied(request: Request, answer: Answer) -> None:
    """S3's answer to keys that open other objects."""
    send_s3_error(request, 403, "AccessDenied", "Access Denied")


def send_s3_error(request: Request, status: int, code: str, words: str) -> None:
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{words}</Message></Error>".encode()
    send(request, Answer(status, {"Content-Type": "application/xml", "Content-Length": str(len(body))}, body))


def reset(request: Request, answer: Answer) -> None:
    """Half of the answer, then the connection is torn down; what was sent may be lost with it."""
    send(request, answer, stop=len(answer.body) // 2)
    cut(request)


def truncate(request: Request, answer: Answer) -> None:
    """Half of the answer, then a polite end."""
    send(request, answer, stop=len(answer.body) // 2)
    request.handler.close_connection = True


def refuse(request: Request, answer: Answer) -> None:
    """Nothing at all, as of a server that is down."""
    cut(request)


def hang(request: Request, answer: Answer) -> None:
    """Half of the answer, and then silence for as long as the client stays."""
    send(request, answer, stop=len(answer.body) // 2)
    request.handler.connection.settimeout(60)
    with suppress(OSError):
        request.handler.connection.recv(1)
    cut(request)


def crawl(request: Request, answer: Answer) -> None:
    """A block at a time, with pauses."""
    send(request, answer, pause_s=0.05)


def cut(request: Request) -> None:
    """End the connection with a reset."""
    connection = request.handler.connection
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    request.handler.close_connection = True
    connection.close()


def send(request: Request, answer: Answer, *, stop: int | None = None, pause_s: float = 0.0) -> None:
    """The answer, or its first `stop` bytes."""
    handler = request.handler
    handler.send_response_only(answer.status)
    for name, value in answer.headers.items():
        handler.send_header(name, value)
    handler.end_headers()
    body = b"" if request.method == "HEAD" else answer.body[:stop]
    for start in range(0, len(body), BLOCK) if pause_s else [0]:
        handler.wfile.write(body[start : start + BLOCK] if pause_s else body)
        handler.wfile.flush()
        time.sleep(pause_s)


class FaultyServer:
    """Answers by `answer`, except where `fault` names something else to do for a request.

    Attributes:
        requests: all that came.
        fault: from a request to what happens to it; None answers as usual.
        dark: while set, connections are torn down without a word.
    """

    def __init__(self, answer: Callable[[Request, bytes], Answer]) -> None:
        self.requests: list[Request] = []
        self.fault: Callable[[Request], Fault | None] = lambda request: None
        self.dark = threading.Event()
        self._answer, self._lock = answer, threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one_request(self) -> None:
                try:
                    super().handle_one_request()
                except (OSError, ValueError):  # the client, or a fault, has closed the connection
                    self.close_connection = True

            def do_GET(self) -> None:
                server.serve(self)

            do_HEAD = do_PUT = do_POST = do_DELETE = do_GET

            def finish(self) -> None:
                with suppress(OSError, ValueError):
                    super().finish()

            def log_message(self, *_: object) -> None:
                pass

        return Handler

    def serve(self, handler: BaseHTTPRequestHandler) -> None:
        headers = {name.lower(): value for name, value in handler.headers.items()}
        content = handler.rfile.read(int(headers.get("content-length", 0)))
        with self._lock:
            request = Request(
                len(self.requests),
                handler.command,
                handler.path,
                headers,
                handler,
                lambda: self._answer(request, content),
            )
            self.requests.append(request)
        if self.dark.is_set():
            return cut(request)
        act = self.fault(request)
        return act(request, request.again()) if act else send(request, request.again())

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@contextmanager
def web_server(folder: Path) -> Iterator[FaultyServer]:
    """Files of a folder over http, with ranges, entity tags and pages of links."""

    def answer(request: Request, content: bytes) -> Answer:
        path = folder / unquote(urlsplit(request.path).path).lstrip("/")
        if path.is_dir():
            page = "".join(f'<a href="{quote(entry.name)}">x</a>' for entry in sorted(path.iterdir())).encode()
            return Answer(200, {"Content-Type": "text/html", "Content-Length": str(len(page))}, page)
        if not path.exists():
            return Answer(404, {"Content-Length": "0"})
        return ranged(request, path.read_bytes(), path.stat().st_mtime)

    server = FaultyServer(answer)
    try:
        yield server
    finally:
        server.close()


def ranged(request: Request, data: bytes, modified: float) -> Answer:
    """What RFC 9110 wants of a range request."""
    tag = f'"{hashlib.md5(data).hexdigest()}"'
    headers = {"ETag": tag, "Last-Modified": formatdate(modified, usegmt=True), "Accept-Ranges": "bytes"}
    if request.headers.get("if-match", tag) != tag:
        return Answer(412, {"Content-Length": "0"})
    asked = re.fullmatch(r"bytes=(\d+)-(\d+)", request.headers.get("range", ""))
    if asked is None:
        return Answer(200, {**headers, "Content-Length": str(len(data))}, data)
    start, stop = int(asked[1]), min(int(asked[2]) + 1, len(data))
    if start >= len(data):
        return Answer(416, {"Content-Range": f"bytes */{len(data)}", "Content-Length": "0"})
    part = {"Content-Range": f"bytes {start}-{stop - 1}/{len(data)}", "Content-Length": str(stop - start)}
    return Answer(206, {**headers, **part}, data[start:stop])


@contextmanager
def s3_server() -> Iterator[FaultyServer]:
    """moto's S3 behind a proxy that fails on demand."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    moto = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    moto.start()
    host, port = moto.get_host_and_port()

    def answer(request: Request, content: bytes) -> Answer:
        connection = http.client.HTTPConnection(host, port, timeout=30)
        try:
            connection.request(request.method, request.path, content, request.headers)
            reply = connection.getresponse()
            body = reply.read()
            dropped = {"transfer-encoding", "connection", "content-length"}
            headers = {name: value for name, value in reply.getheaders() if name.lower() not in dropped}
            length = reply.getheader("Content-Length", str(len(body))) if request.method == "HEAD" else str(len(body))
            return Answer(reply.status, {**headers, "Content-Length": length}, body)
        finally:
            connection.close()

    server = FaultyServer(answer)
    try:
        yield server
    finally:
        server.close()
        moto.stop()


def s3_environment(server: FaultyServer) -> dict[str, str]:
    """What points S3 tools at the server."""
    return {
        "AWS_ENDPOINT_URL": server.url,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def upload(server: FaultyServer, folder: Path, address: str) -> Any:
    """Put the files of a folder into a bucket, made where it is not there; boto's client."""
    import boto3

    bucket, _, prefix = address.removeprefix("s3://").partition("/")
    client = boto3.client(
        "s3", endpoint_url=server.url, aws_access_key_id="key", aws_secret_access_key="secret", region_name="us-east-1"
    )
    client.create_bucket(Bucket=bucket)
    for path in sorted(folder.iterdir()):
        client.put_object(Bucket=bucket, Key=f"{prefix}/{path.name}", Body=path.read_bytes())
    return client
