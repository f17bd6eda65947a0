"""How a verb can end: in a word, and as the exit code of its process."""

from cluster.errors import NoCluster
from jobs.config import ConfigError
from pipeline.errors import Refused

DONE, FAILED, BAD_USAGE, QUARANTINED, INTERRUPTED = 0, 1, 2, 3, 130


def outcome_of(error: BaseException) -> tuple[str, int]:
    """That of a verb which raised `error`."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", INTERRUPTED
    if isinstance(error, SystemExit):  # of SIGTERM, to which Ray and training listen
        return "stopped", error.code if isinstance(error.code, int) else FAILED
    refused = refusal(error)
    return ("failed" if refused is None else "refused"), BAD_USAGE if isinstance(refused, ConfigError) else FAILED


def refusal(error: BaseException | None) -> Refused | NoCluster | None:
    """The refusal in a chain of exceptions: Ray wraps what its workers raise."""
    while error is not None:
        wrapped = getattr(error, "cause", None)
        if isinstance(error, (Refused, NoCluster)) and wrapped is None:
            return error
        error = wrapped if isinstance(wrapped, BaseException) else error.__cause__
    return None
