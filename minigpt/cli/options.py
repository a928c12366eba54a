"""Options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

from minigpt.cli.models import BackendName

Model = Annotated[
    Path | None,
    typer.Option(
        "--model",
        "-m",
        help="Model file (.onnx or .safetensors), or a model stored by MLflow "
        "(models:/minigpt@champion or runs:/RUN_ID/NAME). Default: models/minigpt.onnx, or "
        "models/minigpt.safetensors with --backend torch.",
    ),
]
Backend = Annotated[
    BackendName | None,
    typer.Option(
        "--backend",
        "-b",
        help="Inference backend: PyTorch or ONNX Runtime. Default: the one that reads the model "
        "file, else onnx.",
    ),
]
MaxNewTokens = Annotated[int, typer.Option(help="Maximum number of tokens to generate, per text.")]
Temperature = Annotated[
    float, typer.Option(help="Sampling temperature: above 1 bolder, below 1 safer, 0 greedy.")
]
TopK = Annotated[int, typer.Option(help="Sample from the k most likely tokens; 0: from all.")]
TopP = Annotated[
    float,
    typer.Option(
        help="Sample from the fewest most likely tokens whose probabilities sum to p "
        "(nucleus sampling)."
    ),
]
MinP = Annotated[
    float,
    typer.Option(help="Sample from the tokens at least p times as likely as the most likely one."),
]
RepetitionPenalty = Annotated[
    float,
    typer.Option(help="Above 1: tokens that already occur in the text become less likely."),
]
Seed = Annotated[
    int | None,
    typer.Option(
        help="Random seed. Same seed, same text, on any backend. Default: a new one each time."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, one object per line.")]
