"""``python -m shallowvit.selfcheck``: the command where the script ``shallowvit`` isn't on ``PATH``."""

import sys

from ..cli.main import main

if __name__ == "__main__":
    sys.argv = ["shallowvit", "selfcheck", *sys.argv[1:]]
    main()
