"""The routes of the server, and no other: completions, chat, models, health."""

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from memory_layers.integrations.serving.answers import ChatAnswer, CompletionAnswer
from memory_layers.integrations.serving.engine import Engine, shutting_down
from memory_layers.integrations.serving.errors import RequestError
from memory_layers.integrations.serving.group import vocabulary_of
from memory_layers.integrations.serving.prompts import Encoder
from memory_layers.integrations.serving.protocol import Asked, AskedT, Chat, Completion, parse
from memory_layers.integrations.serving.respond import Bodies, Run
from memory_layers.integrations.serving.row import Row
from memory_layers.integrations.serving.sampling import Sampling
from memory_layers.integrations.serving.tokens import Tokens

# Of a completion whose client does not say, as OpenAI has it.
DEFAULT_TOKENS = 16


@dataclass(frozen=True)
class Served:
    """What is served.

    Attributes:
        name: By which clients ask for the model.
        tokenizer: A fast one.
        context: Most tokens of a text. None: the model has no limit.
        max_tokens: Most tokens of an answer.
    """

    name: str
    tokenizer: Any
    context: int | None
    max_tokens: int


def make_app(engine: Engine, served: Served) -> Starlette:
    """Return the application.

    Args:
        engine: That generates, started.
        served: What it serves.
    """
    service = Service(engine, served)
    app = Starlette(
        routes=[
            Route("/v1/completions", service.completions, methods=["POST"]),
            Route("/v1/chat/completions", service.chat, methods=["POST"]),
            Route("/v1/models", service.models, methods=["GET"]),
            Route("/v1/models/{name:path}", service.model, methods=["GET"]),
            Route("/health", service.health, methods=["GET"]),
        ],
        exception_handlers={RequestError: _refused, HTTPException: _no_route, Exception: _failed},
    )
    app.state.bodies = service.bodies
    return app


class Service:
    """The endpoints."""

    def __init__(self, engine: Engine, served: Served) -> None:
        self.engine, self.served = engine, served
        self.created = int(time.time())
        most = engine.limits.cache_tokens
        most = most if served.context is None else min(most, served.context)
        self.encoder = Encoder(served.tokenizer, vocabulary_of(engine.model), most)
        self.tokens = Tokens(served.tokenizer)
        self.bodies = Bodies()

    async def health(self, _: Request) -> Response:
        """Say that the server answers."""
        if not self.engine.alive:
            raise shutting_down()
        return JSONResponse({"status": "ok"})

    async def models(self, _: Request) -> Response:
        """List the one model."""
        return JSONResponse({"object": "list", "data": [self._model()]})

    async def model(self, request: Request) -> Response:
        """Describe the model."""
        self._check_name(request.path_params["name"])
        return JSONResponse(self._model())

    async def completions(self, request: Request) -> Response:
        """Continue texts."""
        asked = await self._read(Completion, request)
        self.engine.check_count(len(asked.prompt) * asked.samples)
        prompts = await run_in_threadpool(lambda: list(map(self.encoder.prompt, asked.prompt)))
        texts = None
        if asked.echo:
            shown = [one if isinstance(one, str) else self.tokens.text(one) for one in asked.prompt]
            texts = [text for text in shown for _ in range(asked.n)]
        answer = CompletionAnswer(
            self.served.name,
            self.tokens,
            prompts=texts,
            logprobs=asked.logprobs is not None,
            with_usage=asked.with_usage,
        )
        run = Run(
            self.engine,
            answer,
            prompt_tokens=sum(map(len, prompts)),
            best=(asked.samples, asked.n),
        )
        # To choose among texts, their tokens are scored too.
        top = asked.logprobs if asked.logprobs is not None or asked.samples == asked.n else 0
        for prompt in prompts:
            self._add_rows(
                run,
                asked,
                prompt,
                asked.samples,
                max_tokens=self._most(len(prompt), *asked.limit, DEFAULT_TOKENS),
                top=top,
                score_prompt=asked.echo and asked.logprobs is not None,
                of_prompt=True,
            )
        return await run.respond(request, stream=asked.stream, with_usage=asked.with_usage)

    async def chat(self, request: Request) -> Response:
        """Answer the last message of a chat."""
        asked = await self._read(Chat, request)
        self.engine.check_count(asked.n)
        prompt = await run_in_threadpool(self.encoder.chat, asked.messages)
        answer = ChatAnswer(
            self.served.name, self.tokens, logprobs=asked.logprobs, with_usage=asked.with_usage
        )
        run = Run(self.engine, answer, prompt_tokens=len(prompt), best=(asked.n, asked.n))
        self._add_rows(
            run,
            asked,
            prompt,
            asked.n,
            max_tokens=self._most(len(prompt), *asked.limit, self.served.max_tokens),
            top=(asked.top_logprobs or 0) if asked.logprobs else None,
            score_prompt=False,
            of_prompt=False,
        )
        return await run.respond(request, stream=asked.stream, with_usage=asked.with_usage)

    async def _read(self, kind: type[AskedT], request: Request) -> AskedT:
        asked = await self.bodies.read(request, partial(parse, kind))
        self._check_name(asked.model)
        return asked

    def _add_rows(
        self,
        run: Run,
        asked: Asked,
        prompt: Sequence[int],
        samples: int,
        **options: Any,  # noqa: ANN401
    ) -> None:
        """Add the rows of a prompt to a run."""
        if wrong := [one for one in asked.logit_bias if one >= self.encoder.vocabulary]:
            raise RequestError(
                f"`logit_bias`: token id {wrong[0]} is out of range, expected 0 to "
                f"{self.encoder.vocabulary - 1}",
                param="logit_bias",
            )
        sampling = Sampling(
            temperature=asked.temperature,
            top_p=asked.top_p,
            presence_penalty=asked.presence_penalty,
            frequency_penalty=asked.frequency_penalty,
            bias=asked.logit_bias,
        )
        seed = secrets.randbits(62) if asked.seed is None else asked.seed
        for sample in range(samples):
            row = Row(
                prompt,
                sampling=sampling,
                seed=f"{seed}/{sample}",
                stops=asked.stop,
                tokenizer=self.served.tokenizer,
                send=partial(run.tell, len(run.rows)),
                **options,
            )
            run.rows.append(row)

    def _most(self, prompt: int, field: str, given: int | None, default: int) -> int:
        """Return how many tokens may be generated.

        Args:
            prompt: Tokens of the prompt.
            field: Where the client says it.
            given: As the client asks. None: it does not say.
            default: Where the client does not say, or fewer, if the context ends before.

        Raises:
            RequestError: More than the server or the model takes.
        """
        limit, context = self.served.max_tokens, self.served.context
        if given is not None and given > limit:
            raise RequestError(
                f"`{field}` is {given}, this server generates at most {limit}. hint: fewer, or "
                "serve with a larger --max-tokens",
                param=field,
            )
        least = 1 if given is None else given
        if context is not None and prompt + least > context:
            raise RequestError(
                f"the prompt has {prompt} tokens and `{field}` is {least}, the texts of this "
                f"model have at most {context}. hint: a shorter prompt, or fewer tokens",
                code="context_length_exceeded",
            )
        if given is not None:
            return given
        room = self.engine.limits.cache_tokens - prompt
        room = room if context is None else min(room, context - prompt)
        return max(1, min(default, limit, room))

    def _check_name(self, name: str) -> None:
        if name != self.served.name:
            raise RequestError(
                f"no model is named {name[:200]!r}, this server has {self.served.name!r}",
                status=404,
                param="model",
                code="model_not_found",
            )

    def _model(self) -> dict[str, Any]:
        return {
            "id": self.served.name,
            "object": "model",
            "created": self.created,
            "owned_by": "memory-layers",
        }


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    return JSONResponse(error.body(), error.status, error.headers)


async def _no_route(request: Request, error: Exception) -> Response:
    """Answer in OpenAI's format what has no route, or another method."""
    assert isinstance(error, HTTPException)
    said = f"{request.method} {request.url.path}: {error.detail.lower()}"
    return await _refused(
        request, RequestError(said[:300], status=error.status_code, headers=error.headers)
    )


async def _failed(request: Request, _: Exception) -> Response:
    """Answer in OpenAI's format what is an error of ours, whose traceback is printed."""
    return await _refused(request, RequestError("the server failed", status=500))
