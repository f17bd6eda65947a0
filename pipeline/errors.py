"""The two ways an input can be wrong: it stops the run, or it is set aside and the run goes on."""


class Refused(ValueError):
    """A request that cannot be honoured. The message is for the user: found, wanted, what to do."""


class BadVideo(Exception):
    """A video that cannot be used. The message is the reason that the quarantine keeps.

    `stderr` holds the last lines that its decoder wrote, where there are any.
    """

    def __init__(self, reason: str, stderr: str = "") -> None:
        super().__init__(reason)
        self.stderr = stderr

    def __reduce__(self) -> tuple:
        return type(self), (str(self), self.stderr)
