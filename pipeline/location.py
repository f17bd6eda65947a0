"""Paths on this machine and in object stores: s3://bucket/key and gs://bucket/key beside plain ones."""

import io
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, Literal, TypeAlias

import boto3
import obstore
from obstore.auth.boto3 import Boto3CredentialProvider
from obstore.exceptions import AlreadyExistsError, BaseError, PermissionDeniedError, UnauthenticatedError
from obstore.store import GCSStore, ObjectStore, S3Store
from pyarrow.fs import resolve_s3_region

from pipeline.errors import Refused

URI = re.compile(
    r"(?P<bucket>[a-zA-Z][\w+.-]*://[^/?]*)/?(?P<key>.*?)"
    r"(?P<options>\?((region|scheme|endpoint_override)=[^?&]*&?)+)?",
    re.DOTALL,
)
RETRIES: Any = {  # a store that is busy, or for a moment not there, is asked again for three minutes
    "max_retries": 12,
    "retry_timeout": timedelta(minutes=3),
    "backoff": {"init_backoff": timedelta(milliseconds=200), "max_backoff": timedelta(seconds=20), "base": 2},
}


@dataclass(frozen=True)
class Location:
    """A path in its parts: `s3://bucket/key?options`; a local one is all key.

    Keys are written as they are, without percent signs for other characters. Options are `region`, and
    `endpoint_override=host:port` and `scheme=http` for stores that are not Amazon's.
    """

    bucket: str  # with its scheme; empty for a local path
    key: str
    options: str = ""

    @classmethod
    def of(cls, path: str) -> "Location":
        """Refused where the scheme is none of ours, or where a password is in it: manifests and logs repeat paths."""
        parts = URI.fullmatch(path)
        if parts is None:
            return cls("", path)
        scheme, _, authority = parts["bucket"].partition("://")
        if scheme not in ("s3", "gs") or not authority:
            raise Refused(f"{path}: found {parts['bucket']}, wanted a local path, s3://BUCKET/... or gs://BUCKET/...")
        if ":" in authority or "@" in authority:
            raise Refused(f"{scheme}://...: found a password in a path; give it by the environment of the run instead")
        return cls(parts["bucket"], parts["key"], parts["options"] or "")

    def __str__(self) -> str:
        return f"{self.bucket}/{self.key}{self.options}" if self.bucket else self.key

    @property
    def pure(self) -> PurePosixPath:
        """The key alone."""
        return PurePosixPath(self.key)

    @property
    def suffix(self) -> str:
        """In small letters, with its dot."""
        return self.pure.suffix.lower()

    def at(self, key: str | PurePosixPath) -> "Location":
        """Another file of the same bucket."""
        return replace(self, key=str(key))

    def store(self) -> ObjectStore:
        """The bucket of a remote path."""
        return _connect(self.bucket, self.options)

    # What a cache asks of its files, under the names of pathlib.Path. For remote ones.

    def __truediv__(self, name: str) -> "Location":
        return self.at(f"{self.key.rstrip('/')}/{name}".lstrip("/"))

    @property
    def name(self) -> str:
        return self.pure.name

    @property
    def parent(self) -> "Location":
        return self.at(self.pure.parent)

    def exists(self) -> bool:
        return self.size() is not None

    def size(self) -> int | None:
        """In bytes; None where there is no such object."""
        try:
            with plain_errors(self):
                return obstore.head(self.store(), self.key)["size"]
        except FileNotFoundError:
            return None

    def read_bytes(self) -> bytes:
        with plain_errors(self):
            return obstore.get(self.store(), self.key).bytes().to_bytes()

    def read_text(self) -> str:
        return self.read_bytes().decode()

    def unlink(self, missing_ok: bool = False) -> None:
        with plain_errors(self):
            obstore.delete(self.store(), self.key)

    def open(self, mode: Literal["rb"]) -> io.BufferedReader:
        """To read from, by ranges; FileNotFoundError."""
        with plain_errors(self):
            return io.BufferedReader(_Reader(self), READ_BYTES)


Place: TypeAlias = Path | Location  # a local path, or a remote location
READ_BYTES = 1 << 16  # asked for at once where a file is read in pieces: more than the footer of most tables


def place_of(path: str | Path) -> Place:
    """A path as text -> where that is. Refused as by `Location.of`."""
    location = Location.of(str(path))
    return location if location.bucket else Path(path)


class _Reader(io.RawIOBase):
    """An object of a store as a file."""

    def __init__(self, location: Location) -> None:
        self.location = location
        self.reader = obstore.open_reader(location.store(), location.key, buffer_size=READ_BYTES)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self.reader.seek(offset, whence)

    def tell(self) -> int:
        return self.reader.tell()

    def readinto(self, buffer: Any) -> int:
        with plain_errors(self.location):
            found = self.reader.read(len(buffer)).to_bytes()
        buffer[: len(found)] = found
        return len(found)


@contextmanager
def plain_errors(location: Location) -> Iterator[None]:
    """What goes wrong with an object store, as the OSError that a local file would raise."""
    try:
        yield
    except AlreadyExistsError as error:
        raise FileExistsError(f"{location}: {_first_line(error)}") from error
    except (PermissionDeniedError, UnauthenticatedError) as error:
        raise PermissionError(f"{location}: {_first_line(error)}") from error
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{location}: {_first_line(error)}") from error
    except BaseError as error:
        raise OSError(f"{location}: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


@lru_cache
def _connect(bucket: str, options: str) -> ObjectStore:
    scheme, _, name = bucket.partition("://")
    if scheme == "gs":
        return GCSStore(name, retry_config=RETRIES)
    chosen = dict(option.split("=", 1) for option in options.removeprefix("?").split("&") if option)
    session = boto3.Session()  # environment, profiles, roles: as Amazon's own tools look for credentials
    settings: dict[str, Any] = {}
    if endpoint := chosen.get("endpoint_override") or os.environ.get("AWS_ENDPOINT_URL", ""):
        protocol = chosen.get("scheme", "https")
        settings["endpoint"] = endpoint if "://" in endpoint else f"{protocol}://{endpoint}"
        settings["virtual_hosted_style_request"] = False
        settings["client_options"] = {"allow_http": True}
    if session.get_credentials() is None:
        settings["skip_signature"] = True  # a public bucket
    else:
        settings["credential_provider"] = Boto3CredentialProvider(session)
    region = chosen.get("region") or session.region_name
    if not region:
        try:
            region = "us-east-1" if endpoint else resolve_s3_region(name)
        except OSError as error:
            raise Refused(f"{bucket}: its region is not known: {error}; set AWS_REGION") from error
    return S3Store(name, region=region, retry_config=RETRIES, **settings)
