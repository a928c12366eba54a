"""Breakdown of predictions: accuracy by kind of character, and the most common mistakes."""

import unicodedata
from collections.abc import Callable

import pandas as pd

from minigpt.tokenizer import Tokenizer

# kind of character → test; the first that a character passes is its kind
CLASSES: dict[str, Callable[[str], bool]] = {
    "lowercase": str.islower,
    "uppercase": str.isupper,
    "other letter": lambda character: unicodedata.category(character)[0] in "LM",  # M: accents
    "digit": str.isdigit,
    "space": lambda character: character.isspace() and character != "\n",
    "line break": lambda character: character == "\n",
    "part of a character": lambda character: unicodedata.category(character) == "Cs",
    "control": lambda character: unicodedata.category(character)[0] == "C",
    "punctuation": lambda character: True,
    "special token": lambda character: True,
}


def accuracy_by_class(predictions: pd.DataFrame, tokenizer: Tokenizer) -> pd.DataFrame:
    """Return count, accuracy and mean loss of the targets of each of `CLASSES`."""
    class_of_id = pd.Series(map(token_class, tokenizer.token_strings))
    table = pd.DataFrame(
        {
            "class": pd.Categorical(class_of_id[predictions["target"]], list(CLASSES)),
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
    """Return one of `CLASSES`, by the first character that is not a space."""
    if not string:
        return "special token"
    character = (string.lstrip(" ") or " ")[0]
    return next(name for name, matches in CLASSES.items() if matches(character))
