"""An object store in memory, in the place of the client of real ones: requests take time, fail, and are counted."""

import hashlib
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from math import ceil
from random import Random
from typing import Any, BinaryIO
from unittest import mock

from obstore.exceptions import AlreadyExistsError, GenericError

from pipeline import location, storage
from tests.simulate.clock import Clock, Process

RETRY_S, MOST_RETRY_S = 0.2, 20.0  # what pipeline/location.py tells the real client
PATIENCE_S = 180.0
PART_BYTES = 5 << 20  # in which obstore sends what is larger


@dataclass(frozen=True)
class Weather:
    """How a store behaves."""

    latency_s: float = 0.03
    bytes_per_s: float = 200e6  # of one connection
    failures: float = 0.0  # share of the requests that are answered with an error, and sent again by the client
    lost_answers: float = 0.0  # share that is done, and then sent again because nobody was told


class Content:
    """An object as the client hands it out."""

    def __init__(self, content: bytes) -> None:
        self.content = content

    def bytes(self) -> "Content":
        return self

    def to_bytes(self):
        return self.content


class Store:
    """The six functions of obstore that the pipeline calls, over a dictionary.

    The tars of a simulation are stand-ins: `sizes` are the bytes by key that they are taken to have on their way, and
    only their length and checksum are kept. A request of a process takes simulated time; those of the driver are made
    in an instant, many at once, and counted.
    """

    def __init__(self, clock: Clock, weather: Weather, seed: int, sizes: Mapping[str, int]) -> None:
        self.clock, self.weather, self.sizes = clock, weather, sizes
        self.objects: dict[str, bytes] = {}  # the SHA-256 of a tar
        self.lengths: dict[str, int] = {}
        self.seen: dict[str, int] = {}  # hash of the first content by key
        self.rewritten: set[str] = set()  # keys that were given other content than before
        self.taken_away: Counter[str] = Counter()  # by key, objects that were there and were deleted
        self.requests: Counter[str] = Counter()  # by verb and kind of object
        self.sent_bytes: Counter[str] = Counter()
        self.by_second: Counter[int] = Counter()  # requests of processes
        self.out_until_s = 0.0  # nothing is answered before
        self._draw = Random(seed)
        self._lock = threading.Lock()

    @contextmanager
    def installed(self) -> Iterator[None]:
        """While the block runs, every s3:// and gs:// is in this store."""
        with (
            mock.patch.object(location, "obstore", self),
            mock.patch.object(storage, "obstore", self),
            mock.patch.object(location, "_connect", lambda bucket, options: bucket),
        ):
            yield

    def go_out(self, seconds: float) -> None:
        """Nothing is answered for so long."""
        self.out_until_s = self.clock.now_s + seconds

    def put(self, bucket: str, key: str, content: bytes | BinaryIO, mode: str = "overwrite") -> None:
        body = content if isinstance(content, bytes) else content.read()

        def write() -> None:
            if mode == "create" and key in self.objects:
                raise AlreadyExistsError(key)
            kept = hashlib.sha256(body).digest() if key in self.sizes else body
            if self.seen.setdefault(key, hash(kept)) != hash(kept):
                self.rewritten.add(key)
            self.objects[key], self.lengths[key] = kept, len(body)

        self._request("PUT", key, self.sizes.get(key, len(body)), write)

    def head(self, bucket: str, key: str) -> dict[str, int]:
        self._request("HEAD", key, 0, lambda: self._get(key))
        return {"size": self.lengths[key]}

    def get(self, bucket: str, key: str) -> Content:
        return Content(self._request("GET", key, len(self.objects.get(key, b"")), lambda: self._get(key)))

    def get_range(self, bucket: str, key: str, start: int, length: int) -> Content:
        return Content(self._request("GET", key, length, lambda: self._get(key)[start : start + length]))

    def delete(self, bucket: str, key: str) -> None:
        def remove() -> None:
            self.taken_away[key] += self.objects.pop(key, None) is not None

        self._request("DELETE", key, 0, remove)

    def list_with_delimiter(self, bucket: str, prefix: str) -> dict[str, list[Any]]:
        """Objects right below a prefix; nothing asks for folders here."""

        def found() -> list[str]:
            return [key for key in self.objects if key.rpartition("/")[0] == prefix]

        return {"objects": [{"path": key} for key in self._request("LIST", prefix, 0, found)], "common_prefixes": []}

    def _get(self, key: str) -> bytes:
        try:
            return self.objects[key]
        except KeyError:
            raise FileNotFoundError(key) from None

    def _request(self, verb: str, key: str, num_bytes: int, answer: Any) -> Any:
        """Do what is asked, as often as it takes until the client has its answer."""
        begun_s, pause_s = self.clock.now_s, RETRY_S
        while True:
            self._count(verb, key, num_bytes)
            is_process = isinstance(threading.current_thread(), Process)
            luck = self._draw.random() if is_process else 1.0
            if is_process:
                spread = self._draw.lognormvariate(0, 0.5)
                self.clock.wait(self.weather.latency_s * spread + num_bytes / self.weather.bytes_per_s)
            is_out = self.clock.now_s < self.out_until_s
            if not is_out and luck >= self.weather.failures + self.weather.lost_answers:
                return answer()
            if not is_out and luck >= self.weather.failures:  # whatever it says, nobody hears it
                with suppress(AlreadyExistsError, FileNotFoundError):
                    answer()
            if not is_process or self.clock.now_s - begun_s > PATIENCE_S:
                raise GenericError(f"{key}: no answer")
            self.clock.wait(pause_s)
            pause_s = min(2 * pause_s, MOST_RETRY_S)

    def _count(self, verb: str, key: str, num_bytes: int) -> None:
        column = key.split("/")[1]  # behind the cache's own folder
        kind = column if column != "latents" else "tar" if key.endswith(".tar") else "sidecar"
        parts = ceil(num_bytes / PART_BYTES) + 1 if verb == "PUT" and num_bytes > PART_BYTES else 0  # and their opening
        with self._lock:
            self.requests[f"{verb} {kind}"] += 1
            self.requests[f"{verb} of {kind}s in parts"] += parts
            self.sent_bytes[f"{verb} {kind}"] += num_bytes
            if isinstance(threading.current_thread(), Process):
                self.by_second[int(self.clock.now_s)] += 1 + parts
