"""The verbs: what a user can ask for."""

import cluster  # noqa: F401  # first of all, because it says how Ray is to be imported
