"""`python -m memory_layers` is the command `memory-layers`."""

import sys

from memory_layers.cli import main

if __name__ == "__main__":
    sys.exit(main())
