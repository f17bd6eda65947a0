"""An object store that speaks S3 over HTTP, in this process, with a door at which tests see what it is asked."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from socket import SHUT_RDWR
from threading import Lock, Thread
from typing import Any

import boto3
import pytest
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import make_server

CREDENTIALS = {  # any will do
    "AWS_ACCESS_KEY_ID": "tests",
    "AWS_SECRET_ACCESS_KEY": "a-secret-that-must-be-written-nowhere",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}
NAME = "videos"


@dataclass(frozen=True)
class Request:
    """What a store was asked."""

    verb: str  # as in HTTP, and LIST
    key: str  # of the object; of a listing its prefix
    headers: Mapping[str, str]  # by names in small letters

    @classmethod
    def of(cls, environ: Mapping[str, Any]) -> "Request":
        path = environ["PATH_INFO"].encode("latin-1").decode().removeprefix(f"/{NAME}").removeprefix("/")
        asked = dict(part.partition("=")[::2] for part in environ["QUERY_STRING"].split("&"))
        headers = {name[5:].replace("_", "-").lower(): value for name, value in environ.items() if name[:5] == "HTTP_"}
        if "list-type" in asked:
            return cls("LIST", asked.get("prefix", "").replace("%2F", "/"), headers)
        return cls(environ["REQUEST_METHOD"], path, headers)


class SlowDown(Exception):
    """Raised at the door: the store answers that it is busy."""


def _pass(request: Request) -> None:
    """Let it pass."""


class Door:
    """What stands before a store. It writes requests down, and asks `before` and `after` the store does each of them.

    These may wait, kill, or raise: SlowDown answers 503, ConnectionError hangs up without an answer.
    """

    def __init__(self, store: Callable[..., Iterable[bytes]]) -> None:
        self.store = store
        self.requests: list[Request] = []
        self.before: Callable[[Request], None] = _pass
        self.after: Callable[[Request], None] = _pass
        self._one_at_a_time = Lock()  # a real store looks and writes in one step

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        request = Request.of(environ)
        self.requests.append(request)
        told: list[Any] = []
        try:
            self.before(request)
            with self._one_at_a_time:
                body = list(self.store(environ, lambda *status: told.extend(status[:2])))
            self.after(request)
        except SlowDown:
            if not told:  # the store has not read it
                environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            told, body = ["503 Slow Down", []], [b"<Error><Code>SlowDown</Code></Error>"]
        except ConnectionError:
            environ["werkzeug.socket"].shutdown(SHUT_RDWR)
            raise
        start_response(*told)
        return body


@dataclass(frozen=True)
class Bucket:
    """An empty bucket and how to reach it."""

    client: Any
    address: str  # host:port
    door: Door

    def uri(self, key: str = "") -> str:
        """Where an object is, and by which store: so much reaches other processes too."""
        return f"s3://{NAME}/{key}?endpoint_override={self.address}&scheme=http"

    def put(self, key: str, content: bytes | Path) -> str:
        body = content.read_bytes() if isinstance(content, Path) else content
        self.client.put_object(Bucket=NAME, Key=key, Body=body)
        return self.uri(key)

    def get(self, key: str) -> bytes:
        return self.client.get_object(Bucket=NAME, Key=key)["Body"].read()

    def delete(self, key: str) -> None:
        self.client.delete_object(Bucket=NAME, Key=key)

    def objects(self, prefix: str = "") -> list[str]:
        """The keys that are there."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=NAME, Prefix=prefix)
        return [one["Key"] for page in pages for one in page.get("Contents", [])]

    def digests(self, folder: str) -> dict[str, str]:
        """SHA-256 of every object below a folder but those that hold times, by relative key."""
        keys = [key.removeprefix(f"{folder}/") for key in self.objects(f"{folder}/")]
        kept = [key for key in keys if not key.startswith("events/") and key != "forecast.json"]
        return {key: hashlib.sha256(self.get(f"{folder}/{key}")).hexdigest() for key in kept}

    def asked(self, *verbs: str) -> list[Request]:
        """Requests so far, of these verbs or all."""
        return [one for one in self.door.requests if not verbs or one.verb in verbs]


@contextmanager
def serve_bucket() -> Iterator[Bucket]:
    """A store of its own on a free port, until the end of the block."""
    door = Door(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, door, threaded=True, request_handler=MotoRequestHandler)
    server.daemon_threads = True  # pyright: ignore[reportAttributeAccessIssue]
    serving = Thread(target=server.serve_forever, daemon=True)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in CREDENTIALS.items():
            patch.setenv(name, value)
        serving.start()
        host, port = server.server_address[:2]
        try:
            client = boto3.client("s3", endpoint_url=f"http://{host}:{port}")
            client.create_bucket(Bucket=NAME)
            bucket = Bucket(client, f"{host}:{port}", door)
            door.requests.clear()
            yield bucket
            door.before = door.after = _pass
            for key in bucket.objects():
                bucket.delete(key)
        finally:
            server.shutdown()
            serving.join()
