"""Published checkpoints: a folder, a file, or the id of a repository on the Hugging Face hub."""

from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError


def locate(path: str | Path, patterns: list[str]) -> Path:
    """A folder or file as it is; the id of a hub repository (owner/name or owner/name@revision) -> its files, fetched.

    Only files that match `patterns` are fetched, once: they stay in the hub's cache. ValueError where there is neither.
    """
    here = Path(path).expanduser()
    if here.exists():
        return here
    repository, _, revision = str(path).partition("@")
    if repository.count("/") != 1 or str(path).startswith((".", "/", "~")):
        raise ValueError(
            f"{path}: no such file or folder, and not a hub id, which looks like owner/name or owner/name@revision"
        )
    try:
        return Path(snapshot_download(repository, revision=revision or None, allow_patterns=patterns))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ValueError(
            f"{path}: no such folder here, and the hub did not give a repository of that name "
            f"({type(error).__name__}: {str(error).splitlines()[0]}); download it and give its folder"
        ) from error
