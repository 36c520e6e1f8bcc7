"""Whether a generated program passes its tests: pass@1 of HumanEval and MBPP.

The programs are a model's: lm-evaluation-harness runs such tasks only where the user has said so.
"""

import subprocess
import sys
import tempfile

SECONDS = 10.0


def passes(program: str) -> bool:
    """Return whether a program ends well within 10 s, in a process and a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            # A file, since programs may be longer than an argument can be.
            path = f"{folder}/program.py"
            with open(path, "w", encoding="utf-8", errors="replace") as file:
                file.write(program)
            done = subprocess.run(  # noqa: S603  (the user has asked for it)
                [sys.executable, "-I", path],
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                timeout=SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return False
    return done.returncode == 0
