"""An S3-compatible server on this machine, in a process of its own, that counts requests and can refuse some of them.

Of its own, because vLLM 0.32 looks at every global of every module when it starts in a process, and Flask's proxies, which
moto imports, raise on that outside of a request.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import threading
import urllib.request
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

CONTROL = "/-/control"  # reads the counts; ?clear=1 empties them, ?refuse=N answers 503 to the next N, ?stutter=N to the first N for each address


class S3Server:
    """`requests`: how many of each kind (GET, HEAD, PUT, ...) came so far. `refuse(n)`: answer 503 to the next n;
    `stutter(n)`: to the first n with the same method, path and query."""

    def __init__(self, port: int) -> None:
        self.port = port

    @property
    def requests(self) -> Counter[str]:
        return Counter(self._control("")["counts"])

    @property
    def refusals_left(self) -> float:
        """How many requests will still be refused."""
        return self._control("")["refused"]

    def clear(self) -> None:
        """Forget the requests so far."""
        self._control("?clear=1")

    def refuse(self, count: float) -> None:
        """Refuse the next `count` requests; infinity: all until refuse(0)."""
        self._control(f"?refuse={count}")

    def stutter(self, count: int) -> None:
        """Refuse each different request `count` times before it is answered; 0: none any more."""
        self._control(f"?stutter={count}")

    def _control(self, query: str) -> dict[str, Any]:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{CONTROL}{query}") as answer:
            return json.load(answer)

    @property
    def environment(self) -> dict[str, str]:
        """The server as AWS's own variables name it."""
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }


@contextmanager
def s3_server() -> Iterator[S3Server]:
    """The server with a bucket called `east`."""
    if importlib.util.find_spec("moto") is None:
        pytest.skip("install the s3 extra: pip install -e '.[s3]'")
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.s3_server"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        yield S3Server(int(process.stdout.readline()))
    finally:
        process.kill()
        process.wait()


class _Application:
    """moto's application behind the counting and refusing."""

    def __init__(self, application: Any) -> None:
        self._application, self._lock = application, threading.Lock()
        self._counts: Counter[str] = Counter()
        self._refused, self._stutter = 0.0, 0
        self._asked: Counter[tuple[str, ...]] = Counter()

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        if environ["PATH_INFO"] == CONTROL:
            return self._control(environ["QUERY_STRING"], start_response)
        with self._lock:
            self._counts[environ["REQUEST_METHOD"]] += 1
            request = tuple(environ[name] for name in ("REQUEST_METHOD", "PATH_INFO", "QUERY_STRING"))
            self._asked[request] += self._stutter > 0
            refused = self._refused > 0 or self._asked[request] % (self._stutter + 1) != 0
            self._refused -= self._refused > 0
        if refused:
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            start_response("503 Service Unavailable", [("Content-Length", "0")])
            return []
        return self._application(environ, start_response)

    def _control(self, query: str, start_response: Any) -> list[bytes]:
        name, _, value = query.partition("=")
        with self._lock:
            if name == "clear":
                self._counts.clear()
            elif name == "refuse":
                self._refused = float(value)
            elif name == "stutter":
                self._stutter = int(value)
                self._asked.clear()
            body = json.dumps({"counts": self._counts, "refused": self._refused}).encode()
        start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
        return [body]


def main() -> None:
    import boto3
    import moto.server
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Quiet(WSGIRequestHandler):
        def log(self, *_: Any) -> None:
            pass

    application = _Application(moto.server.DomainDispatcherApplication(moto.server.create_backend_app))
    http = make_server("127.0.0.1", 0, application, threaded=True, request_handler=Quiet)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    keys = dict.fromkeys(("aws_access_key_id", "aws_secret_access_key"), "test")
    url = f"http://127.0.0.1:{http.server_port}"
    boto3.client("s3", endpoint_url=url, region_name="us-east-1", **keys).create_bucket(Bucket="east")
    application(
        {"PATH_INFO": CONTROL, "QUERY_STRING": "clear=1", "REQUEST_METHOD": "GET"}, lambda *_: None
    )  # not the bucket's own
    print(http.server_port, flush=True)
    sys.stdin.read()  # until the owner has gone


if __name__ == "__main__":
    main()
