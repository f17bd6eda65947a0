"""The verbs: what a user can ask for."""
