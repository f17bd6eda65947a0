"""Where things run: Ray, and nothing of ours. Functions and actors are handed in."""
