"""Listen, serve until a signal, and end within seconds whatever is being generated."""

import errno
import os
import socket
import sys
import threading
from contextlib import suppress
from types import FrameType
from typing import Any

import uvicorn
from starlette.applications import Starlette

from memory_layers.common.errors import UserError
from memory_layers.integrations.serving.engine import Engine

# From a signal to the end: for clients to be told, then in any case.
GRACE_SECONDS, MOST_SECONDS = 2, 4


def listen(host: str, port: int) -> list[socket.socket]:
    """Listen at each address of a host, before the model is loaded.

    Args:
        host: Name or address.
        port: 0: any that is free.

    Raises:
        UserError: There is no such host or port, or another program has it.
    """
    if not 0 <= port <= 65535:
        raise UserError(f"--port must be from 0 to 65535, got {port}")
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise UserError(
            f"--host {host}: there is no such host ({error}). hint: localhost, or 0.0.0.0 for all "
            "addresses of this machine"
        ) from error
    sockets: list[socket.socket] = []
    for family, address in dict.fromkeys((family, address) for family, *_, address in found):
        # The port of the first one, where it was chosen.
        place = (address[0], sockets[0].getsockname()[1] if sockets else port, *address[2:])
        try:
            sockets.append(socket.create_server(place, family=family))
        except OSError as error:
            # localhost is two addresses also where one of them is switched off.
            missing = error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
            if missing and (sockets or (family, address) != _last(found)):
                continue
            for one in sockets:
                one.close()
            hint = "another --port" if error.errno == errno.EADDRINUSE else "another --host"
            raise UserError(
                f"{host}:{port} cannot be listened at: {os.strerror(error.errno or 0)}. "
                f"hint: {hint}"
            ) from error
    return sockets


def _last(found: list[Any]) -> tuple[int, Any]:
    return found[-1][0], found[-1][4]


class Server(uvicorn.Server):
    """A server that ends with its engine, and within seconds."""

    def __init__(self, app: Starlette, engine: Engine) -> None:
        config = uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            lifespan="off",
            server_header=False,
            timeout_graceful_shutdown=GRACE_SECONDS,
        )
        super().__init__(config)
        self.engine, self.bodies, self.asked_to_end = engine, app.state.bodies, False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """End. Again: at once."""
        if self.should_exit:
            os._exit(128 + sig)
        self.asked_to_end = True
        # Whatever holds the process.
        last = threading.Timer(MOST_SECONDS, os._exit, (128 + sig,))
        last.daemon = True
        last.start()
        super().handle_exit(sig, frame)

    async def on_tick(self, counter: int) -> bool:
        """Return whether to end."""
        return await super().on_tick(counter) or not self.engine.alive

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Tell all clients, and close."""
        self.engine.stop()
        self.bodies.stop()
        await super().shutdown(sockets)

    def serve_until_signal(self, sockets: list[socket.socket]) -> int:
        """Serve, and end the process with code 0 after Ctrl-C.

        Returns:
            1, where the engine has failed.
        """
        self.engine.start()
        # Uvicorn raises the signal again, which a process in the background of a shell ignores.
        with suppress(KeyboardInterrupt):
            self.run(sockets)
        if not self.asked_to_end:
            return 1
        # Nothing is left to be written. The engine may be in the middle of a step, and Python takes
        # seconds to clear away what torch and Numba hold.
        sys.stderr.flush()
        os._exit(0)
