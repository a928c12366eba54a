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
        help="Model file (.onnx or .safetensors), or a model stored by MLflow "
        "(models:/minigpt@champion or runs:/RUN_ID/model). Default: models/minigpt.onnx, or "
        "models/minigpt.safetensors with --backend torch.",
    ),
]
BackendOption = Annotated[
    BackendName | None,
    typer.Option(
        "--backend",
        "-b",
        help="Inference backend: PyTorch or ONNX Runtime. Default: the one that reads the model "
        "file, else onnx.",
    ),
]
MaxNewTokensOption = Annotated[
    int, typer.Option(help="Maximum number of tokens to generate, per text.")
]
TemperatureOption = Annotated[
    float, typer.Option(help="Sampling temperature: above 1 bolder, below 1 safer, 0 greedy.")
]
TopKOption = Annotated[int, typer.Option(help="Sample from the k most likely tokens.")]
TopPOption = Annotated[
    float,
    typer.Option(
        help="Sample from the fewest most likely tokens whose probabilities sum to p "
        "(nucleus sampling)."
    ),
]
MinPOption = Annotated[
    float,
    typer.Option(help="Sample from the tokens at least p times as likely as the most likely one."),
]
RepetitionPenaltyOption = Annotated[
    float,
    typer.Option(help="Above 1: tokens that already occur in the text become less likely."),
]
SeedOption = Annotated[int, typer.Option(help="Random seed. Same seed, same text, on any backend.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, one object per line.")]
