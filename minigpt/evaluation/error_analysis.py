"""Breakdown of predictions: accuracy by kind of character, and the most common mistakes."""

import unicodedata

import numpy as np
import pandas as pd

from minigpt.tokenizer import Tokenizer

CLASSES = [
    "lowercase",
    "uppercase",
    "other letter",
    "digit",
    "space",
    "line break",
    "punctuation",
    "control",
    "part of a character",
    "special token",
]


def accuracy_by_class(predictions: pd.DataFrame, tokenizer: Tokenizer) -> pd.DataFrame:
    """Return count, accuracy and mean loss of the targets of each of `CLASSES`."""
    class_of_id = np.array(
        [CLASSES.index(token_class(string)) for string in tokenizer.token_strings]
    )
    table = pd.DataFrame(
        {
            "class": pd.Categorical.from_codes(class_of_id[predictions["target"]], CLASSES),
            "correct": predictions["target"] == predictions["predicted"],
            "loss": predictions["loss"],
        }
    )
    groups = table.groupby("class", observed=True)
    return (
        groups.agg(count=("correct", "size"), accuracy=("correct", "mean"), loss=("loss", "mean"))
        .round(4)
        .reset_index()
    )


def mistakes(predictions: pd.DataFrame, tokenizer: Tokenizer, limit: int = 30) -> pd.DataFrame:
    """Return the most common wrong predictions, such as `'e' → 'a'`.

    The column "share" is the count divided by the number of times that the target occurs.
    """
    target_counts = predictions["target"].value_counts()
    wrong = predictions[predictions["target"] != predictions["predicted"]]
    table = wrong.value_counts(["target", "predicted"]).head(limit).reset_index()
    names = [repr(string) if string else "special token" for string in tokenizer.token_strings]
    label = [
        f"{names[target]} → {names[predicted]}"
        for target, predicted in table[["target", "predicted"]].to_numpy()
    ]
    share = (table["count"] / table["target"].map(target_counts)).round(4)
    return pd.DataFrame({"mistake": label, "count": table["count"], "share": share})


def token_class(string: str) -> str:
    """Return one of `CLASSES`, by the first character of a token that is not a space."""
    if not string:
        return "special token"
    return character_class((string.lstrip(" ") or " ")[0])


def character_class(character: str) -> str:
    """Return one of `CLASSES`."""
    if character == "\n":
        return "line break"
    if character.isspace():
        return "space"
    if character.isdigit():
        return "digit"
    if character.islower():
        return "lowercase"
    if character.isupper():
        return "uppercase"
    category = unicodedata.category(character)
    if category == "Cs":  # a lone surrogate
        return "part of a character"
    # major categories: L letter, M mark (accents, vowel signs), C control
    classes = {"L": "other letter", "M": "other letter", "C": "control"}
    return classes.get(category[0], "punctuation")
