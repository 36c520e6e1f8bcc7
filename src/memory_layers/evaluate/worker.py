"""The two processes of programs.py: one runs a model's program, the other its tests.

The tests call what the program defines through pipes, and get plain values back. So a program knows
neither what it is compared with nor who compares.
"""

import ast
import builtins
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from memory_layers.evaluate.confine import confine

# Written by the process of the tests once both are confined.
READY = b"r"


def main() -> None:
    """Read what to run from stdin, give up what it must not reach, and run it."""
    role, reads, writes, folder = sys.argv[1:]
    task = json.load(sys.stdin.buffer)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    # A number may have more digits than Python reads by default.
    sys.set_int_max_str_digits(0)
    with open(int(reads), "rb") as reader, open(int(writes), "wb", buffering=0) as writer:
        confine(Path(folder) if role == "program" else None)
        if role == "program":
            _serve(task["program"], reader, writer)
        elif reader.readline() == b"\n":
            os.write(1, READY)
            os.dup2(null, 1)
            passed = False
            try:
                _test(task, reader, writer)
                passed = True
            finally:
                # Tests that exit have not come to their end.
                os._exit(0 if passed else 1)


def _test(task: Mapping[str, Any], reader: Any, writer: Any) -> None:  # noqa: ANN401
    """Run tests. Whatever they raise, they have failed."""

    def ask(*question: object) -> Any:  # noqa: ANN401
        writer.write(json.dumps(_encoded(question, _number)).encode() + b"\n")
        kind, answer = json.loads(reader.readline())
        if kind == "raise":
            error = getattr(builtins, answer, None)
            is_error = isinstance(error, type) and issubclass(error, Exception)
            raise (error if is_error else RuntimeError)
        return _decoded(answer, lambda number: _Remote(number, ask))

    namespace: dict[str, Any] = {"__name__": "tests"}
    exec(task["before"], namespace)  # noqa: S102
    used = {n.id for n in ast.walk(ast.parse(task["tests"])) if isinstance(n, ast.Name)}
    namespace |= {name: ask("name", name) for name in task["names"] if name in used}
    exec(task["tests"], namespace)  # noqa: S102


class _Remote:
    """Something of the program that is no plain value. It is equal to nothing but itself."""

    def __init__(self, number: int, ask: Callable[..., Any]) -> None:
        self.__dict__.update(_number=number, _ask=ask)

    def __call__(self, *args: object, **kwargs: object) -> Any:  # noqa: ANN401
        return self._ask("call", self, args, kwargs)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        return self._ask("get", self, name)

    def __setattr__(self, name: str, value: object) -> None:
        self._ask("set", self, name, value)

    def __getitem__(self, key: object) -> Any:  # noqa: ANN401
        return self._ask("item", self, key)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._ask("list", self))

    def __len__(self) -> int:
        return self._ask("len", self)

    def __bool__(self) -> bool:
        return self._ask("bool", self)


def _number(value: object) -> int:
    if not isinstance(value, _Remote):
        raise TypeError(f"a program takes plain values, got {type(value).__name__}")
    return value.__dict__["_number"]


def _serve(program: str, reader: Any, writer: Any) -> None:  # noqa: ANN401
    """Run a program and let its tests call what it defines, until they end."""
    import __main__

    kept: list[Any] = []

    def keep(value: object) -> int:
        kept.append(value)
        return len(kept) - 1

    answers: dict[str, Callable[..., Any]] = {
        "name": lambda name: __main__.__dict__[name],
        "call": lambda function, args, kwargs: function(*args, **kwargs),
        "get": getattr,
        "set": setattr,
        "item": lambda holder, key: holder[key],
        "list": list,
        "len": len,
        "bool": bool,
    }
    # Only now does the program begin: what stands before it cannot be its own.
    writer.write(b"\n")
    exec(compile(program, "program.py", "exec"), __main__.__dict__)  # noqa: S102
    for line in reader:
        kind, *question = _decoded(json.loads(line), kept.__getitem__)
        try:
            answer = ["value", _encoded(answers[kind](*question), keep)]
        except Exception as error:  # noqa: BLE001  (any that a program may raise)
            answer = ["raise", type(error).__name__]
        writer.write(json.dumps(answer).encode() + b"\n")


def _encoded(value: Any, keep: Callable[[object], int]) -> Any:  # noqa: ANN401
    """Return a value as JSON takes it, with its type. `keep` numbers what is not plain."""
    for kind in (str, bool, int, float):
        # Of a class that is derived from these, such as an enumeration, its plain value.
        if isinstance(value, kind):
            return kind(value) if kind is not str else str.__str__(value)
    if value is None:
        return None
    if not isinstance(value, _Remote) and hasattr(value, "tolist"):
        # Of numpy.
        return _encoded(value.tolist(), keep)
    for kind in (list, tuple, set, frozenset):
        if isinstance(value, kind):
            return [kind.__name__, *(_encoded(item, keep) for item in value)]
    if isinstance(value, dict):
        return ["dict", *(_encoded(tuple(item), keep) for item in value.items())]
    if isinstance(value, bytes):
        return ["bytes", value.hex()]
    if isinstance(value, complex):
        return ["complex", value.real, value.imag]
    if isinstance(value, range):
        return ["range", value.start, value.stop, value.step]
    return ["kept", keep(value)]


def _decoded(value: Any, find: Callable[[int], Any]) -> Any:  # noqa: ANN401
    """Return the value that _encoded had. `find` returns what has a number."""
    if not isinstance(value, list):
        return value
    kind, *parts = value
    if kind == "kept":
        return find(parts[0])
    if kind == "bytes":
        return bytes.fromhex(parts[0])
    if kind in ("complex", "range"):
        return {"complex": complex, "range": range}[kind](*parts)
    items = [_decoded(part, find) for part in parts]
    types = {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset, "dict": dict}
    return types[kind](items)
