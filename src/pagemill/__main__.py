"""`python -m pagemill` is the `pagemill` command."""

import sys

from pagemill.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
