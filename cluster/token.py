"""The token that opens a Ray cluster: a file that its owner alone can read."""

import os
import secrets
from contextlib import suppress
from pathlib import Path


def make_token() -> None:
    """Make the token that a cluster started here will want, where there is none: Ray's own could be read by all."""
    path, told = token_path(), {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys()
    if told or path.exists() or os.environ.get("RAY_AUTH_MODE", "token") != "token":
        return
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    draft.touch(mode=0o600)
    draft.write_text(secrets.token_hex(32))
    with suppress(FileExistsError):
        os.link(draft, path)  # whole, and never over one that opens another cluster
    draft.unlink()


def keep_token_private() -> None:
    """Take our token's file from everybody else's eyes; one that belongs to somebody else is theirs to mend."""
    path = token_path()
    if path.exists() and path.stat().st_uid == os.getuid() and path.stat().st_mode & 0o077:
        path.chmod(0o600)


def token_path() -> Path:
    """Where Ray looks for it."""
    return Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
