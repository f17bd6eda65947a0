"""Paths on this machine and in object stores: s3://bucket/key and gs://bucket/key beside plain ones."""

import errno
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

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import GCSStore, ObjectStore, S3Store

from pipeline.errors import Refused


class PastTheEnd(OSError):
    """A range of a file that begins behind its end."""


URI = re.compile(
    r"(?P<bucket>[a-zA-Z][\w+.-]*://[^/?]*)/?(?P<key>.*?)"
    r"(?P<options>\?((region|scheme|endpoint_override)=[^?&]*&?)+)?",
    re.DOTALL,
)
SECRET = re.compile(r"//[^/\s]*@|[?&](access_key|secret_key|session_token|x-amz-\w+)=", re.IGNORECASE)
RETRIES: Any = {  # a store that is busy, or for a moment not there, is asked again for three minutes
    "max_retries": 12,
    "retry_timeout": timedelta(minutes=3),
    "backoff": {"init_backoff": timedelta(milliseconds=200), "max_backoff": timedelta(seconds=20), "base": 2},
}
PATIENCE: Any = {  # with one request and all that it carries, and with a connection that is silent
    "timeout": timedelta(minutes=3),
    "read_timeout": timedelta(minutes=1),
}
KINDS = {401: PermissionError, 403: PermissionError, 404: FileNotFoundError, 416: PastTheEnd}  # by HTTP status
STATUS = re.compile(r"status code: (\d{3})")
READ_BYTES = 1 << 16  # asked for at once where a file is read in pieces: more than the footer of most tables
_PROCESSES: set[int] = set()  # that asked for a store: this one, and where it was forked those that it comes from


@dataclass(frozen=True)
class Location:
    """A path in its parts: `s3://bucket/key?options`; a local one is all key.

    Keys are written as they are, without percent signs for other characters. Options are of s3 alone: `region`, and
    `endpoint_override=host:port` and `scheme=http` for stores that are not Amazon's.
    """

    bucket: str  # with its scheme; empty for a local path
    key: str
    options: str = ""

    @classmethod
    def of(cls, path: str) -> "Location":
        """Refused where the scheme is none of ours, or where a password is in it: manifests and logs repeat paths."""
        parts = URI.fullmatch(path)
        if parts is not None and holds_secret(path):
            told = "found a password in a path; give it by the environment of the run instead"
            raise Refused(f"{path.partition('://')[0]}://...: {told}")
        if parts is None:
            return cls("", path)
        scheme, _, authority = parts["bucket"].partition("://")
        if scheme not in ("s3", "gs") or not authority:
            raise Refused(f"{path}: found {parts['bucket']}, wanted a local path, s3://BUCKET/... or gs://BUCKET/...")
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
        """The bucket of a remote path. Refused in a process that was forked from one with a client: it would hang."""
        _PROCESSES.add(os.getpid())
        if len(_PROCESSES) > 1:
            raise Refused(
                f"{self.bucket}: found a forked process, and clients of object stores do not survive a fork; "
                f'spawn it, as with DataLoader(..., multiprocessing_context="spawn")'
            )
        return _connect(self.bucket, self.options)

    # What a cache asks of its files, under the names of pathlib.Path. For remote ones.

    def __truediv__(self, name: str) -> "Location":
        return self.at(f"{self.key.rstrip('/')}/{name}".lstrip("/"))

    @property
    def name(self) -> str:
        return self.pure.name

    @property
    def parent(self) -> "Location":
        return self.at(self.key.rpartition("/")[0])

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

    def read_range(self, offset: int, num_bytes: int) -> bytes:
        """Fewer bytes where the object ends before."""
        if not num_bytes:
            return b""
        try:
            with plain_errors(self):
                return obstore.get_range(self.store(), self.key, start=offset, length=num_bytes).to_bytes()
        except PastTheEnd:
            return b""

    def read_text(self) -> str:
        return self.read_bytes().decode()

    def unlink(self, missing_ok: bool = False) -> None:
        with plain_errors(self):
            obstore.delete(self.store(), self.key)

    def open(self, mode: Literal["rb"], buffering: int = READ_BYTES) -> io.BufferedReader:
        """To read from, by ranges of `buffering` bytes at the least; FileNotFoundError."""
        return io.BufferedReader(_Reader(self), buffering)


def holds_secret(text: str) -> bool:
    """Whether there is a password in an address, or a key as pyarrow and signed addresses have it."""
    return bool(SECRET.search(text))


Place: TypeAlias = Path | Location  # a local path, or a remote location


def place_of(path: str | Path) -> Place:
    """A path as text -> where that is. Refused as by `Location.of`."""
    location = Location.of(str(path))
    return location if location.bucket else Path(path)


class _Reader(io.RawIOBase):
    """An object of a store as a file, each read of which is one request."""

    def __init__(self, location: Location) -> None:
        size = location.size()
        if size is None:
            raise FileNotFoundError(errno.ENOENT, "no such object", str(location))
        self.location, self.size, self.at = location, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self.at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self.at, os.SEEK_END: self.size}[whence]
        return self.at

    def tell(self) -> int:
        return self.at

    def readinto(self, buffer: Any) -> int:
        found = self.location.read_range(self.at, min(len(buffer), max(0, self.size - self.at)))
        buffer[: len(found)] = found
        self.at += len(found)
        return len(found)


@contextmanager
def plain_errors(location: Location) -> Iterator[None]:
    """What goes wrong with an object store, as the OSError that a local file would raise."""
    try:
        yield
    except Refused:  # which is a ValueError: no connection to the store could be made
        raise
    except AlreadyExistsError as error:
        raise FileExistsError(_told(location, error)) from error
    except FileNotFoundError as error:
        raise FileNotFoundError(_told(location, error)) from error
    except BaseError as error:
        status = STATUS.search(str(error))
        raise KINDS.get(int(status[1]) if status else 0, OSError)(_told(location, error)) from error
    except ValueError as error:  # a key that the client cannot ask for, such as a//b
        raise FileNotFoundError(_told(location, error)) from error


def _told(location: Location, error: Exception) -> str:
    return f"{location}: {str(error).splitlines()[0].rstrip(': ')}"


@lru_cache
def _connect(bucket: str, options: str) -> ObjectStore:
    """The bucket of a location. Refused where it cannot be told how to reach it."""
    scheme, _, name = bucket.partition("://")
    if scheme == "gs":  # the client finds credentials; without any, GOOGLE_SKIP_SIGNATURE=true reads public buckets
        if options:
            raise Refused(f"{bucket}: found {options}, wanted no options for gs://")
        return GCSStore(name, retry_config=RETRIES, client_options=PATIENCE)
    import boto3  # these four here: boto3 takes 0.3 s, and every process imports this module
    from botocore.exceptions import BotoCoreError
    from obstore.auth.boto3 import Boto3CredentialProvider
    from pyarrow.fs import resolve_s3_region

    chosen = dict(option.split("=", 1) for option in options.removeprefix("?").split("&") if option)
    endpoint = chosen.get("endpoint_override") or os.environ.get("AWS_ENDPOINT_URL", "")
    if endpoint and "://" not in endpoint:
        endpoint = f"{chosen.get('scheme', 'https')}://{endpoint}"
    try:
        session = boto3.Session()  # environment, profiles, roles: as Amazon's own tools look for credentials
        settings: dict[str, Any] = {"skip_signature": True}  # a public bucket
        if session.get_credentials() is not None:
            settings = {"credential_provider": Boto3CredentialProvider(session)}
        region = chosen.get("region") or os.environ.get("AWS_REGION") or session.region_name
        region = region or ("us-east-1" if endpoint else resolve_s3_region(name))
    except (BotoCoreError, OSError) as error:
        raise Refused(f"{bucket}: no credentials or region: {error}; set AWS_PROFILE or AWS_REGION") from error
    if endpoint:
        settings |= {"endpoint": endpoint, "virtual_hosted_style_request": False}
    client: Any = {**PATIENCE, "allow_http": bool(endpoint)}
    return S3Store(name, region=region, retry_config=RETRIES, client_options=client, **settings)
