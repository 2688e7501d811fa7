"""An S3-compatible server on this machine that counts requests and can refuse some of them."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

KEYS = ("aws_access_key_id", "aws_secret_access_key")


class S3Server:
    """`requests`: how many of each kind (GET, HEAD, PUT, ...) came so far. `refuse(n)`: answer 503 to the next n."""

    def __init__(self, application: Callable[..., Iterable[bytes]]) -> None:
        self.requests: Counter[str] = Counter()
        self.port = 0
        self._application, self._refused, self._lock = application, 0.0, threading.Lock()

    def refuse(self, count: float) -> None:
        """Refuse the next `count` requests; infinity: all until refuse(0)."""
        self._refused = count

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        with self._lock:
            self.requests[environ["REQUEST_METHOD"]] += 1
            refused = self._refused > 0
            self._refused -= refused
        if refused:
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            start_response("503 Service Unavailable", [("Content-Length", "0")])
            return []
        return self._application(environ, start_response)

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
    moto = pytest.importorskip("moto.server", reason="install the s3 extra: pip install -e '.[s3]'")
    import boto3
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Quiet(WSGIRequestHandler):
        def log(self, *_: Any) -> None:
            pass

    server = S3Server(moto.DomainDispatcherApplication(moto.create_backend_app))
    http = make_server("127.0.0.1", 0, server, threaded=True, request_handler=Quiet)
    server.port = http.server_port
    threading.Thread(target=http.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.port}"
    client = boto3.client("s3", endpoint_url=url, region_name="us-east-1", **dict.fromkeys(KEYS, "test"))
    client.create_bucket(Bucket="east")
    yield server
    http.shutdown()
