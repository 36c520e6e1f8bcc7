"""From a request's bytes to the bytes of its answer, while rows are generated elsewhere."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any, TypeVar

from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from memory_layers.integrations.serving.answers import Answer, Text
from memory_layers.integrations.serving.engine import Engine, shutting_down
from memory_layers.integrations.serving.errors import RequestError
from memory_layers.integrations.serving.row import Delta, Row

ReadT = TypeVar("ReadT")
# Of a body, and of all bodies that are arriving or wait to be parsed.
MOST_BYTES, MOST_BYTES_HELD = 2 * 2**20, 64 * 2**20
# In which a body has to arrive.
MOST_SECONDS = 30


class Bodies:
    """Reads the bodies of requests, no more of them than fit into memory."""

    def __init__(self) -> None:
        self.held = 0
        # Python's objects are many times as large as the text: those of one body at a time.
        self.lock = threading.Lock()
        self.arriving: set[asyncio.Timeout] = set()
        self.stopping = False

    def stop(self) -> None:
        """Wait for no body any more. Call it on the thread of the server."""
        self.stopping = True
        for one in self.arriving:
            one.reschedule(0)

    async def read(self, request: Request, parse: Callable[[bytes], ReadT]) -> ReadT:
        """Return what the body of a request says.

        Args:
            request: Whose body is read.
            parse: Called with the body, in another thread and alone.

        Raises:
            RequestError: It is no JSON by its header, too large, or does not arrive, too many are
                arriving, or as parse.
        """

        def alone() -> ReadT:
            with self.lock:
                return parse(bytes(body))

        body = bytearray()
        try:
            await self._receive(request, body)
            return await run_in_threadpool(alone)
        finally:
            self.held -= len(body)

    async def _receive(self, request: Request, body: bytearray) -> None:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            # A page of another site can send other types without asking the browser's user.
            raise RequestError(
                f"the body is {kind[:80] or 'of no type'}. hint: Content-Type: application/json",
                status=415,
            )
        size = 0
        try:
            async with asyncio.timeout(0 if self.stopping else MOST_SECONDS) as left:
                self.arriving.add(left)
                # To its end, also where it is too large: clients read the answer only then.
                async for part in request.stream():
                    size += len(part)
                    if size <= MOST_BYTES:
                        self.held += len(part)
                        body += part
                    if self.held > MOST_BYTES_HELD:
                        raise RequestError(
                            "too many requests are arriving. hint: try again later",
                            status=503,
                            code="overloaded",
                            headers={"Retry-After": "1"},
                        )
        except TimeoutError as error:
            if self.stopping:
                raise shutting_down() from error
            raise RequestError(
                f"the body did not arrive within {MOST_SECONDS} seconds", status=408
            ) from error
        except ClientDisconnect as error:
            raise RequestError("the client is gone", status=400) from error
        finally:
            self.arriving.discard(left)
        if size > MOST_BYTES:
            raise RequestError(
                f"the body has {size} bytes, this server takes at most {MOST_BYTES}", status=413
            )


class Run:
    """The rows of a request, while they are generated.

    Args:
        engine: That generates them.
        answer: How they are shown.
        prompt_tokens: Of all prompts, each once.
        best: Of how many rows in sequence how many are shown, those of the best logprobs.
    """

    def __init__(
        self, engine: Engine, answer: Answer, *, prompt_tokens: int, best: tuple[int, int]
    ) -> None:
        self.engine, self.answer, self.prompt_tokens, self.best = (
            engine,
            answer,
            prompt_tokens,
            best,
        )
        self.rows: list[Row] = []
        self.told: asyncio.Queue[tuple[int, Delta | RequestError]] = asyncio.Queue()
        self.loop = asyncio.get_running_loop()

    def tell(self, index: int, told: Delta | RequestError) -> None:
        """Pass on what a row tells, from any thread."""
        self.loop.call_soon_threadsafe(self.told.put_nowait, (index, told))

    async def respond(self, request: Request, *, stream: bool, with_usage: bool) -> Response:
        """Generate the rows and answer.

        Args:
            request: Whose client waits.
            stream: Whether the answer is sent in parts.
            with_usage: Whether they end with what was counted.

        Raises:
            RequestError: The rows are not generated.
        """
        self.engine.submit(self.rows)
        if stream:
            return _Stream(self, with_usage=with_usage)
        whole = asyncio.ensure_future(self._whole())
        gone = asyncio.ensure_future(_gone(request))
        try:
            await asyncio.wait({whole, gone}, return_when=asyncio.FIRST_COMPLETED)
            return await whole if whole.done() else Response(status_code=499)
        finally:
            whole.cancel()
            gone.cancel()
            self.engine.leave(self.rows)

    async def parts(self, *, with_usage: bool) -> AsyncIterator[str]:
        """Yield a stream's events."""
        begun: set[int] = set()
        try:
            async for index, delta in self._deltas():
                if index not in begun:
                    begun.add(index)
                    for part in self.answer.head(index, self.rows[index]):
                        yield _event(part)
                yield _event(self.answer.chunk(index, delta))
        except RequestError as error:
            # The status has been sent. OpenAI's client raises what it reads here.
            yield _event(error.body())
            return
        if with_usage:
            yield _event(self.answer.last(self._usage()))
        yield "data: [DONE]\n\n"

    async def _deltas(self) -> AsyncIterator[tuple[int, Delta]]:
        going = len(self.rows)
        while going:
            index, told = await self.told.get()
            if isinstance(told, RequestError):
                raise told
            going -= told.reason is not None
            yield index, told

    async def _whole(self) -> Response:
        texts = [Text() for _ in self.rows]
        async for index, delta in self._deltas():
            texts[index].add(delta)
        many, shown = self.best
        pairs = list(zip(self.rows, texts, strict=True))
        chosen = []
        for begin in range(0, len(pairs), many):
            alike = pairs[begin : begin + many]
            if many > shown:
                alike.sort(key=lambda pair: -pair[0].logprob / max(1, pair[0].generated))
            chosen += alike[:shown]
        # Many names of tokens are looked up.
        content = await run_in_threadpool(self.answer.whole, chosen, self._usage())
        return JSONResponse(content)

    def _usage(self) -> dict[str, int]:
        generated = sum(row.generated for row in self.rows)
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": generated,
            "total_tokens": self.prompt_tokens + generated,
        }


class _Stream(StreamingResponse):
    """Server-sent events. However it ends, nothing is generated for it any more."""

    def __init__(self, run: Run, *, with_usage: bool) -> None:
        super().__init__(
            run.parts(with_usage=with_usage),
            media_type="text/event-stream",
            headers={"Cache-Control": "no-cache"},
        )
        self.run = run

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.run.engine.leave(self.run.rows)


def _event(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"


async def _gone(request: Request) -> None:
    """Wait until the client has closed the connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
