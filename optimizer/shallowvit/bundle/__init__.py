"""The bundle: a folder with the graph, its manifest and a README, written whole or not at all, and checked again."""

from .checking import verify
from .manifest import Manifest
from .write import Bundle, export

__all__ = ["Bundle", "Manifest", "export", "verify"]
