"""Errors a user can fix: the command line prints their one sentence and exits with 1; anything else is a bug and keeps its
traceback.
"""

__all__ = ["MissingDependencyError", "ParityError", "ShallowvitError"]


class ShallowvitError(Exception):
    """Something the user can fix: what failed, where, found against expected, what to do next."""


class MissingDependencyError(ShallowvitError):
    """A package of an extra isn't installed."""

    def __init__(self, what: str, package: str, extra: str) -> None:
        super().__init__(f"{what} needs the package {package}, which is not installed. Run: pip install 'shallowvit[{extra}]'")


class ParityError(ShallowvitError):
    """An exported or saved model doesn't give the outputs of the torch model it was made from."""
