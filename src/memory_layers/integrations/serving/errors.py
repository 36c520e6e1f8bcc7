"""What a request is answered with when it is refused or fails, as OpenAI's clients expect it."""

from collections.abc import Mapping
from typing import Any


class RequestError(Exception):
    """A request that is not answered.

    Attributes:
        status: Of HTTP. 4xx: the request is wrong. 5xx: the server cannot answer it now.
        param: Name of the field that is at fault. None: no single one.
        code: A word for programs.
        headers: To send along.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code = status, param, code
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """Return the error in OpenAI's format."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        error = {"message": str(self), "type": kind, "param": self.param, "code": self.code}
        return {"error": error}
