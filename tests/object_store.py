"""An object store that speaks S3 over HTTP, in this process."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer

CREDENTIALS = {  # any will do
    "AWS_ACCESS_KEY_ID": "tests",
    "AWS_SECRET_ACCESS_KEY": "tests",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}
NAME = "videos"


@dataclass(frozen=True)
class Bucket:
    """An empty bucket and how to reach it."""

    client: Any
    address: str  # host:port

    def uri(self, key: str = "") -> str:
        """Where an object is, and by which store: so much reaches other processes too."""
        return f"s3://{NAME}/{key}?endpoint_override={self.address}&scheme=http"

    def put(self, key: str, content: bytes | Path) -> str:
        body = content.read_bytes() if isinstance(content, Path) else content
        self.client.put_object(Bucket=NAME, Key=key, Body=body)
        return self.uri(key)

    def delete(self, key: str) -> None:
        self.client.delete_object(Bucket=NAME, Key=key)


@contextmanager
def serve_bucket() -> Iterator[Bucket]:
    """A store of its own on a free port, until the end of the block."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in CREDENTIALS.items():
            patch.setenv(name, value)
        server.start()
        host, port = server.get_host_and_port()
        try:
            client = boto3.client("s3", endpoint_url=f"http://{host}:{port}")
            client.create_bucket(Bucket=NAME)
            yield Bucket(client, f"{host}:{port}")
            for version in client.list_objects_v2(Bucket=NAME).get("Contents", []):
                client.delete_object(Bucket=NAME, Key=version["Key"])
        finally:
            server.stop()
