"""The weights of MiniGPT as those of `GPT2LMHeadModel` of the package `transformers`, and back.

Both compute the same formulas from the same tensors, under other names. There are three
differences:

    matrices    GPT-2's `Conv1D` stores (inputs, outputs), PyTorch's `Linear` (outputs, inputs)
    positions   GPT-2 stores a table, which for MiniGPT can be that of the sines
    head bias   GPT-2 has none; the bias of the final norm can have the same effect

Queries, keys and values are packed alike: (3·C) outputs, the heads of the queries first.
"""

from typing import TYPE_CHECKING, Any

import torch
from pydantic import ValidationError
from torch import Tensor

from minigpt.common.config import ModelConfig
from minigpt.common.errors import UserError
from minigpt.interop.special_tokens import our_rows, their_rows
from minigpt.model.model import MiniGPT, PositionalEncoding
from minigpt.model.variants import NORM_EPS

if TYPE_CHECKING:
    import transformers

NAMES = {
    "token_embedding.weight": "transformer.wte.weight",
    "positional_encoding.encoding": "transformer.wpe.weight",
    "norm.weight": "transformer.ln_f.weight",
    "norm.bias": "transformer.ln_f.bias",
    "head.weight": "lm_head.weight",
}
LAYERS = {  # of a block
    "norm1": "ln_1",
    "attention.query_key_value": "attn.c_attn",
    "attention.output": "attn.c_proj",
    "norm2": "ln_2",
    "feed_forward.linear1": "mlp.c_fc",
    "feed_forward.linear2": "mlp.c_proj",
}
ACTIVATIONS = {
    "gelu_new": "gelu",
    "gelu_pytorch_tanh": "gelu",
    "relu": "relu",
}
ROWS = ("token_embedding.weight", "head.weight")  # with one row for each token
# parts of MiniGPT that no class of `transformers` computes, with their values in GPT-2
MISSING: dict[str, Any] = {"qk_norm": False, "bigram_buckets": 0, "trigram_buckets": 0}


def to_gpt2(model: MiniGPT) -> "transformers.GPT2LMHeadModel":
    """Return a model of `transformers` that computes the same logits.

    Raises:
        UserError: GPT-2 lacks a part of `model`.
    """
    from transformers import GPT2Config, GPT2LMHeadModel

    config = model.config
    _check_parts(model)
    vocab_size = model.token_embedding.num_embeddings
    theirs = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(their_rows(vocab_size, config.single_special_token)),
            n_positions=config.max_seq_len,
            n_embd=config.d_model,
            n_layer=config.num_layers,
            n_head=config.num_heads,
            n_inner=config.d_ff,
            activation_function="gelu_new" if config.activation == "gelu" else "relu",
            layer_norm_epsilon=NORM_EPS,
            tie_word_embeddings=config.tied_head,
            **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), config.dropout),
        )
    )
    tensors = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    assert model.positional_encoding is not None
    tensors["positional_encoding.encoding"] = model.positional_encoding.encoding.detach()
    if (bias := tensors.pop("head.bias", None)) is not None:
        tensors["norm.bias"] = _fold_head_bias(model.head.weight, tensors["norm.bias"], bias)
    rows = their_rows(vocab_size, config.single_special_token)
    for ours, their_name, transposed in _names(config):
        tensor = tensors[ours][rows] if ours in ROWS else tensors[ours]
        theirs.get_parameter(their_name).data = tensor.T.contiguous() if transposed else tensor
    theirs.tie_weights()
    return theirs.eval()


def from_gpt2(theirs: "transformers.GPT2LMHeadModel", end_of_text: int | None) -> MiniGPT:
    """Return the MiniGPT that computes the same logits.

    Args:
        theirs: Model, in float32.
        end_of_text: Id of the single special token; None if the first four ids are MiniGPT's.

    Raises:
        UserError: MiniGPT lacks a part of the model.
    """
    table = theirs.get_parameter("transformer.wpe.weight").detach()
    config = _our_config(theirs.config, table, single_special_token=end_of_text is not None)
    rows = our_rows(theirs.config.vocab_size, end_of_text)  # their id of each of ours
    model = MiniGPT(len(rows), config)
    tensors = {}
    for ours, their_name, transposed in _names(config):
        tensor = theirs.get_parameter(their_name).detach()
        tensor = tensor[rows] if ours in ROWS else tensor
        tensors[ours] = tensor.T.contiguous() if transposed else tensor
    if config.positional == "sinusoidal":
        del tensors["positional_encoding.encoding"]
    model.load_state_dict(tensors)
    return model.eval()


def _names(config: ModelConfig) -> list[tuple[str, str, bool]]:
    """Return our name of each tensor, theirs, and whether one is the transpose of the other."""
    names = [(ours, theirs, False) for ours, theirs in NAMES.items()]
    if config.tied_head:
        names.remove(("head.weight", "lm_head.weight", False))
    for block in range(config.num_layers):
        for ours, theirs in LAYERS.items():
            for part in ("weight", "bias"):
                transposed = part == "weight" and "norm" not in ours
                names.append(
                    (
                        f"blocks.{block}.{ours}.{part}",
                        f"transformer.h.{block}.{theirs}.{part}",
                        transposed,
                    )
                )
    return names


def _check_parts(model: MiniGPT) -> None:
    config = model.config
    for key, value in MISSING.items():
        if (found := getattr(config, key)) != value:
            raise UserError(
                f"model.{key} is {found}: no class of `transformers` has this part; "
                f"set it to {value} and train again"
            )
    if config.positional == "rotary":
        raise UserError(
            "model.positional is rotary, but GPT-2 adds positions to the embeddings; "
            "set it to sinusoidal or learned and train again"
        )


def _fold_head_bias(head: Tensor, norm_bias: Tensor, bias: Tensor) -> Tensor:
    """Return a bias of the final norm that has the effect of both: W (b + δ) = W b + bias.

    Raises:
        UserError: There is no such δ, because the vocabulary has more tokens than W has columns.
    """
    V, C = head.shape
    if not bias.any():
        return norm_bias
    if V > C:
        raise UserError(
            f"the head has a bias, but GPT-2 has none, and {V} tokens with {C} channels leave no "
            "other place for it; set model.head_bias to false and train again"
        )
    delta: Tensor = torch.linalg.lstsq(head.detach().double(), bias.double()).solution  # (C,)
    return (norm_bias.double() + delta).float()


def _our_config(
    config: "transformers.GPT2Config", table: Tensor, single_special_token: bool
) -> ModelConfig:
    """Return the configuration of MiniGPT; `table` (S, C) encodes the positions.

    Raises:
        UserError: MiniGPT lacks a part of the model.
    """
    expected = {
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "add_cross_attention": False,
        "layer_norm_epsilon": NORM_EPS,
    }
    for key, value in expected.items():
        if (found := getattr(config, key)) != value:
            raise UserError(f"its {key} is {found}, but MiniGPT has {value} only")
    if single_special_token and not config.tie_word_embeddings:
        raise UserError(
            "its tie_word_embeddings is False, but MiniGPT needs one matrix for embedding and head "
            "to treat <|endoftext|> as two tokens"
        )
    if config.activation_function not in ACTIVATIONS:
        raise UserError(
            f"its activation_function is {config.activation_function}; MiniGPT has "
            f"{', '.join(ACTIVATIONS)}"
        )
    S, C = table.shape
    sines = torch.equal(table, PositionalEncoding(C, S).encoding)
    values = {
        "d_model": C,
        "num_heads": config.n_head,
        "num_layers": config.n_layer,
        "d_ff": config.n_inner or 4 * C,
        "max_seq_len": S,
        "dropout": float(config.resid_pdrop),
        "positional": "sinusoidal" if sines else "learned",
        "activation": ACTIVATIONS[config.activation_function],
        "tied_head": config.tie_word_embeddings,
        "head_bias": False,
        "single_special_token": single_special_token,
    }
    try:
        return ModelConfig.model_validate({**values, **MISSING})
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"its {first['loc'][0]}: {first['msg']}") from None
