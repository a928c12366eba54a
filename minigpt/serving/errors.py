"""Errors in the format of the OpenAI API."""

import json
from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

TYPES = {401: "authentication_error", 429: "rate_limit_error"}


class AsciiJSONResponse(JSONResponse):
    r"""JSON with escapes, so that it can hold a lone surrogate of a request, such as "\ud800"."""

    def render(self, content: Any) -> bytes:
        return json.dumps(content, allow_nan=False).encode()


class ApiError(Exception):
    """An error to answer a request with.

    Attributes:
        message: what is wrong, and how to fix it.
        status: the status code of HTTP.
        param: the parameter that is wrong, if it is one.
        headers: further headers of the response.
    """

    def __init__(
        self,
        message: str,
        status: int = 400,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(message)
        self.message, self.status, self.param, self.headers = message, status, param, headers

    def to_dict(self) -> dict[str, dict[str, str | int | None]]:
        other = "server_error" if self.status >= 500 else "invalid_request_error"
        kind = TYPES.get(self.status, other)
        error = {"message": self.message, "type": kind, "param": self.param, "code": self.status}
        return {"error": error}

    def response(self) -> Response:
        return AsciiJSONResponse(self.to_dict(), self.status, self.headers)


def handle_api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error.response()


def handle_http_error(request: Request, error: Exception) -> Response:
    """Answer an error that Starlette found, such as an unknown address."""
    status = getattr(error, "status_code", 500)
    problem = {404: "there is nothing at this address", 405: "this method is not allowed here"}
    message = f"{request.method} {request.url.path}: {problem.get(status, 'not possible')}"
    return ApiError(message, status, headers=getattr(error, "headers", None)).response()


def handle_bug(request: Request, error: Exception) -> Response:
    """Answer any other exception; its details are only logged."""
    return ApiError("the server failed; its log has the details", 500).response()
