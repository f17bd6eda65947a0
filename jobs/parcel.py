"""What travels with a job: our packages as they are here, its run.toml, and never an input or a credential."""

import re
import shutil
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import jobs
from jobs.config import RunConfig
from jobs.run_toml import toml_document

CONFIG_NAME = "run.toml"
PINS_NAME = "pins.txt"
PACKAGES = ("cluster", "jobs", "models", "pipeline")
NOT_CODE = shutil.ignore_patterns("__pycache__", "*.md", "Dockerfile*")


def pack(config: RunConfig, folder: Path) -> Path:
    """Fill a folder with what a job needs of this machine; the same run makes the same files, byte for byte."""
    source = Path(jobs.__file__).parents[1]
    for package in PACKAGES:
        shutil.copytree(source / package, folder / package, ignore=NOT_CODE)
    # Whole: a path that is a default is a path of this machine all the same.
    document = config.model_dump(mode="json", exclude_none=True, exclude={"cluster": {"address"}})
    (folder / CONFIG_NAME).write_text(toml_document(document), encoding="utf-8")
    if config.cluster.pip:
        sent = source / PINS_NAME  # where this is a job itself, which installed what it says
        (folder / PINS_NAME).write_text(sent.read_text() if sent.exists() else "\n".join(pinned()))
    return folder


def packages(folder: Path) -> tuple[str, ...]:
    """What pip is to install for a job."""
    pins = folder / PINS_NAME
    return tuple(pins.read_text().split()) if pins.exists() else ()


def pinned() -> list[str]:
    """What we need at the versions that are installed here; but for Ray, which runs on the cluster already."""
    found = []
    for line in requires("latentmill") or ():
        requirement, _, marker = line.partition(";")
        [name] = re.findall(r"^[\w.-]+", requirement)
        if name != "ray" and "extra" not in marker and (here := _version(name)):
            found.append(f"{name}=={here}")
    return found


def _version(package: str) -> str:
    """The one that is installed here, without what is said of its build (+cpu); empty where it is not."""
    try:
        return version(package).partition("+")[0]
    except PackageNotFoundError:
        return ""
