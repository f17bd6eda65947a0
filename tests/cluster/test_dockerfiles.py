"""A lint of the images: what they are made from, who they run as, what gets into them."""

import re
from pathlib import Path

import pytest

from cluster.manifests.pods import USER_ID

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILES = ["cluster/Dockerfile", "cluster/Dockerfile.cpu"]
each = pytest.mark.parametrize("name", DOCKERFILES)
SECRET = re.compile(r"(?i)(token|secret|password|passwd|credential|access_key|api_key)\w*\s*[= ]\s*\S")
ALLOWED = "RAY_AUTH_MODE=token"


def instructions(name: str) -> list[tuple[str, str]]:
    """A Dockerfile as (instruction, arguments), without comments and with its continued lines joined."""
    text = re.sub(r"^\s*#.*\n", "", (ROOT / name).read_text(), flags=re.MULTILINE)
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    found = [line.split(maxsplit=1) for line in lines if line.strip()]
    assert all(word.isupper() for word, _ in found)
    return [(word, rest) for word, rest in found]


def of(name: str, wanted: str) -> list[str]:
    return [rest for word, rest in instructions(name) if word == wanted]


@each
def test_the_base_has_a_version(name: str) -> None:
    for base in of(name, "FROM"):
        image, colon, tag = base.partition(":")
        assert colon and re.search(r"\d+\.\d+", tag) and "latest" not in tag, f"{image} is whatever is newest"


def test_one_image_has_the_cuda_that_torch_is_built_for() -> None:
    [base] = of("cluster/Dockerfile", "FROM")
    [cuda] = re.findall(r"^cuda-toolkit==(\d+\.\d+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert base.startswith(f"nvidia/cuda:{cuda}.") and "-runtime-" in base


@each
def test_everything_but_system_packages_is_done_as_a_user_whom_the_pods_run_as(name: str) -> None:
    user = next(number for number, (word, _) in enumerate(instructions(name)) if word == "USER")
    as_root = [rest for word, rest in instructions(name)[:user] if word == "RUN"]
    assert len(as_root) == 1 and as_root[0].startswith("apt-get update")
    assert of(name, "USER") == ["ubuntu"]
    assert of(name, "FROM")[0].endswith("ubuntu:24.04") or of(name, "FROM")[0].endswith("-ubuntu24.04")
    assert USER_ID == 1000  # of `ubuntu` in Ubuntu 24.04


@each
def test_system_packages_leave_no_lists_behind_and_bring_nothing_unasked(name: str) -> None:
    [line] = [line for line in of(name, "RUN") if "apt-get install" in line]
    assert "--no-install-recommends" in line and line.endswith("rm -rf /var/lib/apt/lists/*")
    assert "sudo" not in line
    assert {"g++", "python3-dev", "wget", "rsync", "openssh-client"} <= set(line.split())


@each
def test_python_packages_are_one_layer_at_the_pinned_versions(name: str) -> None:
    [layer] = [line for line in of(name, "RUN") if "pip install" in line]
    for command in layer.split("&&"):
        if "pip install" in command:
            assert "--constraint constraints.txt" in command and "--no-cache-dir" in command


@each
def test_code_comes_after_the_packages_so_that_a_change_of_it_does_not_install_them_again(name: str) -> None:
    words = instructions(name)
    installed = next(number for number, (_, rest) in enumerate(words) if "pip install" in rest)
    before = " ".join(rest for word, rest in words[:installed] if word == "COPY")
    after = " ".join(rest for word, rest in words[installed:] if word == "COPY")
    for folder in ("cluster", "jobs", "models", "pipeline"):
        assert folder not in before.split() and folder in after.split()


@each
def test_nothing_is_fetched_unseen_and_no_secret_is_built_in(name: str) -> None:
    words = instructions(name)
    assert not [rest for word, rest in words if word == "ADD"]
    fetched = [rest for word, rest in words if word == "RUN" and re.search(r"\b(curl|wget|git clone)\b", rest)]
    assert [rest for rest in fetched if "apt-get install" not in rest] == []
    assert not [rest for word, rest in words if SECRET.search(rest.replace(ALLOWED, ""))]
    assert of(name, "ENV")[-1] == ALLOWED


@each
def test_home_is_told_for_rays_launcher_mounts_the_token_there(name: str) -> None:
    assert "HOME=/home/ubuntu" in " ".join(of(name, "ENV"))
    assert any("mkdir -m 700 $HOME/.ray" in line for line in of(name, "RUN"))


@each
def test_all_that_is_copied_is_let_through_and_nothing_else(name: str) -> None:
    first, *rest = [
        line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")
    ]
    let_through = {line[1:] for line in rest if line.startswith("!")}
    copied = {word for line in of(name, "COPY") for word in line.split()[1:-1]}
    assert first == "*"
    assert let_through == copied
    assert all((ROOT / path).exists() for path in let_through)
