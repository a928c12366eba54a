"""The gate of the server: who may send requests, and by which names."""

import base64
import binascii
import hmac
import ipaddress
from collections.abc import Iterable

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from minigpt.serving.errors import ApiError

PUBLIC = ("/health",)  # addresses that need no key


class Gate:
    """ASGI middleware that checks the Host header and the API key of each request.

    A web page of an attacker can let its own name point to this machine (DNS rebinding), and the
    browser would send requests here as if they belonged to that page. So the Host header must be an
    IP address or a name that is known.
    """

    def __init__(self, app: ASGIApp, hosts: Iterable[str], api_key: str | None):
        """Let requests to IP addresses and `hosts` pass, with the key if there is one."""
        self.app, self.api_key = app, api_key
        self.hosts = {"localhost", *(host.lower() for host in hosts)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            try:
                self._check(scope)
            except ApiError as error:
                await error.response()(scope, receive, send)
                return
        await self.app(scope, receive, send)

    def _check(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        name = host_name(headers.get("host", ""))
        if name not in self.hosts and not is_address(name):
            raise ApiError(
                f"Host: {name!r} is not a name of this server; start it with --allow-host", 421
            )
        if self.api_key is None or scope["path"] in PUBLIC:
            return
        given = credentials(headers.get("authorization", ""))
        if not hmac.compare_digest(given.encode(), self.api_key.encode()):
            # a browser that opens the page asks for a password, which is the key
            challenge = {"WWW-Authenticate": 'Basic realm="MiniGPT: the password is the API key"'}
            raise ApiError("Authorization: missing or wrong API key", 401, headers=challenge)


def credentials(authorization: str) -> str:
    """Return the key in an Authorization header: `Bearer KEY`, or `Basic` with it as password."""
    scheme, _, value = authorization.partition(" ")
    if scheme.lower() == "bearer":
        return value.strip()
    try:
        decoded = base64.b64decode(value, validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        return ""
    return decoded.partition(":")[2]


def host_name(host: str) -> str:
    """Return the name or address in a Host header, without the port and in lower case."""
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
    return name.strip("[]").lower()


def is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
