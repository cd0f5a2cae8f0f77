"""The error a user of the kernels can fix: one sentence; anything else is a bug and keeps its traceback."""

__all__ = ["KernelError"]


class KernelError(Exception):
    """Something the user can fix: what failed, where, found against expected, what to do next."""
