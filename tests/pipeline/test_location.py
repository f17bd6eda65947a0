"""A path is a local one, or a bucket with a key; an object is asked for as a file is, and fails as one."""

import os
import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline import location
from pipeline.errors import Refused
from pipeline.location import READ_BYTES, Location, place_of, plain_errors
from tests.object_store import Bucket


@pytest.mark.parametrize(
    "path", ["/a/b.mp4", "/a://b?c=d.mp4", "s3://bkt/a b/c?d#e%20.mp4", "gs://bkt/x.mp4", "s3://bkt"]
)
def test_a_path_is_the_sum_of_its_parts(path: str) -> None:
    assert str(Location.of(path)).rstrip("/") == path


def test_options_are_no_part_of_a_name() -> None:
    found = Location.of("s3://bkt/a/b.MP4?endpoint_override=localhost:5000&scheme=http")
    assert (found.bucket, found.key, found.suffix) == ("s3://bkt", "a/b.MP4", ".mp4")
    assert str(found.at("c.txt")) == "s3://bkt/c.txt?endpoint_override=localhost:5000&scheme=http"
    assert Location.of("s3://bkt/what?scheme.mp4").key == "what?scheme.mp4"


@pytest.mark.parametrize("path", ["http://host/a.mp4", "file:///a.mp4", "s3:///a.mp4", "hdfs://host/a"])
def test_another_scheme_is_refused(path: str) -> None:
    with pytest.raises(Refused, match=r"found .*://.*, wanted a local path, s3://BUCKET/\.\.\. or gs://BUCKET/\.\.\."):
        Location.of(path)


SECRETS = [
    "s3://me:secret@bkt/a.mp4",
    "gs://secret@bkt/a.mp4",
    "s3://bkt/a.mp4?access_key=me&secret_key=secret",
    "s3://bkt/a.mp4?scheme=http&endpoint_override=http://me:secret@host",
    "https://bkt.s3.amazonaws.com/a.mp4?X-Amz-Credential=secret",
]


@pytest.mark.parametrize("path", SECRETS)
def test_a_password_in_a_path_is_refused_and_not_repeated(path: str) -> None:
    with pytest.raises(Refused, match="by the environment") as refused:
        Location.of(path)
    assert "secret" not in str(refused.value)


def test_a_google_bucket_is_known_by_its_scheme_and_takes_no_options() -> None:
    assert type(Location.of("gs://bkt/a b.mp4").store()).__name__ == "GCSStore"
    with pytest.raises(Refused, match=r"gs://bkt: found \?scheme=http, wanted no options"):
        Location.of("gs://bkt/a.mp4?scheme=http").store()


@pytest.mark.parametrize("root", ["s3://bkt", "s3://bkt/", "s3://bkt/deep/cache", "s3://bkt/deep/cache/"])
def test_files_are_found_below_a_root_as_on_a_disk(root: str) -> None:
    root = f"{root}?scheme=http"
    found = place_of(root) / "plan" / "gen-0000.parquet"
    local = Path(f"/{Location.of(root).key}") / "plan" / "gen-0000.parquet"
    assert isinstance(found, Location) and f"/{found.key}" == str(local)
    assert (found.name, f"/{found.parent.key}") == (local.name, str(local.parent))
    assert found.parent / found.name == found and found.options == "?scheme=http"


def test_a_key_without_a_folder_lies_in_the_root() -> None:
    assert str(Location.of("s3://bkt/a.txt").parent / "b.txt") == "s3://bkt/b.txt"


def test_a_place_is_a_path_or_a_location() -> None:
    assert place_of("/data/cache") == Path("/data/cache")
    assert isinstance(place_of("s3://bkt/cache"), Location)


def test_an_object_is_asked_for_as_a_file_is(store: Bucket, tmp_path: Path) -> None:
    content = os.urandom(3 * READ_BYTES)
    remote, local = place_of(store.uri("as/a file.bin")), tmp_path / "a file.bin"
    assert not remote.exists()
    remote.unlink(missing_ok=True)
    store.put("as/a file.bin", content)
    local.write_bytes(content)
    assert remote.exists() and pickle.loads(pickle.dumps(remote)).read_bytes() == content
    with remote.open("rb") as found, local.open("rb") as wanted:
        for offset, whence, count in [(0, 0, 4), (-9, 2, 99), (READ_BYTES, 0, -1), (5, 0, 2 * READ_BYTES), (9, 2, 1)]:
            assert found.seek(offset, whence) == wanted.seek(offset, whence)
            assert found.read(count) == wanted.read(count) and found.tell() == wanted.tell()
    remote.unlink()
    assert not remote.exists()


def test_a_large_read_is_one_request(store: Bucket) -> None:
    place = place_of(store.put("large.bin", bytes(64 * READ_BYTES)))
    store.door.requests.clear()
    with place.open("rb") as file:
        file.read(60 * READ_BYTES)
    assert [one.verb for one in store.asked()] == ["HEAD", "GET"]


@pytest.mark.parametrize("offset", [0, 3, 5, 6])
@pytest.mark.parametrize("num_bytes", [0, 2, 9])
def test_a_range_ends_where_its_object_does(store: Bucket, offset: int, num_bytes: int) -> None:
    place = Location.of(store.put("range.bin", b"hello"))
    assert place.read_range(offset, num_bytes) == b"hello"[offset:][:num_bytes]


def test_what_is_missing_is_a_missing_file(store: Bucket) -> None:
    for uri in (store.uri("none"), store.uri("none").replace("videos", "no-bucket"), store.uri("a//b")):
        with pytest.raises(FileNotFoundError, match=r"none|a//b"):
            place_of(uri).read_bytes()
        with pytest.raises(FileNotFoundError):
            place_of(uri).open("rb")
        with pytest.raises(FileNotFoundError):
            Location.of(uri).read_range(0, 1)


@pytest.mark.parametrize(
    ("status", "kind"), [(401, PermissionError), (403, PermissionError), (404, FileNotFoundError), (400, OSError)]
)
def test_a_store_that_declines_says_why_in_one_line(store: Bucket, status: int, kind: type) -> None:
    error = location.BaseError(f"Server returned non-2xx status code: {status} No\n\nDebug source: many lines")
    with (
        pytest.raises(OSError, match=rf"^s3://bkt/a: .*{status} No$") as raised,
        plain_errors(Location.of("s3://bkt/a")),
    ):
        raise error
    assert type(raised.value) is kind


@pytest.fixture
def fresh_connections() -> Iterator[None]:
    """The environment is looked at anew, here and afterwards."""
    location._connect.cache_clear()
    yield
    location._connect.cache_clear()


@pytest.fixture
def no_keys(fresh_connections: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))


@pytest.mark.usefixtures("fresh_connections")
def test_an_address_in_the_environment_is_heeded(store: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    store.put("by environment.mp4", b"hello")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{store.address}")
    assert place_of("s3://videos/by environment.mp4").read_bytes() == b"hello"


@pytest.mark.usefixtures("fresh_connections")
@pytest.mark.parametrize("name", ["AWS_REGION", "AWS_DEFAULT_REGION", "option"])
def test_a_region_comes_from_the_path_or_the_environment(
    name: str, store: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = store.put("region", b"") + ("&region=eu-north-1" if name == "option" else "")
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    monkeypatch.setenv(name, "eu-north-1")
    store.door.requests.clear()
    assert place_of(uri).exists()
    assert "/eu-north-1/s3/" in store.asked("HEAD")[0].headers["authorization"]


@pytest.mark.usefixtures("no_keys")
def test_without_credentials_nothing_is_signed(store: Bucket) -> None:
    store.client.put_object(Bucket="videos", Key="private", Body=b"")
    store.door.requests.clear()
    with pytest.raises(PermissionError, match=r"^s3://videos/private.*403 Forbidden$"):
        place_of(store.uri("private")).exists()
    assert "authorization" not in store.asked("HEAD")[0].headers


@pytest.mark.usefixtures("no_keys")
def test_a_profile_that_is_not_there_is_told(store: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    with pytest.raises(Refused, match=r"s3://videos: .*nobody.*set AWS_PROFILE"):
        place_of(store.uri("a")).exists()
