"""Published checkpoints: a folder, a file, or the id of a repository on the Hugging Face hub."""

import re
from functools import partial
from pathlib import Path

HUB_ID = re.compile(r"(?P<repository>\w[\w.-]*/\w[\w.-]*)(@(?P<revision>[^@]+))?")
TIMEOUT_S = 5.0  # for the hub to say whether it has a repository


def locate(path: str | Path, patterns: list[str]) -> Path:
    """A folder or file as it is; the id of a hub repository (owner/name or owner/name@revision) -> its files, fetched.

    Only files that match `patterns` are fetched, once: they stay in the hub's cache and are found there where the hub
    does not answer, or is not to be asked (HF_HUB_OFFLINE=1). ValueError where there is neither.
    """
    here = Path(path).expanduser()
    if str(path) and here.exists():  # an empty name would be the current folder
        return here
    if not (hub_id := HUB_ID.fullmatch(str(path))):
        raise ValueError(
            f"{path}: no such file or folder, and not a hub id, which looks like owner/name or owner/name@revision"
        )
    # Here, for every process that knows of models would take 0.2 s longer to begin, and few fetch any.
    from huggingface_hub import model_info, snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    repository, revision = hub_id["repository"], hub_id["revision"]
    fetch = partial(snapshot_download, repository, revision=revision, allow_patterns=patterns)
    try:
        # The download asks this too, but without a timeout: it would hang where a firewall drops packets.
        model_info(repository, revision=revision, timeout=TIMEOUT_S)
        return Path(fetch())
    except Exception as error:  # the hub's own, or those of its HTTP client, which is another one in other versions
        try:
            return Path(fetch(local_files_only=True))
        except (LocalEntryNotFoundError, HFValidationError):
            reason = str(error).partition("\n")[0]
            raise ValueError(
                f"{path}: no such folder here, not in the hub's cache, and the hub did not give it "
                f"({type(error).__name__}: {reason}); download it and give its folder"
            ) from error
