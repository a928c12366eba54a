"""A text written in turns: you write a piece, the model goes on.

The model has read texts, not conversations, so there is one text, to which both add.
"""

import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from typing import Any

from rich.console import Console

from minigpt.common.errors import UserError
from minigpt.common.text import visible
from minigpt.generation.backend import Backend
from minigpt.generation.engine import Text, write
from minigpt.generation.sampling import Sampling

HELP = """\
What you type is added to the text, and the model goes on. An empty line lets it go on as it is.
When the model has ended a text, the next line begins a new one.

/regenerate          write the last piece again, differently
/set NAME VALUE      change a setting, as in /set temperature 0.5; /set alone shows all
/seed NUMBER         the same as /set seed NUMBER
/new                 begin a new text
/text                show the whole text
/help                show this
/quit                end; Ctrl-D does too. Ctrl-C stops the model"""


class Chat:
    """The state of a session: the text so far, and how to go on."""

    def __init__(self, backend: Backend, sampling: Sampling, max_new_tokens: int):
        self.backend, self.sampling = backend, sampling
        self.limit(max_new_tokens)
        self.console = Console(highlight=False)
        self.before = ""  # the text before the last continuation
        self.text = ""
        self.sample = 0
        self.commands: dict[str, Callable[[list[str]], None]] = {
            "/regenerate": self.regenerate,
            "/set": self.set,
            "/seed": lambda words: self.set(["seed", *words]),
            "/new": lambda words: self.begin(),
            "/text": lambda words: self.show(self.text),
            "/help": lambda words: self.say(HELP),
        }

    def run(self) -> None:
        for line in _lines():
            try:
                self.answer(line)
            except UserError as error:
                self.say(str(error))

    def answer(self, line: str) -> None:
        """Do what a line says, or go on from it."""
        if not line.startswith("/"):
            self.go_on(self.text + line)
            return
        name, *words = line.split()
        if name not in self.commands:
            raise UserError(f"{name}: no such command; /help lists them")
        self.commands[name](words)

    def go_on(self, text: str, sample: int = 0) -> None:
        self.before, self.sample = text, sample
        writing = Text(self.backend.tokenizer, text, sample, self.max_new_tokens)
        try:
            for _, piece in write(self.backend, [writing], self.sampling):
                self.show(piece, end="")
        except KeyboardInterrupt:
            writing.stopped = "stop"
        self.show("")
        self.text = "" if writing.stopped == "eos" else text + writing.text
        if writing.stopped == "eos":
            self.say("(the end)")

    def regenerate(self, words: list[str]) -> None:
        if not self.sample and not self.before and not self.text:
            raise UserError("/regenerate: nothing has been written yet")
        self.go_on(self.before, self.sample + 1)

    def begin(self) -> None:
        self.before = self.text = ""

    def set(self, words: list[str]) -> None:
        settings = {**asdict(self.sampling), "max_new_tokens": self.max_new_tokens}
        if not words:
            self.say("\n".join(f"{name} {value}" for name, value in settings.items()))
            return
        name, *values = words
        if name not in settings or len(values) != 1:
            raise UserError(f"/set: takes one of {', '.join(settings)}, and a value")
        value = _parse(name, values[0], type(settings[name]))
        if name == "max_new_tokens":
            self.limit(value)
        else:
            self.sampling = replace(self.sampling, **{name: value})

    def limit(self, max_new_tokens: int) -> None:
        Text(
            self.backend.tokenizer, "", max_new_tokens=max_new_tokens
        )  # refuses what is out of range
        self.max_new_tokens = max_new_tokens

    def show(self, text: str, end: str = "\n") -> None:
        print(visible(text), end=end, flush=True)

    def say(self, text: str) -> None:
        self.console.out(text, style="dim", highlight=False)


def _parse(name: str, text: str, kind: type) -> Any:
    """`text` as a value of `kind`: bool, int or float."""
    try:
        return {"true": True, "false": False}[text] if kind is bool else kind(text)
    except (KeyError, ValueError):
        expected = {bool: "true or false", int: "a whole number", float: "a number"}[kind]
        raise UserError(f"{name}: must be {expected}, but it is {text}") from None


def _lines() -> Iterator[str]:
    """What the user types, up to /quit or the end; with history and editing at a terminal."""
    if sys.stdin.isatty():
        with contextlib.suppress(ImportError):  # not on Windows
            import readline  # noqa: F401 (input() uses it)
    prompt = "> " if sys.stdin.isatty() else ""
    while True:
        try:
            line = input(prompt)
        except EOFError:
            return
        except UnicodeDecodeError as error:
            raise UserError(
                f"standard input: not UTF-8 text ({error.reason}); convert it first"
            ) from None
        if line.strip() in ("/quit", "/exit"):
            return
        yield line
