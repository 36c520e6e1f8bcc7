"""Where a result comes from: machine, versions and commit, for every file of results."""

import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from memory_layers.common.version import __version__


def device_name() -> str:
    """Return processor and number of cores in use."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [line for line in info.read_text("utf-8").splitlines() if "model name" in line]
        model = names[0].split(":", 1)[1].strip() if names else model
    return f"{model}, {os.cpu_count()} cores"


def versions(*packages: str) -> dict[str, str]:
    """Return the versions that results depend on, of those packages that are installed.

    Args:
        *packages: Names besides Python and this package.
    """
    found = {"python": platform.python_version(), "memory_layers": __version__}
    for name in packages:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str | None:
    """Return the commit of the source tree this package runs from, None outside a checkout."""
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],  # noqa: S607
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError:
        return None
    return found.stdout.strip() or None


def peak_bytes() -> int:
    """Return the most memory that this process has had. 0: the platform does not say."""
    if sys.platform == "win32":
        return 0
    import resource

    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size if sys.platform == "darwin" else size * 1024
