"""`python -m benchmarks ...`, from the top of a checkout."""

import sys
from collections.abc import Sequence

from benchmarks.errors import WrongResultError
from memory_layers.common.errors import UserError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a benchmark and return the exit code.

    Args:
        arguments: Without the program name. None: those of the process.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if given[:1] == ["gpu"]:
            from benchmarks import gpu

            return gpu.main(given[1:])
        from benchmarks.command import bench

        return bench(given, print)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except WrongResultError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
