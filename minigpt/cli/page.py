"""minigpt-cli page: build a static page that runs a model in the browser."""

from pathlib import Path
from typing import Annotated

import typer

from minigpt.cli import options
from minigpt.cli.models import onnx_file, source_sha256


def page(
    out: Annotated[Path, typer.Argument(help="Folder to write.")] = Path("page"),
    model: options.Model = None,
) -> None:
    """Build a static page that runs a model in the browser.

    The page writes text, shows how each token was chosen and where the model looked, scores texts,
    and draws the curves of the training. It needs no server program: any host of static files
    serves it. Building it needs npm, which downloads ONNX Runtime for browsers once.

    For example:

        minigpt-cli page page

        python -m http.server --directory page
    """
    from minigpt.serving.build_page import build_page, training_data

    with onnx_file(model) as (path, backend):
        training = training_data(Path(), source_sha256(backend))
        build_page(out, path, training)
    print(f"{out}: serve it with `python -m http.server --directory {out}`")
