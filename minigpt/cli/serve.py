"""minigpt-cli serve: serve a model over HTTP."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from minigpt.cli import options
from minigpt.cli.models import DEFAULT_MODELS, BackendName, load_backend
from minigpt.common.errors import UserError

if TYPE_CHECKING:
    from minigpt.generation.onnx_backend import OnnxBackend

DEFAULT_PAGE = Path("page")


def serve(
    model: options.Model = None,
    host: Annotated[str, typer.Option(help="Address or name to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 selects a free one.", min=0, max=65535)] = 8000,
    api_key: Annotated[
        str | None,
        typer.Option(
            envvar="MINIGPT_API_KEY",
            help="Key that clients must send. Prefer the variable: other users see options.",
        ),
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Listen at any address without an API key.")
    ] = False,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            help="Name of this server in the Host header of requests, besides localhost and IP "
            "addresses. Can be repeated."
        ),
    ] = None,
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(
            help="Origin of web pages that may use the server, such as https://example.org. Can "
            "be repeated."
        ),
    ] = None,
    page: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the page, made by `minigpt-cli page`. Default: page, if it is one."
        ),
    ] = None,
    max_tokens: Annotated[int, typer.Option(help="Largest max_tokens of a request.", min=1)] = 4096,
    max_waiting: Annotated[
        int, typer.Option(help="Number of texts that may wait; more are answered by 429.", min=0)
    ] = 256,
) -> None:
    """Serve an ONNX model with the OpenAI completions API.

    Requests of many clients are generated together. The text of a request with a seed does not
    depend on the other requests.

    For example:

        minigpt-cli serve --port 8000

        curl localhost:8000/v1/completions --json '{"prompt": "The fox", "seed": 1}'

        MINIGPT_API_KEY=secret minigpt-cli serve --host 0.0.0.0
    """
    from minigpt.serving.app import Settings
    from minigpt.serving.server import bind, serve

    if api_key is not None and not re.fullmatch("[!-~]+", api_key):  # it must fit into a header
        raise UserError("api-key: must be printable ASCII without spaces; choose another key")
    page = _page(page)
    backend = cast("OnnxBackend", load_backend(BackendName.onnx, model))
    settings = Settings(
        model=_name(model or DEFAULT_MODELS[BackendName.onnx]),
        fingerprint=backend.sha256,
        max_tokens=max_tokens,
        max_waiting=max_waiting,
        api_key=api_key,
        hosts=(host, *(allow_host or ())),
        origins=tuple(allow_origin or ()),
        page=page,
    )
    with bind(host, port, protected=insecure or api_key is not None) as listener:
        address, port = listener.getsockname()[:2]
        print(f"serving {settings.model} at http://{_url_host(address)}:{port}/v1", flush=True)
        serve(backend, settings, listener)


def _name(model: Path) -> str:
    """Return the name of a file without its extension, or of a model in MLflow.

    It is "minigpt" for models/minigpt.onnx, models:/minigpt@champion, models:/minigpt/3 and
    runs:/RUN_ID/minigpt.
    """
    uri = model.as_posix()
    if uri.startswith("models:/"):
        return re.split("[/@]", uri.removeprefix("models:/"))[0]
    return model.name if uri.startswith("runs:/") else model.stem


def _page(folder: Path | None) -> Path | None:
    """Return the folder of the page; None if none is named and the default one is missing."""
    from minigpt.serving.build_page import is_page

    if is_page(folder or DEFAULT_PAGE):
        return folder or DEFAULT_PAGE
    if folder is None:
        return None
    raise UserError(f"{folder}: not a page; build one with `minigpt-cli page {folder}`")


def _url_host(address: str) -> str:
    return f"[{address}]" if ":" in address else address
