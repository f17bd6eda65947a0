"""Local paths are used as they are, hub ids are found in the hub's cache, and what is neither is one clear line."""

import socket
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import huggingface_hub.constants
import huggingface_hub.hf_api
import pytest

from models.hub import locate

PATTERNS = ["config.json", "vae/config.json"]
COMMITS = {"main": "a" * 40, "v2": "b" * 40}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub cache with owner/name in two revisions, on a machine that may not ask the hub."""
    repository = tmp_path / "hub" / "models--owner--name"
    for revision, commit in COMMITS.items():
        write(repository / "refs" / revision, commit)
        write(repository / "snapshots" / commit / "vae" / "config.json", revision)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return repository / "snapshots"


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_folders_and_files_are_used_as_they_are(tmp_path: Path):
    write(tmp_path / "config.json", "{}")
    assert locate(tmp_path, PATTERNS) == tmp_path
    assert locate(str(tmp_path / "config.json"), PATTERNS) == tmp_path / "config.json"


def test_home_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "vae").mkdir()
    assert locate("~/vae", PATTERNS) == tmp_path / "vae"


def test_a_cached_repository_is_used_without_network(cache: Path):
    found = locate("owner/name", PATTERNS)
    assert found == cache / COMMITS["main"]
    assert (found / "vae" / "config.json").read_text() == "main"


@pytest.mark.parametrize("revision", ["v2", COMMITS["v2"]])
def test_a_revision_follows_an_at_sign(cache: Path, revision: str):
    assert (locate(f"owner/name@{revision}", PATTERNS) / "vae" / "config.json").read_text() == "v2"


def test_a_folder_wins_over_a_hub_id_of_the_same_name(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner" / "name").mkdir(parents=True)
    assert locate("owner/name", PATTERNS) == Path("owner/name")


class Unknown(BaseHTTPRequestHandler):
    """What the hub answers about a repository that it does not have."""

    def do_GET(self) -> None:
        self.send_response(404)
        self.send_header("X-Error-Code", "RepoNotFound")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


def ask(server: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the hub be this server."""
    address = f"http://127.0.0.1:{server.getsockname()[1]}"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
    monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", address)


@pytest.fixture
def silent_hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """It takes connections and never answers, as behind a firewall that drops packets."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        ask(server, monkeypatch)
        monkeypatch.setattr("models.hub.TIMEOUT_S", 0.1)
        yield


@pytest.fixture
def empty_hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with HTTPServer(("127.0.0.1", 0), Unknown) as server:
        ask(server.socket, monkeypatch)
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield
        server.shutdown()
        thread.join()


def test_a_repository_that_the_hub_does_not_have_is_one_line(cache: Path, empty_hub: None):
    with pytest.raises(ValueError, match=r"\Aowner/other: .*\(RepositoryNotFoundError: .*; download it and .*\Z"):
        locate("owner/other", PATTERNS)


def test_the_cache_is_used_where_the_hub_no_longer_has_the_repository(cache: Path, empty_hub: None):
    assert locate("owner/name", PATTERNS) == cache / COMMITS["main"]


def test_the_cache_is_used_where_the_hub_does_not_answer(cache: Path, silent_hub: None):
    assert locate("owner/name", PATTERNS) == cache / COMMITS["main"]


def test_a_hub_that_does_not_answer_is_one_line(cache: Path, silent_hub: None):
    with pytest.raises(ValueError, match=r"^owner/other: .*Timeout.*; download it and give its folder$"):
        locate("owner/other", PATTERNS)


@pytest.mark.parametrize("name", ["owner/other", "owner/name@v3", f"owner/name@{'c' * 40}"])
def test_what_is_not_in_the_cache_is_one_line(cache: Path, name: str):
    with pytest.raises(ValueError, match=f"^{name}: no such folder here, not in the hub's cache, .*give its folder$"):
        locate(name, PATTERNS)


@pytest.mark.parametrize(
    "name",
    [
        "name",
        "./owner/name",
        "/owner/name",
        "~/owner/name",
        "owner/name/vae",
        "owner/na me",
        "owner/name@",
        "-o/name",
        "",
    ],
)
def test_a_name_that_is_neither_says_what_hub_ids_look_like(cache: Path, name: str):
    with pytest.raises(ValueError, match="not a hub id, which looks like owner/name or owner/name@revision"):
        locate(name, PATTERNS)


def test_a_name_that_only_the_hub_would_refuse_is_one_line_too(cache: Path):
    with pytest.raises(ValueError, match=r"^owner/na--me: .*HFValidationError.*give its folder$"):
        locate("owner/na--me", PATTERNS)
