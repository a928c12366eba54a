"""Runs the application with uvicorn: binding, signals, draining."""

import errno
import ipaddress
import logging
import signal
import socket

import uvicorn

from minigpt.common.errors import UserError
from minigpt.generation.backend import Backend
from minigpt.serving.app import Settings, build_app

DRAIN_SECONDS = 30  # that requests may take to end after a signal


def bind(host: str, port: int, protected: bool) -> socket.socket:
    """Return a socket that listens at `host` and `port`.

    Raises:
        UserError: the address cannot be used, or others can reach it and it is not `protected`.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        if not (protected or ipaddress.ip_address(address[0]).is_loopback):
            raise UserError(
                f"host: others can reach {host}; set an API key (MINIGPT_API_KEY), or add "
                "--insecure"
            )
        return socket.create_server(address[:2], family=family, backlog=2048)
    except UnicodeError:
        raise UserError(f"host: {host!r} is not a name or address; use another --host") from None
    except OSError as error:
        option = "port" if error.errno in (errno.EADDRINUSE, errno.EACCES) else "host"
        raise UserError(
            f"host: cannot listen at {host}, port {port} ({error.strerror}); use another --{option}"
        ) from None


def serve(backend: Backend, settings: Settings, listener: socket.socket) -> None:
    """Serve until SIGTERM or Ctrl-C; then finish the requests that have arrived.

    A second Ctrl-C ends them at once.
    """
    logging.basicConfig(format="minigpt-cli: %(levelname)s: %(message)s", level=logging.WARNING)
    config = uvicorn.Config(
        build_app(backend, settings),
        http="h11",
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=DRAIN_SECONDS,
    )
    # uvicorn raises the signal that ended it again, which would exit with another code than 0
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    uvicorn.Server(config).run(sockets=[listener])
