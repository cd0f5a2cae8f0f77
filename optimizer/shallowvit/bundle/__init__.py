"""The bundle: a folder with the graph, its manifest and a README, written whole or not at all, and checked again."""

from .building import build
from .checking import verify
from .manifest import Manifest
from .records import Bundle
from .write import export

__all__ = ["Bundle", "Manifest", "build", "export", "verify"]
