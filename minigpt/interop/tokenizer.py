"""The tokenizers of MiniGPT as those of the library `tokenizers`, in a tokenizer.json, and back."""

import json
from typing import TYPE_CHECKING, Any

from minigpt.common.errors import UserError
from minigpt.common.text import NORMALIZATION_FORMS, Normalization
from minigpt.interop.special_tokens import END_OF_TEXT, FIRST
from minigpt.tokenizer import (
    BOS,
    SPECIAL_TOKENS,
    BPETokenizer,
    CharTokenizer,
    Tokenizer,
)

if TYPE_CHECKING:
    import tokenizers
    import transformers

ANY_CHARACTER = r"[\s\S]"


def to_transformers(
    tokenizer: Tokenizer, max_seq_len: int, single_special_token: bool
) -> "transformers.PreTrainedTokenizerFast":
    """Return the tokenizer as one of `transformers`; a text that spells "<bos>" stays text.

    It begins a text with <bos>, which every model of MiniGPT expects, and does not end it. With
    `single_special_token` it is like GPT-2's, which adds nothing.

    Raises:
        UserError: A single special token leaves none for unknown characters.
    """
    from transformers import PreTrainedTokenizerFast

    if single_special_token:
        if not isinstance(tokenizer, BPETokenizer):
            raise UserError(
                "model.single_special_token needs a subword tokenizer; set it to false and train "
                "again"
            )
        library = _gpt2_library(tokenizer)
        names = dict.fromkeys(("bos_token", "eos_token", "unk_token"), END_OF_TEXT)
    else:
        library = _library(tokenizer)
        names = {f"{name.strip('<>')}_token": name for name in SPECIAL_TOKENS}
    return PreTrainedTokenizerFast(
        tokenizer_object=library,
        model_max_length=max_seq_len,
        clean_up_tokenization_spaces=False,
        split_special_tokens=True,
        **names,
    )


def _library(tokenizer: Tokenizer) -> "tokenizers.Tokenizer":
    from tokenizers import Tokenizer as Library
    from tokenizers.processors import TemplateProcessing

    if isinstance(tokenizer, CharTokenizer):
        library = _char_library(tokenizer)
    else:
        library = Library.from_str(json.dumps(tokenizer.to_dict()))
    library.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", BOS)])
    return library


def _char_library(tokenizer: CharTokenizer) -> "tokenizers.Tokenizer":
    """Return a tokenizer whose words are single characters."""
    from tokenizers import Regex, decoders, models, pre_tokenizers
    from tokenizers import Tokenizer as Library

    vocab = {name: token for token, name in enumerate(SPECIAL_TOKENS)} | tokenizer.ids
    library = Library(models.WordLevel(vocab, unk_token="<unk>"))
    library.normalizer = _like_bpe(tokenizer).normalizer
    library.pre_tokenizer = pre_tokenizers.Split(Regex(ANY_CHARACTER), "isolated")
    library.decoder = decoders.Fuse()
    return library


def _like_bpe(tokenizer: Tokenizer) -> "tokenizers.Tokenizer":
    """Return the library's tokenizer, with subwords, that normalizes like `tokenizer`."""
    from tokenizers import Tokenizer as Library

    values = BPETokenizer(FIRST + 256, tokenizer.normalization, tokenizer.lowercase).to_dict()
    return Library.from_str(json.dumps(values))


def _gpt2_library(tokenizer: BPETokenizer) -> "tokenizers.Tokenizer":
    """Return the tokenizer with the ids of GPT-2: without our special tokens, and with its own."""
    from tokenizers import Tokenizer as Library
    from tokenizers.processors import ByteLevel

    values = tokenizer.to_dict()
    tokens = [*list(values["model"]["vocab"])[FIRST:], END_OF_TEXT]
    vocab = {token: index for index, token in enumerate(tokens)}
    library = Library.from_str(
        json.dumps({**values, "post_processor": None, "model": {**values["model"], "vocab": vocab}})
    )
    library.post_processor = ByteLevel(trim_offsets=False)
    return library


def from_transformers(
    theirs: "transformers.PreTrainedTokenizerBase",
) -> tuple[Tokenizer, int | None]:
    """Return our tokenizer, and the id of their special token unless they have our four.

    Raises:
        UserError: The tokenizer is neither GPT-2's nor one that `to_transformers` returned.
    """
    library = getattr(theirs, "backend_tokenizer", None)  # not in those without a tokenizer.json
    values: dict[str, Any] = {"model": {"type": type(theirs).__name__}}
    if library:
        values = json.loads(library.to_str())
    kind = values["model"]["type"]
    if kind not in ("BPE", "WordLevel"):
        raise UserError(f"its tokenizer is not that of GPT-2: {kind}, not a byte pair encoding")
    vocab: dict[str, int] = values["model"]["vocab"]
    tokens = sorted(vocab, key=vocab.__getitem__)
    form, lowercase = _normalization(values)
    try:
        if tuple(tokens[:FIRST]) == SPECIAL_TOKENS:
            if kind == "WordLevel":
                return CharTokenizer(tokens[FIRST:], form, lowercase), None
            return _bpe(tokens, values["model"]["merges"], form, lowercase), None
        if kind != "BPE" or END_OF_TEXT not in vocab:
            raise ValueError(f"no byte pair encoding with {END_OF_TEXT}")
        tokens = [*SPECIAL_TOKENS, *(token for token in tokens if token != END_OF_TEXT)]
        bpe = _bpe(tokens, values["model"]["merges"], form, lowercase)
    except ValueError as error:
        raise UserError(f"its tokenizer is not that of GPT-2: {error}") from None
    return bpe, vocab[END_OF_TEXT]


def _bpe(
    tokens: list[str], merges: list[Any], normalization: Normalization, lowercase: bool
) -> BPETokenizer:
    values = BPETokenizer(FIRST + 256, normalization, lowercase).to_dict()
    vocab = {token: index for index, token in enumerate(tokens)}
    model = {**values["model"], "vocab": vocab, "merges": merges}
    return BPETokenizer.from_dict({**values, "model": model})


def _normalization(values: dict[str, Any]) -> tuple[Normalization, bool]:
    normalizer = values["normalizer"] or {}
    steps = [step["type"] for step in normalizer.get("normalizers", [normalizer]) if step]
    form: Normalization = next((form for form in NORMALIZATION_FORMS if form in steps), "none")
    return form, "Lowercase" in steps
