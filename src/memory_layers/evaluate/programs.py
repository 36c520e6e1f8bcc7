"""Whether a program that a model has written passes its tests: pass@1 of HumanEval and MBPP.

Program and tests run in a process each, see worker.py, and what these may do is in confine.py.
"""

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, cast

from memory_layers.common.errors import UserError
from memory_layers.evaluate.confine import gaps
from memory_layers.evaluate.worker import READY

# For the tests, and for Python to start, which depends on the machine alone.
SECONDS = 10.0
START_SECONDS = 120.0
# What a program may have at a time. Each file is at most confine.FILE_SIZE.
MOST_FILES, MOST_THREADS = 256, 256
LOOK_SECONDS = 0.05
_START = "import sys; sys.path.insert(0, sys.argv.pop(1)); from memory_layers.evaluate.worker "
_START += "import main; del sys.path[0]; main()"


def passes(program: str, tests: str, names: Sequence[str], *, before: str = "") -> bool:
    """Return whether tests of a program run to their end within 10 s.

    The program has a process of its own, which starts no others, reaches no network and no files
    but those of Python and an empty folder, as far as the system allows that: see confine.gaps. It
    does not see its tests: what they use of it is called from another process, with plain values
    (numbers, texts, lists, dicts and so on) as arguments and results, and with objects of the
    program. Only what the tests find equal passes, whatever the program does.

    Args:
        program: Of a model.
        tests: Statements that raise where the program is wrong.
        names: What of the program the tests may use. All else is theirs or Python's.
        before: Runs before the tests, such as what they need to import.

    Raises:
        UserError: Programs cannot be run on this machine.
    """
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name, ExitStack() as stack:
        asked, asks = os.pipe()
        told, tells = os.pipe()
        ends = [stack.enter_context(open(end, "rb", buffering=0)) for end in (asked, told)]
        ends += [stack.enter_context(open(end, "wb", buffering=0)) for end in (asks, tells)]
        task = {"before": before, "tests": tests, "names": list(names)}
        ran = stack.enter_context(
            _process("program", asked, tells, Path(name), {"program": program})
        )
        judge = stack.enter_context(_process("tests", told, asks, Path(name), task))
        # So that either process sees that the other one has ended.
        for end in ends:
            end.close()
        out = judge.stdout
        if out is None or not select.select([out], [], [], START_SECONDS)[0] or out.read() != READY:
            raise UserError(
                "programs of a model cannot be confined on this machine, so they are not run. "
                "hint: leave out the tasks that need --run-code"
            )
        until = time.monotonic() + SECONDS
        while time.monotonic() < until and not _takes_too_much(ran.pid, Path(name)):
            with suppress(subprocess.TimeoutExpired):
                return judge.wait(LOOK_SECONDS) == 0
        return False


def _takes_too_much(program: int, folder: Path) -> bool:
    """Tell whether a program fills the disk, or the system's table of threads."""
    # Only Linux lists threads. It is gone where the program has ended.
    with suppress(OSError):
        if len(os.listdir(f"/proc/{program}/task")) > MOST_THREADS:
            return True
    return len(os.listdir(folder)) > MOST_FILES


def tell_gaps(tasks: Sequence[str]) -> None:
    """Say what the programs of tasks can reach on this machine, where that is something.

    Raises:
        UserError: They cannot be run there.
    """
    try:
        reached = gaps()
    except OSError as error:
        raise UserError(f"{', '.join(tasks)}: {error}. hint: leave them out") from error
    if reached:
        sys.stderr.write(
            f"on this machine, programs that the model writes can reach {' and '.join(reached)}. "
            "hint: use a container for a model that you do not trust\n"
        )


@contextmanager
def _process(
    role: str, reads: int, writes: int, folder: Path, task: Mapping[str, object]
) -> Generator[subprocess.Popen]:
    """Run worker.py until the end of a `with` block, and then nothing of it any more."""
    # Secrets are in environments, and Python may need its libraries from there.
    kept = {key: os.environ[key] for key in ("LD_LIBRARY_PATH", "PATH") if key in os.environ}
    own = {"HOME": str(folder), "TMPDIR": str(folder), "LANG": "C.UTF-8"}
    threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    source = str(Path(__file__).parents[2])
    command = [sys.executable, "-I", "-B", "-c", _START, source, role, str(reads), str(writes)]
    with subprocess.Popen(  # noqa: S603  (Python itself)
        [*command, folder],
        cwd=folder,
        env=kept | own | threads,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE if role == "tests" else subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        pass_fds=(reads, writes),
        start_new_session=True,
    ) as process:
        try:
            # One that ends before it has read all is known by what it does not answer.
            with suppress(BrokenPipeError), cast("IO[bytes]", process.stdin) as stdin:
                stdin.write(json.dumps(task).encode())
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
