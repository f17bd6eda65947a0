"""Where things run: Ray, and nothing of ours. Functions and actors are handed in."""

import os
import sys

if "ray" not in sys.modules:  # it reads this once, when it is imported; set later, its processes would disagree
    os.environ.setdefault("RAY_AUTH_MODE", "token")
