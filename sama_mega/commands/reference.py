"""`sama-mega reference`: writes the pages of the documentation that come from the code."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Union

import typer
from typer.models import ArgumentInfo, CommandInfo, OptionInfo

from sama_mega.config import reference

_PREAMBLE = """\
# Commands

`sama-mega` is `python -m sama_mega`. Exit status: 0 done, 1 it ran and the answer is no (or an unexpected failure), 2
the input is wrong: one line says what. `--help` says the same as this page, which is written from the command line's
declarations by `make reference`; a test holds it to them.
"""
_PLACEHOLDERS: Mapping[Any, str] = {int: "N", float: "X", str: "TEXT", Path: "PATH"}


def pages(app: typer.Typer) -> dict[str, str]:
    """The generated pages by file name.

    Args:
        app: The command line.
    """
    return {"recipes.md": reference.render_reference(), "commands.md": render_commands(app)}


def run(folder: Path, app: typer.Typer) -> int:
    """Writes the generated pages into `folder`; returns the exit status."""
    for name, text in pages(app).items():
        (folder / name).write_text(text, encoding="utf-8")
        print(f"wrote {folder / name}")
    return 0


def render_commands(app: typer.Typer) -> str:
    """The text of `docs/commands.md`."""
    return "\n".join([_PREAMBLE, *(line for name, command in _commands(app) for line in _section(name, command))])


def _commands(app: typer.Typer, prefix: str = "") -> Iterator[tuple[str, Callable[..., Any]]]:
    """Names and functions of all commands that help shows, those of groups after those beside them."""
    for command in app.registered_commands:
        if not command.hidden:
            assert command.callback is not None
            yield prefix + _name(command), command.callback
    for group in app.registered_groups:
        assert group.typer_instance is not None
        yield from _commands(group.typer_instance, f"{prefix}{group.name} ")


def _name(command: CommandInfo) -> str:
    return command.name or typing.cast(Any, command.callback).__name__.replace("_", "-")


@dataclass(frozen=True)
class _Parameter:
    """An argument or an option of a command: how it is written, what it does, and what it is when left out."""

    written: str
    meaning: str
    default: object
    is_option: bool

    @property
    def row(self) -> str:
        """Its row of the table."""
        if self.default is inspect.Parameter.empty:
            default = "required"
        else:
            default = "" if self.default in (None, False) else f"`{self.default}`"
        return (
            "| " + " | ".join(cell.replace("|", "\\|") for cell in (f"`{self.written}`", self.meaning, default)) + " |"
        )


def _section(name: str, command: Callable[..., Any]) -> list[str]:
    parameters = sorted(_parameters(command), key=lambda parameter: parameter.is_option)
    words = [name, *(_in_usage(parameter) for parameter in parameters if not parameter.is_option)]
    if any(parameter.is_option for parameter in parameters):
        words.append("[OPTIONS]")
    lines = [f"## {name}", "", "```text", f"sama-mega {' '.join(words)}", "```", ""]
    lines += [inspect.cleandoc(command.__doc__ or ""), "", "| | | default |", "|---|---|---|"]
    return [*lines, *(parameter.row for parameter in parameters), ""]


def _in_usage(argument: _Parameter) -> str:
    return argument.written if argument.default is inspect.Parameter.empty else f"[{argument.written}]"


def _parameters(command: Callable[..., Any]) -> Iterator[_Parameter]:
    hints = typing.get_type_hints(command, include_extras=True)
    for name, parameter in inspect.signature(command).parameters.items():
        if hints[name] is typer.Context:  # what the line was read from, no part of it
            continue
        kind, info = typing.get_args(hints[name])
        is_option = isinstance(info, OptionInfo)
        written = _option(name, kind, info) if is_option else _argument(kind, info)
        yield _Parameter(written, info.help or "", parameter.default, is_option)


def _option(name: str, kind: Any, info: OptionInfo) -> str:
    # Of an annotated option typer takes the first flag for its default.
    declared = [flag for flag in (info.default, *(info.param_decls or ())) if isinstance(flag, str)]
    flags = ", ".join(declared or [f"--{name.replace('_', '-')}"])
    value = info.metavar or _placeholder(kind)
    return f"{flags} {value}" if value else flags


def _argument(kind: Any, info: ArgumentInfo) -> str:
    assert info.metavar is not None
    return f"{info.metavar} ..." if _is_list(kind) else info.metavar


def _is_list(kind: Any) -> bool:
    return typing.get_origin(kind) is list or any(_is_list(inner) for inner in typing.get_args(kind))


def _placeholder(kind: Any) -> str:
    """What stands for an option's value: nothing for a switch."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if kind is bool:
        return ""
    if origin is Literal:
        return "|".join(inner)
    if origin in (Union, types.UnionType, list):
        return _placeholder(inner[0])
    return _PLACEHOLDERS[kind]
