"""The README.md of a folder of Hugging Face; model_card.md is its template."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from minigpt.common.config import NO_MODEL, ModelConfig
from minigpt.interop.parity import Parity

if TYPE_CHECKING:
    from huggingface_hub import ModelCard


def model_card(config: ModelConfig, metadata: dict[str, Any], parity: Parity) -> "ModelCard":
    """Return the card, with its metadata in YAML."""
    from huggingface_hub import ModelCard, ModelCardData

    training = metadata.get("training", {})
    init_from = (metadata.get("train") or {}).get("init_from")
    data = ModelCardData(
        library_name="transformers", pipeline_tag="text-generation", tags=["minigpt", "gpt2"]
    )
    return ModelCard.from_template(
        data,
        template_path=str(Path(__file__).with_suffix(".md")),
        parameters=f"{metadata['parameters']:,}",
        config=config.model_dump(),
        vocabulary=metadata["config"]["vocab_size"],
        loss=training.get("val/loss") if training.get("held_out") else None,
        bits_per_char=training.get("val/bits_per_char"),
        init_from=None if init_from == NO_MODEL else init_from,
        parity=parity,
        new_tokens=min(100, config.max_seq_len // 2),
    )
