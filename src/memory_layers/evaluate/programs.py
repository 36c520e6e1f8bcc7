"""Whether a generated program passes its tests: pass@1 of HumanEval and MBPP.

The programs are a model's: lm-evaluation-harness runs such tasks only where the user has said so.
"""

import os
import secrets
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

SECONDS = 10.0


def passes(program: str) -> bool:
    """Return whether a program runs to its end within 10 s, in processes and a folder of its own.

    What it leaves running is stopped.
    """
    # Written at the end: a program that leaves before its tests has not passed them.
    end = secrets.token_hex(8)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder = Path(name)
        lines = f"{program}\nopen({str(folder / end)!r}, 'w').close()\n"
        # A file, since programs may be longer than an argument can be.
        (folder / "program.py").write_text(lines, "utf-8", errors="replace")
        process = subprocess.Popen(
            [sys.executable, "-I", "program.py"],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            process.wait(SECONDS)
        except subprocess.TimeoutExpired:
            return False
        finally:
            if hasattr(os, "killpg"):
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
            else:
                process.kill()
            process.wait()
        return process.returncode == 0 and (folder / end).is_file()
