"""Write the API reference: ``python docs/api.py FOLDER``.

Lazy names are made real first, since pdoc looks only at what is there.
"""

import sys
from importlib import import_module
from pathlib import Path

import pdoc

PACKAGES = ("shallowvit", "shallowvit_bench", "shallowvit_kernels")
LAZY = (
    "shallowvit",
    "shallowvit.adaptive",
    "shallowvit.engines",
    "shallowvit.exporting",
    "shallowvit.pruning",
    "shallowvit.recovery",
    "shallowvit.scoring",
    "shallowvit.selfcheck",
    "shallowvit.study",
    "shallowvit.tokens",
    "shallowvit.tuning",
    "shallowvit_kernels",
)


def main() -> None:
    """Write the pages."""
    for package in map(import_module, LAZY):
        for name in package.__all__:
            setattr(package, name, getattr(package, name))
    pdoc.pdoc(*PACKAGES, output_directory=Path(sys.argv[1]))


if __name__ == "__main__":
    main()
