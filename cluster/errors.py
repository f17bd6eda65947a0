"""What is wrong with a cluster, for its user to mend. Light to import."""


class NoCluster(RuntimeError):
    """It cannot be reached, or refuses us, or what was asked of it cannot be; says so in one line, and what to do."""


def no_token(address: str) -> NoCluster:
    """A cluster wants a token, and none that it takes was found."""
    return NoCluster(
        f"{address}: found no token here that this cluster takes; copy ~/.ray/auth_token of its head to the same place "
        f"here, or name a file with it in RAY_AUTH_TOKEN_PATH; RAY_AUTH_MODE=disabled is for clusters that want none"
    )
