"""The error a user of the harness can fix: the command line prints its one sentence; anything else is a bug."""

__all__ = ["BenchError"]


class BenchError(Exception):
    """Something the user can fix: what failed, where, found against expected, what to do next."""
