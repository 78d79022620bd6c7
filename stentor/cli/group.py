"""Groups of commands: a help page whose lines aren't cut, and a way on for who types another program's words."""

from collections.abc import Mapping
from typing import Any

import click

# What people type who come from other servers, and what does it here.
_ELSEWHERE = {
    "run": "stentor chat",
    "list": "stentor models list",
    "ls": "stentor models list",
    "pull": "stentor models add",
    "add": "stentor models add",
    "rm": "stentor models rm",
    "delete": "stentor models rm",
    "show": "stentor models list --json",
    "search": "stentor models search",
    "load": "stentor models start",
    "stop": "stentor models stop` stops a model, Ctrl-C the server; `stentor ps",
    "unload": "stentor models stop",
    "start": "stentor up",
    "init": "stentor up",
    "setup": "stentor up",
    "proxy": "stentor up",
    "status": "stentor ps` and `stentor doctor",
    "health": "stentor doctor",
    "check": "stentor doctor",
    "key": "stentor keys",
    "migrate": "stentor db migrate",
    "spend": "stentor usage` and `stentor report",
    "login": "stentor keys create",
    "help": "stentor --help",
}
_WIDEST = 1000


class WordsGroup(click.Group):
    """A group that answers words of other programs (``words``: what each leads to, as a sentence)."""

    def __init__(self, *arguments: Any, words: Mapping[str, str], **fields: Any) -> None:
        super().__init__(*arguments, **fields)
        self._words = words

    def resolve_command(
        self, context: click.Context, arguments: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that the first argument names. Raises UsageError for another word."""
        word = arguments[0]
        if word in self._words and self.get_command(context, word) is None:
            context.fail(f"There is no command '{word}'. {self._words[word]}")
        return super().resolve_command(context, arguments)


class RootGroup(WordsGroup):
    """All commands. An unknown one is answered with the command that does here what its name says elsewhere."""

    def __init__(self, *arguments: Any, **fields: Any) -> None:
        words = {word: f"Here it is `{command}`." for word, command in _ELSEWHERE.items()}
        super().__init__(*arguments, words=words, **fields)

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """Each command with its whole first sentence."""
        shown = ((name, self.get_command(context, name)) for name in self.list_commands(context))
        rows = [(name, command.get_short_help_str(_WIDEST)) for name, command in shown if command is not None]
        with formatter.section("Commands"):
            formatter.write_dl(rows)
