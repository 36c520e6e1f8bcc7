"""Programs of models: good ones pass, and what others try does not pass, stay or reach anything."""

import ctypes
import socket
import sys
import tempfile
from pathlib import Path

import psutil
import pytest

from memory_layers.evaluate import programs
from memory_layers.evaluate.confine import gaps
from memory_layers.evaluate.programs import passes

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="programs are not run there")
linux = pytest.mark.skipif(
    sys.platform != "linux" or bool(gaps()), reason="limits alone keep programs there"
)

GOOD = {
    "plain": ("def f(x): return x + 1", "assert f(1) == 2"),
    "types": (
        "def f(*x, **k): return (x, k)",
        "value = [1.5, float('inf'), None, True, 2 ** 9999, 'é\\ud800', b'\\0', {1: {2}}, 1j]\n"
        "assert f(value, (), a=frozenset(), b=range(3)) == "
        "((value, ()), {'a': frozenset(), 'b': range(3)})\n"
        "assert type(f(True)[0][0]) is bool",
    ),
    "objects": (
        "class f:\n  def __init__(self, v): self.v, self.next = v, None\n"
        "  def all(self): return [self.v] + (self.next.all() if self.next else [])",
        "head = f(1)\nhead.next = f(2)\nassert head.all() == [1, 2]\nassert head.next.v == 2",
    ),
    "generator": ("def f(n): yield from range(n)", "assert list(f(3)) == [0, 1, 2]"),
    "truth": (
        "import re\ndef f(text): return re.match('a', text)",
        "assert f('ab')\nassert not f('b')",
    ),
    "lambda": ("def f(n): return lambda m: n + m", "assert f(3)(4) == 7"),
    "error": (
        "def f(n): raise KeyError(n)",
        "try: f(1)\nexcept KeyError: pass\nelse: raise AssertionError",
    ),
    "main": ("def f(): return 1\nif __name__ == '__main__': print(f())", "assert f() == 1"),
    "own file": (
        "def f():\n  open('a', 'w').write('b')\n  return open('a').read()", "assert f() == 'b'",
    ),
    "threads": (
        "from concurrent.futures import ThreadPoolExecutor\n"
        "def f():\n  with ThreadPoolExecutor(2) as pool: return sum(pool.map(abs, [-1, 2]))",
        "assert f() == 3",
    ),
    "asyncio": (
        "import asyncio\ndef f(n): return asyncio.run(asyncio.to_thread(abs, n))",
        "assert f(-2) == 2",
    ),
    "numpy": ("import numpy as np\ndef f(n): return np.arange(n).sum()", "assert f(4) == 6"),
    "dataclass": (
        "from dataclasses import dataclass, asdict\n@dataclass\nclass P: x: int\n"
        "def f(): return asdict(P(1))", "assert f() == {'x': 1}",
    ),
}  # fmt: skip

# Of f(x) = 2 x. What they do on being loaded, or on being called.
LOADED = {
    "syntax": "def f(:",
    "no function": "pass",
    "exit": "import sys; sys.exit(0)",
    "_exit": "import os; os._exit(0)",
    "at exit": "import atexit, os; atexit.register(os._exit, 0); raise ValueError",
    "marks": "import os\nfor n in range(20):\n  try: os.write(n, b'r')\n  except OSError: pass",
    "answers": (
        "import os\nfor n in range(3, 20):\n"
        '  try: os.write(n, b\'["value", ["kept", 0]]\\n["value", true]\\n\' * 9)\n'
        "  except OSError: pass"
    ),
    "nesting": (
        "import os\nfor n in range(3, 20):\n"
        "  try: os.write(n, b'[' * 60000 + b'\\n')\n  except OSError: pass"
    ),
    "closed pipes": "import os; os.closerange(0, 64)\ndef f(x): return 2 * x",
    "builtins": (
        "import builtins\nbuiltins.AssertionError = Warning\n"
        "builtins.sorted = builtins.abs = lambda x: 0\ndef sorted(x): return []\ndef f(x): return 0"
    ),
    "json": ("import json\njson.dumps = lambda x: '[\"value\", true]'\ndef f(x): return True"),
    "own source": (
        "import os, re\nsource = open('program.py').read()\n"
        "for name in re.findall(r\"open\\('(.*?)', 'w'\", source): open(name, 'w')\nos._exit(0)"
    ),
    "worker": (
        "import sys\nworker = sys.modules['memory_layers.evaluate.worker']\nworker.os._exit(0)"
    ),
    "frames": (
        "import sys\nframe = sys._getframe()\n"
        "while frame: frame.f_globals['passed'] = True; frame = frame.f_back\n"
        "def f(x): return 0"
    ),
    "trace": "import sys; sys.settrace(lambda *a: sys.exit(0))\ndef f(x): return 0",
    "seek": (
        "import gc\ndef f(x):\n"
        "  return next((o['expected'] for o in gc.get_objects() if isinstance(o, dict) "
        "and 'expected' in o), 0)"
    ),
    "class": "class f:\n  __class__ = int\n  def __new__(cls, x): return object.__new__(cls)",
}
CALLED = {
    "exit": "raise SystemExit(0)",
    "_exit": "import os; os._exit(0)",
    "interrupt": "raise KeyboardInterrupt",
    "assertion": "raise AssertionError",
    "equal to all": (
        "class E:\n    __eq__ = __le__ = __ge__ = lambda *a: True\n    __ne__ = lambda *a: False\n"
        "  return E()"
    ),
    "number equal to all": "return type('E', (int,), {'__eq__': lambda *a: True})(0)",
    "text equal to all": "return type('E', (str,), {'__eq__': lambda *a: True})('')",
    "abort": "import ctypes; ctypes.string_at(0)",
    "recursion": "return f(x)",
    "memory": "return len(bytearray(2 ** 40))",
    "memory in steps": "kept = []\n  while True: kept.append(bytearray(2 ** 26))",
    "files": "return [open('/dev/zero') for n in range(10 ** 6)]",
    "large file": "open('a', 'wb').write(bytes(2 ** 24)); return 2 * x",
    "loop": "while True: pass",
    "sleep": "import time; time.sleep(1e6)",
    "endless answer": "return iter(int, 1)",
    "no end": (
        "import threading; threading.Thread(target=lambda: [0 for n in iter(int, 1)]).start()\n"
        "  return 0"
    ),
    "signals": (
        "import signal\n  for n in range(1, 32):\n    try: signal.signal(n, signal.SIG_IGN)\n"
        "    except OSError: pass\n  while True: pass"
    ),
}
TESTS = "expected = 4\nassert expected in sorted([f(2)])\nassert abs(f(-3)) == 6\nassert f(0) == 0"

# What may not even be done.
REFUSED = {
    "fork": "os.fork()",
    "spawn": "subprocess.Popen(['true'])",
    "new program": "os.execv(sys.executable, [sys.executable, '-c', ''])",
    "signal": "os.kill(os.getppid(), 0)",
    "signal to all": "os.kill(-1, 0)",
    "limits of others": "resource.prlimit(os.getppid(), resource.RLIMIT_CPU)",
    "cores of others": "os.sched_setaffinity(os.getppid(), [0])",
    "owner of a pipe": "fcntl.fcntl(os.pipe()[0], fcntl.F_SETOWN, os.getppid())",
    "outlive": "call(C.prctl(1, 0, 0, 0, 0))",
    "trace": "call(C.ptrace(16, os.getppid(), 0, 0))",
    "namespace": "call(C.unshare(0x10000000))",
    "network": "socket.socket()",
    "local socket": "socket.socket(socket.AF_UNIX)",
    "watch a folder": "call(C.inotify_init1(0))",
    "ring": "call(C.syscall(425, 8, 0))",
    "key": "call(C.syscall({'x86_64': 248, 'aarch64': 217}[platform.machine()], 0, 0, 0, 0, 0))",
    "read a file": "open(PRIVATE)",
    "list a folder": "os.listdir(os.path.dirname(PRIVATE))",
    "write a file": "open(PRIVATE, 'w')",
    "new file": "open(PRIVATE + '2', 'w')",
    "remove": "os.remove(PRIVATE)",
    "rename": "os.rename(PRIVATE, PRIVATE + '2')",
    "link": "os.link(PRIVATE, 'linked')",
    "symbolic link": "os.symlink(PRIVATE, 'linked')",
    "mode": "os.chmod(PRIVATE, 0)",
    "times": "os.utime(PRIVATE)",
    "truncate": "os.truncate(PRIVATE, 0)",
    "own folder in folder": "os.mkdir('a')",
    "Python itself": "open(os.__file__, 'a')",
    "parent": "open(f'/proc/{os.getppid()}/environ')",
    "memory of the parent": "open(f'/proc/{os.getppid()}/mem')",
    "shared memory": "open('/dev/shm/x', 'w')",
    "terminal": "open('/dev/tty')",
}
IMPORTS = """
import ctypes, fcntl, os, platform, resource, socket, subprocess, sys
C = ctypes.CDLL(None, use_errno=True)
def call(result):
    if result < 0: raise OSError(ctypes.get_errno(), "refused")
"""


@pytest.fixture(autouse=True)
def nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No process and no file of a program is there after it."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(programs, "SECONDS", 2.0)
    before = psutil.Process().children(recursive=True)
    yield
    assert [one for one in psutil.Process().children(recursive=True) if one not in before] == []
    assert not [path for path in tmp_path.iterdir() if path.name != "private"]


@pytest.mark.parametrize("name", GOOD)
def test_good_programs_pass(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # A machine that is busy is not what is tested.
    monkeypatch.setattr(programs, "SECONDS", 60.0)
    assert passes(*GOOD[name], ["f"])


@pytest.mark.parametrize("name", LOADED)
def test_no_program_passes_by_what_it_does_on_being_loaded(name: str) -> None:
    assert not passes(LOADED[name], TESTS, ["f"])


@pytest.mark.parametrize("name", CALLED)
def test_no_program_passes_by_what_it_does_on_being_called(name: str) -> None:
    assert not passes(f"def f(x):\n  {CALLED[name]}", TESTS, ["f"])


@linux
@pytest.mark.parametrize("tried", REFUSED)
def test_what_a_program_is_refused(tried: str, tmp_path: Path) -> None:
    private = tmp_path / "private" / "file"
    private.parent.mkdir()
    private.write_text("private")
    before = private.stat()
    program = (
        f"{IMPORTS}PRIVATE = {str(private)!r}\n"
        f"def f():\n  try: {REFUSED[tried]}\n  except OSError: return 'refused'\n"
    )
    assert passes(program, "assert f() == 'refused'", ["f"])
    after = private.stat()
    assert (after.st_mode, after.st_mtime_ns) == (before.st_mode, before.st_mtime_ns)
    assert private.read_text() == "private"
    assert [*private.parent.iterdir()] == [private]


@linux
@pytest.mark.parametrize(
    "tried",
    [
        "datagrams().sendto(b'', OTHER)", "datagrams().connect(OTHER)",
        "datagrams().sendmsg([b''], [], 0, OTHER)",
        "socket.socketpair()[0].bind(chr(0) + 'name')",
        "call(-(C.shmat(MEMORY, None, 0) == -1))",
        "call(C.shmctl(MEMORY, 0, None))",
    ],
)  # fmt: skip
def test_a_program_reaches_no_other_process_of_the_user(tried: str, tmp_path: Path) -> None:
    library, other = ctypes.CDLL(None), str(tmp_path / "private")
    memory = library.shmget(0, 4096, 0o1600)
    program = (
        f"{IMPORTS}OTHER, MEMORY = {other!r}, {memory}\n"
        "def datagrams(): return socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)[0]\n"
        f"def f():\n  try: {tried}\n  except PermissionError: return 'refused'\n"
    )
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(other)
        assert passes(program, "assert f() == 'refused'", ["f"])
    # There it is still.
    assert library.shmctl(memory, 0, None) == 0


@linux
@pytest.mark.parametrize(
    "tried",
    ["open(str(n), 'wb').write(bytes(2 ** 20))", "threading.Thread(target=time.sleep, "
     "args=(1e6,), daemon=True).start()"],
    ids=["files", "threads"],
)  # fmt: skip
def test_a_program_of_many_files_or_threads_ends_soon(
    tried: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(programs, "SECONDS", 1e6)
    program = "import itertools, threading, time\nthreading.stack_size(2 ** 15)\n"
    program += f"def f():\n  for n in itertools.count(): {tried}\n"
    assert not passes(program, "f()", ["f"])


def test_a_program_has_no_environment_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "secret")
    program = "import os\ndef f(): return (os.environ.get('SECRET'), os.environ['HOME'])"
    assert passes(program, f"assert f()[0] is None and f()[1] != {str(Path.home())!r}", ["f"])
