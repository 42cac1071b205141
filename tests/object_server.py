"""A real S3 server on loopback, and a proxy before it that can fail."""

from __future__ import annotations

import contextlib
import http.client
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import boto3

KEY, SECRET = "an-access-key", "a-secret-key"


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@dataclass
class FaultyServer:
    """An S3 server and the proxy before it.

    Attributes:
        url: Address of the proxy.
        direct: Address of the server behind it.
        faults: What happens to the next GET requests for shards, one after another: a status such as 503, or close,
            truncate or flip.
        always: What happens to all of them.
        log: Method and path of every request.
    """

    url: str
    direct: str
    faults: list[str] = field(default_factory=list)
    always: str = ""
    log: list[tuple[str, str]] = field(default_factory=list)

    @property
    def environment(self) -> dict[str, str]:
        return environment_for(self.url)

    def client(self) -> Any:
        return client_of(self.direct)

    def shards_read(self) -> list[str]:
        return [path.rpartition("/")[2] for method, path in self.log if method == "GET" and path.endswith(".tokens")]

    def take_fault(self, method: str, path: str) -> str:
        self.log.append((method, path))
        if method != "GET" or not path.endswith(".tokens"):
            return ""
        return self.always or (self.faults.pop(0) if self.faults else "")


class _Proxy(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def _forward(self) -> None:
        length = int(self.headers.get("Content-Length", 0))
        body = self.rfile.read(length)
        fault = self.server.faulty.take_fault(self.command, self.path.partition("?")[0])
        if fault == "close":
            self.close_connection = True
            return
        if fault.isdigit():
            self.send_response(int(fault))
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        host = self.server.faulty.direct.removeprefix("http://")
        backend = http.client.HTTPConnection(host)
        headers = {name: value for name, value in self.headers.items() if name.lower() != "host"}
        backend.request(self.command, self.path, body, headers)
        answer = backend.getresponse()
        content = answer.read()
        if fault == "flip":
            content = bytes([content[0] ^ 1]) + content[1:]
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("content-length", "transfer-encoding", "connection", "date", "server"):
                self.send_header(name, value)
        announced = answer.getheader("Content-Length") if self.command == "HEAD" else len(content)
        self.send_header("Content-Length", str(announced))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if fault == "truncate" else content)
        if fault == "truncate":
            self.close_connection = True

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = _forward  # noqa: N815

    def log_message(self, *_: Any) -> None:
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    faulty: FaultyServer


def environment_for(url: str) -> dict[str, str]:
    """Return the environment variables with which obstore reaches an S3 server."""
    return {
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": url,
    }


def client_of(url: str) -> Any:
    """Return a client of boto3 for an S3 server."""
    return boto3.client(
        "s3", endpoint_url=url, region_name="us-east-1", aws_access_key_id=KEY, aws_secret_access_key=SECRET
    )


@contextlib.contextmanager
def run_s3(folder: Path, bucket: str) -> Iterator[str]:
    """Run moto's server with an empty bucket until the end of the block, and return its address.

    Args:
        folder: Where its log is written.
        bucket: Name of the bucket.
    """
    port = free_port()
    command = [str(Path(sys.executable).with_name("moto_server")), "-H", "127.0.0.1", "-p", str(port)]
    with open(folder / "s3.log", "w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"})
    try:
        for _ in range(300):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.1)
        url = f"http://127.0.0.1:{port}"
        client_of(url).create_bucket(Bucket=bucket)
        yield url
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def serve(folder: Path, bucket: str) -> Iterator[FaultyServer]:
    """Run the server and the proxy until the end of the block; see `run_s3`."""
    with run_s3(folder, bucket) as url:
        proxy = _Server(("127.0.0.1", 0), _Proxy)
        proxy.faulty = FaultyServer(f"http://127.0.0.1:{proxy.server_port}", url)
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        try:
            yield proxy.faulty
        finally:
            proxy.shutdown()
            proxy.server_close()
