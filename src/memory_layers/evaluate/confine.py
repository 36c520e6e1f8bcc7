"""What a process that runs a model's programs gives up, for good and without needing any rights.

On Linux a seccomp filter, a Landlock domain and limits; elsewhere the limits alone: see gaps.
"""

import ctypes
import os
import platform
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType

MEMORY = 2 * 2**30
FILE_SIZE = 2**20
OPEN_FILES = 64

# AUDIT_ARCH_X86_64 and AUDIT_ARCH_AARCH64, and the column of a system call's number below.
_MACHINES: Mapping[str, tuple[int, int]] = MappingProxyType(
    {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}
)
# From the headers of Linux, asm/unistd_64.h and asm-generic/unistd.h.
_REFUSED: tuple[tuple[int | None, int | None], ...] = (
    # Other processes: fork, vfork, execve, execveat, unshare, setns,
    (57, None), (58, None), (59, 221), (322, 281), (272, 97), (308, 268),
    # kill, tkill, tgkill, rt_sigqueueinfo, rt_tgsigqueueinfo, pidfd_send_signal,
    (62, 129), (200, 130), (234, 131), (129, 138), (297, 240), (424, 424),
    # pidfd_open, pidfd_getfd, ptrace, process_vm_readv, process_vm_writev, kcmp,
    (434, 434), (438, 438), (101, 117), (310, 270), (311, 271), (312, 272),
    # process_madvise, process_mrelease, prlimit64, setpriority, ioprio_set, migrate_pages,
    (440, 440), (448, 448), (302, 261), (141, 140), (251, 30), (256, 238),
    # move_pages, sched_setaffinity, sched_setscheduler, sched_setparam, sched_setattr.
    (279, 239), (203, 122), (144, 119), (142, 118), (314, 274),
    # The network, and ways around a filter: socket, io_uring_setup, io_uring_enter,
    # io_uring_register, bpf, perf_event_open, userfaultfd.
    (41, 198), (425, 425), (426, 426), (427, 427), (321, 280), (298, 241), (323, 282),
    # connect, bind, and what names whom a socket of a pair writes to: sendmsg, sendmmsg.
    (42, 203), (49, 200), (46, 211), (307, 269),
    # What outlives a process, or is another's of the user: shmget, shmat, shmctl, msgget, msgsnd,
    (29, 194), (30, 196), (31, 195), (68, 186), (69, 189),
    # msgrcv, msgctl, semget, semop, semctl, semtimedop, mq_open, mq_unlink, keyctl, add_key,
    (70, 188), (71, 187), (64, 190), (65, 193), (66, 191), (220, 192), (240, 180), (241, 181),
    (250, 219), (248, 217),
    # request_key. What is done in other folders: inotify_init, inotify_init1, fanotify_init.
    (249, 218), (253, None), (294, 26), (300, 262),
    # What Landlock lets pass: chmod, fchmod, fchmodat, chown, fchown, lchown, fchownat, truncate,
    (90, None), (91, 52), (268, 53), (92, None), (93, 55), (94, None), (260, 54), (76, 45),
    # utime, utimes, futimesat, utimensat, setxattr, lsetxattr, fsetxattr,
    (132, None), (235, None), (261, None), (280, 88), (188, 5), (189, 6), (190, 7),
    # removexattr, lremovexattr, fremovexattr.
    (197, 14), (198, 15), (199, 16),
)  # fmt: skip
# Refused with one value of an argument: number, argument, value. Signals to the owner of a file
# (fcntl F_SETOWN and F_SETOWN_EX, ioctl FIOSETOWN and SIOCSPGRP), input for a terminal (TIOCSTI),
# and living on without the parent (prctl PR_SET_PDEATHSIG).
_REFUSED_VALUES = (
    ((72, 25), 1, 8), ((72, 25), 1, 15), ((16, 29), 1, 0x8901), ((16, 29), 1, 0x8902),
    ((16, 29), 1, 0x5412), ((157, 167), 0, 1),
)  # fmt: skip
_CLONE, _CLONE3 = (56, 220), 435
# Sockets of a pair, in its second argument. Those of datagrams write to any other.
_SOCKETPAIR, _KIND, _STREAM = (53, 199), 0xF, 1
# Calls from this number on are newer than this list: fchmodat2 is the first.
_UNKNOWN = 452
_EPERM, _ENOSYS = 1, 38
_CLONE_THREAD = 0x10000

# Of linux/landlock.h.
_EXECUTE, _WRITE, _READ, _READ_DIR, _REMOVE, _MAKE, _TRUNCATE = (
    1 << bit for bit in (0, 1, 2, 3, 5, 8, 14)
)


def gaps() -> tuple[str, ...]:
    """Return what a model's program can reach on this machine though it should not, in words.

    Raises:
        OSError: It cannot be limited at all.
    """
    if sys.platform == "win32":
        raise OSError("programs of models are run on Linux and macOS only")
    if sys.platform != "linux":
        return ("the files that you can reach", "the network")
    if platform.machine() not in _MACHINES or not Path("/proc/sys/kernel/seccomp").is_dir():
        raise OSError("programs of models need Linux on x86-64 or ARM, with seccomp")
    return () if _landlock_version() else ("the files that you can reach",)


def confine(folder: Path | None) -> None:
    """Keep this process, for good, from other processes, the network and files, and limit it.

    Args:
        folder: Where it may write files, none of them a folder. None: nowhere.

    Raises:
        OSError: The system refuses.
    """
    import resource

    limits = {
        resource.RLIMIT_CPU: 20,
        resource.RLIMIT_FSIZE: FILE_SIZE,
        resource.RLIMIT_NOFILE: OPEN_FILES,
        resource.RLIMIT_CORE: 0,
    }
    # Linux counts threads as processes, and has the filter; macOS does not heed RLIMIT_AS.
    own = (resource.RLIMIT_AS, MEMORY) if sys.platform == "linux" else (resource.RLIMIT_NPROC, 0)
    for limit, most in (*limits.items(), own):
        _, hard = resource.getrlimit(limit)
        least = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(limit, (least, least))
    if sys.platform == "linux":
        # PR_SET_PDEATHSIG: end with who waits for it. PR_SET_NO_NEW_PRIVS. PR_SET_DUMPABLE.
        for option, value in ((1, 9), (38, 1), (4, 0)):
            _call("prctl", option, value, 0, 0, 0)
        if version := _landlock_version():
            _restrict_files(version, folder)
        _drop_capabilities()
        _filter_calls()


def _call(name: str, *arguments: object) -> int:
    """Call a function of the C library."""
    library = ctypes.CDLL(None, use_errno=True)
    given = [
        ctypes.c_long(argument) if isinstance(argument, int) else argument for argument in arguments
    ]
    result = library[name](*given)
    if result < 0:
        raise OSError(ctypes.get_errno(), f"{name}: {os.strerror(ctypes.get_errno())}")
    return result


def _landlock_version() -> int:
    """Return the version of Landlock. 0: there is none, or it is off."""
    try:
        return _call("syscall", 444, None, 0, 1)
    except OSError:
        return 0


def _restrict_files(version: int, folder: Path | None) -> None:
    # Rights came with versions 2 (move), 3 (truncate) and 5 (devices). Version 4 brought ports of
    # TCP, 6 signals and abstract sockets.
    known = 13 if version < 2 else 14 if version < 3 else 15 if version < 5 else 16
    fields = [(1 << known) - 1, *([0b11] * (version >= 4)), *([0b11] * (version >= 6))]
    attributes = (ctypes.c_uint64 * len(fields))(*fields)
    size = ctypes.sizeof(attributes)
    ruleset = _call("syscall", 444, ctypes.byref(attributes), size, 0)
    allowed = [(path, _EXECUTE | _READ | _READ_DIR) for path in _libraries()]
    allowed += [
        (Path(path), _READ)
        for path in ("/dev/urandom", "/dev/zero", "/etc/localtime", "/etc/ld.so.cache")
    ]
    allowed.append((Path(os.devnull), _READ | _WRITE))
    if folder is not None:
        truncate = _TRUNCATE if version >= 3 else 0
        allowed.append((folder, _READ | _READ_DIR | _WRITE | _REMOVE | _MAKE | truncate))
    for path, access in allowed:
        if path.exists():
            # O_PATH
            opened = os.open(path, 0o10000000)
            rights = access if path.is_dir() else access & ~_READ_DIR
            rule = rights.to_bytes(8, "little") + opened.to_bytes(4, "little")
            _call("syscall", 445, ruleset, 1, rule, 0)
            os.close(opened)
    _call("syscall", 446, ruleset, 0)
    os.close(ruleset)


def _libraries() -> Iterable[Path]:
    """Return the folders that Python and its packages lie in."""
    named = os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep)
    places = {
        sys.prefix,
        sys.base_prefix,
        sys.exec_prefix,
        sys.base_exec_prefix,
        *filter(None, named),
    }
    return map(Path, [*sorted(places), "/usr", "/lib", "/lib64", "/nix/store"])


def _drop_capabilities() -> None:
    """Leave nothing of root's rights."""
    # _LINUX_CAPABILITY_VERSION_3, this process; then effective, permitted, inheritable, twice.
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    _call("capset", ctypes.byref(header), ctypes.byref((ctypes.c_uint32 * 6)()))


def _filter_calls() -> None:
    machine, column = _MACHINES[platform.machine()]
    allow, refuse, kill = 0x7FFF0000, 0x00050000, 0x80000000
    load, equal, at_least, has_bits, mask, answer = 0x20, 0x15, 0x35, 0x45, 0x54, 0x06
    number = (load, 0, 0, 0)
    eperm, enosys = (answer, 0, 0, refuse | _EPERM), (answer, 0, 0, refuse | _ENOSYS)
    steps = [(load, 0, 0, 4), (equal, 1, 0, machine), (answer, 0, 0, kill), number]
    steps += [(at_least, 0, 1, _UNKNOWN), enosys, (equal, 0, 1, _CLONE3), enosys]
    for numbers in _REFUSED:
        if (refused := numbers[column]) is not None:
            steps += [(equal, 0, 1, refused), eperm]
    for numbers, argument, value in _REFUSED_VALUES:
        steps += [(equal, 0, 4, numbers[column]), (load, 0, 0, 16 + 8 * argument)]
        steps += [(equal, 0, 1, value), eperm, number]
    steps += [(equal, 0, 5, _SOCKETPAIR[column]), (load, 0, 0, 24), (mask, 0, 0, _KIND)]
    steps += [(equal, 1, 0, _STREAM), eperm, number]
    # Threads stay within the process.
    steps += [(equal, 0, 3, _CLONE[column]), (load, 0, 0, 16), (has_bits, 1, 0, _CLONE_THREAD)]
    steps += [eperm, (answer, 0, 0, allow)]
    packed = b"".join(
        code.to_bytes(2, "little") + bytes((yes, no)) + value.to_bytes(4, "little")
        for code, yes, no, value in steps
    )
    filters = ctypes.create_string_buffer(packed)

    class Program(ctypes.Structure):
        _fields_ = (("count", ctypes.c_ushort), ("steps", ctypes.c_void_p))

    program = Program(len(steps), ctypes.addressof(filters))
    _call("prctl", 22, 2, ctypes.byref(program), 0, 0)
