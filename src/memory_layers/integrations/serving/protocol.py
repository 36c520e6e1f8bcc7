"""The fields of a request: each is honoured, or refused by its name."""

import json
from typing import Annotated, Literal, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    FailFast,
    Field,
    PlainValidator,
    ValidationError,
    model_validator,
)

from memory_layers.common.errors import UserError
from memory_layers.common.text_files import parse_json
from memory_layers.integrations.serving.errors import RequestError

MOST_STOPS, LONGEST_STOP = 16, 256
MOST_MESSAGES = 4096
Ids = list[int]


def _is_ids(value: object) -> bool:
    # True and False are no token ids.
    return isinstance(value, list) and all(type(item) is int for item in value)


def _prompts(value: object) -> list[str] | list[Ids]:
    """Return one prompt or many, as texts or as token ids, as a list of them."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and value:
        if _is_ids(value):
            return [value]
        if all(isinstance(item, str) for item in value) or all(map(_is_ids, value)):
            return value
    raise ValueError("expected a text, a list of texts, token ids, or a list of lists of them")


def _stops(value: object) -> list[str]:
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or not all(isinstance(stop, str) and stop for stop in stops):
        raise ValueError("expected a text or a list of texts, none of them empty")
    if len(stops) > MOST_STOPS or any(len(stop) > LONGEST_STOP for stop in stops):
        raise ValueError(f"expected at most {MOST_STOPS} texts of at most {LONGEST_STOP} letters")
    return stops


def _bias(value: object) -> dict[int, float]:
    """JSON has texts for keys: token ids in digits."""
    if not isinstance(value, dict):
        raise ValueError("expected token ids with a number from -100 to 100 each")
    found: dict[int, float] = {}
    for key, number in value.items():
        if not (key.isascii() and key.isdigit() and len(key) < 10):
            raise ValueError(f"{key!r} is no token id")
        if type(number) not in (int, float) or not -100 <= number <= 100:
            raise ValueError(f"token {key}: expected a number from -100 to 100")
        if int(key) in found:
            raise ValueError(f"token {int(key)} is there twice")
        found[int(key)] = float(number)
    return found


def _content(value: object) -> str:
    """Return the text of a message, which may come in parts."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or not value:
        raise ValueError("expected a text, or a list of parts of type text")
    texts = []
    for part in value:
        kind = part.get("type") if isinstance(part, dict) else part
        if kind != "text":
            raise ValueError(f"this server takes parts of type text only, got {str(kind)[:40]!r}")
        text = part.get("text")
        if not isinstance(text, str) or len(part) != 2:
            raise ValueError('expected a part of the form {"type": "text", "text": TEXT}')
        texts.append(text)
    return "".join(texts)


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _given(cls, value: object) -> object:
        """Leave out what is null: to clients, that is a field they do not give.

        Of fields that are not known the first one is enough: each would be an error of its own.
        """
        if not isinstance(value, dict):
            return value
        given = {name: item for name, item in value.items() if item is not None}
        unknown = next((name for name in given if name not in cls.model_fields), None)
        return {n: item for n, item in given.items() if n in cls.model_fields or n == unknown}


class StreamOptions(_Strict):
    """What a stream ends with."""

    include_usage: bool = False


class ResponseFormat(_Strict):
    """Text, and no other format."""

    type: Literal["text"]


class Message(_Strict):
    """One turn of a chat."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str, BeforeValidator(_content)]


class Asked(_Strict):
    """What both kinds of request have. Numbers have the ranges of OpenAI's reference.

    `user` names a user to the provider, and changes nothing.
    """

    model: str
    temperature: float = Field(1.0, ge=0, le=2)
    top_p: float = Field(1.0, ge=0, le=1)
    n: int = Field(1, ge=1, le=128)
    stop: Annotated[list[str], BeforeValidator(_stops)] = []
    stream: bool = False
    stream_options: StreamOptions | None = None
    seed: int | None = Field(None, ge=-(2**63), le=2**63 - 1)
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    logit_bias: Annotated[dict[int, float], BeforeValidator(_bias)] = {}
    user: str | None = None

    @property
    def with_usage(self) -> bool:
        """Whether a stream ends with what was counted."""
        return self.stream_options is not None and self.stream_options.include_usage

    def check(self) -> None:
        """Refuse fields that do not go together.

        Raises:
            RequestError: Which.
        """
        if self.stream_options is not None and not self.stream:
            raise RequestError(
                "`stream_options` is for `stream: true` only", param="stream_options"
            )


class Completion(Asked):
    """The body of /v1/completions."""

    prompt: Annotated[list[str] | list[Ids], PlainValidator(_prompts)]
    max_tokens: int | None = Field(None, ge=0, le=2**31)
    best_of: int | None = Field(None, ge=1, le=128)
    echo: bool = False
    logprobs: int | None = Field(None, ge=0, le=20)

    @property
    def limit(self) -> tuple[str, int | None]:
        """What limits the answer, and to how many tokens."""
        return "max_tokens", self.max_tokens

    @property
    def samples(self) -> int:
        """How many texts are generated for a prompt."""
        return self.n if self.best_of is None else self.best_of

    def check(self) -> None:
        """Refuse fields that do not go together."""
        super().check()
        if self.max_tokens == 0 and not self.echo:
            raise RequestError(
                "`max_tokens` is 0, which generates nothing. hint: at least 1, or `echo: true` to "
                "score the prompt alone",
                param="max_tokens",
            )
        if self.samples < self.n:
            raise RequestError(
                f"`best_of` is {self.best_of}, expected at least `n`, {self.n}", param="best_of"
            )
        if self.stream and self.samples > self.n:
            raise RequestError(
                "`best_of` chooses among whole texts, so it does not go with `stream`. hint: `n`",
                param="best_of",
            )


class Chat(Asked):
    """The body of /v1/chat/completions."""

    messages: Annotated[list[Message], FailFast(), Field(min_length=1, max_length=MOST_MESSAGES)]
    max_tokens: int | None = Field(None, ge=1, le=2**31)
    max_completion_tokens: int | None = Field(None, ge=1, le=2**31)
    logprobs: bool = False
    top_logprobs: int | None = Field(None, ge=0, le=20)
    response_format: ResponseFormat | None = None

    @property
    def limit(self) -> tuple[str, int | None]:
        """What limits the answer, and to how many tokens."""
        if self.max_completion_tokens is not None:
            return "max_completion_tokens", self.max_completion_tokens
        return "max_tokens", self.max_tokens

    def check(self) -> None:
        """Refuse fields that do not go together."""
        super().check()
        if self.top_logprobs is not None and not self.logprobs:
            raise RequestError("`top_logprobs` needs `logprobs: true`", param="top_logprobs")
        if None not in (self.max_tokens, self.max_completion_tokens):
            raise RequestError(
                "`max_tokens` and `max_completion_tokens` say the same. hint: give one of them",
                param="max_tokens",
            )


AskedT = TypeVar("AskedT", bound=Asked)


def parse(kind: type[AskedT], body: bytes) -> AskedT:
    """Read the body of a request.

    Args:
        kind: Completion or Chat.
        body: As it was sent.

    Raises:
        RequestError: It is not JSON, or a field is missing, of another kind, out of range or not
            known. The message names the field.
    """
    fields = _load(body)
    if not isinstance(fields, dict):
        raise RequestError('the body must be a JSON object, such as {"model": NAME, ...}')
    # Also where it is null, so that none is passed over.
    if unknown := next((name for name in fields if name not in kind.model_fields), None):
        raise _unknown(unknown[:80])
    try:
        asked = kind.model_validate(fields)
    except ValidationError as error:
        raise _refusal(error) from error
    asked.check()
    return asked


def _load(body: bytes) -> object:
    try:
        text = body.decode("utf-8")
        value = parse_json(text, "the body")
        if "\\u" in text:
            # Half of a surrogate pair is no text, and could not be sent back.
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UserError as error:
        raise RequestError(str(error)) from error
    except UnicodeDecodeError as error:
        raise RequestError(f"the body is not valid UTF-8: {error.reason}") from error
    except UnicodeEncodeError as error:
        raise RequestError("the body holds half of a surrogate pair") from error
    return value


def _refusal(error: ValidationError) -> RequestError:
    """Say what is wrong with the first field at fault."""
    first = error.errors(include_url=False, include_input=False)[0]
    param = ""
    for part in first["loc"]:
        param += f"[{part}]" if isinstance(part, int) else f".{part}" if param else str(part)[:80]
    if first["type"] == "missing":
        message = f"`{param}` is missing"
    elif first["type"] == "extra_forbidden":
        return _unknown(param)
    else:
        message = f"`{param}`: {first['msg'].removeprefix('Value error, ')}"
    return RequestError(message, param=param)


def _unknown(param: str) -> RequestError:
    return RequestError(
        f"`{param}` is not supported by this server. hint: leave it out", param=param
    )
