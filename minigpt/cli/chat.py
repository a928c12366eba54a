"""minigpt-cli chat: write a text in turns with the model.

The model has learned from texts, not from conversations. A session is therefore one text, which the
user and the model extend in turn.
"""

import contextlib
import re
import unicodedata
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import typer

from minigpt.cli import options
from minigpt.cli.input import BYTE_ORDER_MARK, open_stdin
from minigpt.cli.models import load_backend
from minigpt.cli.output import new_seed
from minigpt.common.entry_point import raise_on_interrupt
from minigpt.common.errors import UserError
from minigpt.common.text import visible

if TYPE_CHECKING:
    from minigpt.generation.backend import Backend

# the end of a text after which no space belongs, such as an opening quotation mark
WITHIN_WORD = re.compile(r"(^|[\s(\['’“-]|\s\")\Z")

HELP = """\
Type text to append it; the model continues. An empty line continues without new text.
Between two words a space is added; type one at the start of a line to add it elsewhere.
After the end of a text, the next line starts a new one.

/regenerate          replace the last continuation by another one
/set NAME VALUE      change a setting, such as /set temperature 0.5; /set alone lists all
/seed NUMBER         same as /set seed NUMBER
/new                 start a new text
/text                show the whole text
/help                show this help
/quit                quit, as does Ctrl-D; Ctrl-C interrupts the model"""


def chat(
    backend_name: options.Backend = None,
    model: options.Model = None,
    max_new_tokens: options.MaxNewTokens = 200,
    temperature: options.Temperature = 0.8,
    top_k: options.TopK = 50,
    top_p: options.TopP = 1.0,
    min_p: options.MinP = 0.0,
    repetition_penalty: options.RepetitionPenalty = 1.0,
    seed: options.Seed = None,
) -> None:
    r"""Write a text in turns with the model.

    Type the beginning of a text, and the model continues it. Type /help for commands.

    For example:

        minigpt-cli chat --temperature 0.6

        printf "Once upon a time\n/regenerate\n" | minigpt-cli chat
    """
    session = Chat(
        load_backend(backend_name, model),
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=new_seed() if seed is None else seed,
    )
    raise_on_interrupt()
    prompt = ""
    if open_stdin().isatty():
        prompt = "> "
        comment("Type the beginning of a text; the model continues it. /help lists the commands.")
        with contextlib.suppress(ImportError):  # not available on Windows
            import readline  # noqa: F401 (gives input() a history and line editing)
    try:
        while (line := input(prompt)).strip() not in ("/quit", "/exit"):
            session.handle(line.removeprefix(BYTE_ORDER_MARK))
    except EOFError:  # Ctrl-D, or the end of a pipe
        pass
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    except UnicodeDecodeError as error:
        raise UserError(f"standard input: not UTF-8 text ({error.reason}); convert it") from None


class Chat:
    """A session: the text so far, and the settings for its continuation."""

    def __init__(self, backend: "Backend", **settings: Any):
        """Start a session with `max_new_tokens` and the attributes of `Sampling` as settings."""
        self.backend = backend
        self.configure(**settings)
        self.reset()
        self.commands: dict[str, Callable[[list[str]], None]] = {
            "/regenerate": self.regenerate,
            "/set": self.set,
            "/seed": lambda words: self.set(["seed", *words]),
            "/new": self.new,
            "/text": lambda words: print(visible(self.text)),
            "/help": lambda words: comment(HELP),
        }

    def reset(self) -> None:
        self.text = ""
        self.before: str | None = None  # the text before the last continuation
        self.sample = 0  # number of the last continuation of that text

    def configure(self, max_new_tokens: int, **sampling: Any) -> None:
        """Change the settings.

        Raises:
            UserError: A value is out of range.
        """
        from minigpt.generation.sampling import Sampling
        from minigpt.generation.sequence import Sequence

        Sequence(self.backend.tokenizer, "", max_new_tokens=max_new_tokens)  # checks the range
        self.sampling = Sampling(**sampling)
        self.max_new_tokens = max_new_tokens

    def handle(self, line: str) -> None:
        """Run the command in a line, or append the line to the text and continue."""
        try:
            if not line.startswith("/"):
                self.generate(joined(self.text, line))
                return
            name, *words = line.split()
            if name not in self.commands:
                raise UserError(f"{name}: no such command; /help lists them")
            self.commands[name](words)
        except UserError as error:
            comment(str(error))

    def generate(self, prompt: str, sample: int = 0) -> None:
        from minigpt.generation.engine import run
        from minigpt.generation.sequence import Sequence

        self.before, self.sample = prompt, sample
        sequence = Sequence(
            self.backend.tokenizer, prompt, self.sampling, sample, self.max_new_tokens
        )
        with contextlib.suppress(KeyboardInterrupt):
            for _, new_text in run(self.backend, [sequence]):
                print(visible(new_text), end="", flush=True)
        print(flush=True)
        self.text = prompt + sequence.text
        if sequence.finish_reason == "eos":
            self.text = ""
            comment("(the end)")

    def regenerate(self, words: list[str]) -> None:
        if self.before is None:
            raise UserError("/regenerate: nothing to replace yet; type a text first")
        self.generate(self.before, self.sample + 1)

    def new(self, words: list[str]) -> None:
        self.reset()
        comment("(a new text)")

    def set(self, words: list[str]) -> None:
        settings = {**asdict(self.sampling), "max_new_tokens": self.max_new_tokens}
        if not words:
            comment("\n".join(f"{name} {value}" for name, value in settings.items()))
            return
        name, *values = words
        if name not in settings or len(values) != 1:
            raise UserError(
                f"/set: needs one of {', '.join(settings)} and a value, as in /set temperature 0.5"
            )
        settings[name] = _parse(name, values[0], type(settings[name]))
        self.configure(**settings)
        comment(f"{name} {settings[name]}")


def _parse(name: str, text: str, kind: type) -> Any:
    """Convert `text` to `kind`: bool, int or float."""
    try:
        return {"true": True, "false": False}[text] if kind is bool else kind(text)
    except (KeyError, ValueError):
        expected = {bool: "true or false", int: "a whole number", float: "a number"}[kind]
        raise UserError(f"{name}: must be {expected}, but it is {text}") from None


def joined(text: str, line: str) -> str:
    """Append `line` to `text`, with a space where two words or sentences meet."""
    wide = unicodedata.east_asian_width(line[:1] or " ") == "W"  # scripts without spaces
    separate = line[:1].isalnum() and not wide and not WITHIN_WORD.search(text)
    return f"{text}{' ' * separate}{line}"


def comment(text: str) -> None:
    """Print `text` so that it differs from generated text."""
    from rich.console import Console

    Console().out(text, style="dim", highlight=False)
