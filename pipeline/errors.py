"""The two ways an input can be wrong: it stops the run, or it is set aside and the run goes on."""


class Refused(ValueError):
    """A request that cannot be honoured. The message is for the user: found, wanted, what to do."""


class BadVideo(Exception):
    """A video that cannot be used. The message is the reason that the quarantine keeps."""
