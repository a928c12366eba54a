"""Options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

from minigpt.cli.models import BackendName

ModelOption = Annotated[
    Path | None,
    typer.Option(
        "--model",
        "-m",
        help="Model file: .onnx or .safetensors; or models:/minigpt@champion, runs:/<id>/model of MLflow. "
        "Default: what `dvc repro` made.",
    ),
]
BackendOption = Annotated[
    BackendName | None,
    typer.Option(
        "--backend", "-b", help="What computes. Default: by the model file's ending, else onnx."
    ),
]
MaxNewTokensOption = Annotated[
    int, typer.Option(help="Stop after so many tokens (or when the text ends).")
]
TemperatureOption = Annotated[
    float | None,
    typer.Option(help="Above 1 bolder, below 1 safer, 0 greedy. Default: 0.8.", show_default=False),
]
TopKOption = Annotated[int, typer.Option(help="Choose among the k likeliest tokens.")]
TopPOption = Annotated[
    float, typer.Option(help="Choose among the likeliest that together reach this probability.")
]
MinPOption = Annotated[
    float, typer.Option(help="Choose among those at least so likely, as a share of the likeliest.")
]
RepetitionPenaltyOption = Annotated[
    float, typer.Option(help="Above 1: what has occurred becomes less likely.")
]
SeedOption = Annotated[int, typer.Option(help="Same seed, same text, on either backend.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
