"""The bundle: a folder with the graph, its manifest and a README, written whole or not at all, and checked again."""

from .manifest import Manifest
from .verify import verify
from .write import Bundle, export

__all__ = ["Bundle", "Manifest", "export", "verify"]
