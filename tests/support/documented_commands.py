"""The command lines of the documentation: found, unwrapped, and parsed without running anything.

Lines come from the fenced `bash` blocks of README.md, docs/ and slurm/README.md. What stands in them is one of:

- a `sama-mega` command, by itself, inside one of `WRAPPERS` or behind an sbatch script of slurm/: it is parsed by the
  command line's own parser, and its recipe is loaded with its overrides;
- `make`, which is asked what it would do; `pip install`, whose extras must exist;
- one of `SHELL_PROGRAMS`, of which bash's syntax is all that is checked.

Anything else is a mistake, or a program to add to `SHELL_PROGRAMS`. `tests.support.documented_runs` says which commands
are run as well.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import typer

from sama_mega.__main__ import app
from sama_mega.config import load_recipe
from sama_mega.config.errors import ConfigError
from sama_mega.config.schema import Recipe
from sama_mega.config.validate import known_keys

REPOSITORY = Path(__file__).resolve().parents[2]
SHELL_PROGRAMS = frozenset(
    (
        *("cat", "cd", "cp", "export", "git", "kill", "ls", "mkdir", "source", "tail"),
        *("scancel", "scontrol", "squeue", "nvidia-smi", "mlflow", "pre-commit"),
    )
)
WRAPPERS = frozenset({"torchrun", "srun", "python", "python3", "nsys", "ncu"})
_BLOCK = re.compile(r"^```(?P<language>[\w{}-]*)[^\n]*\n(?P<text>.*?)^```", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"`(sama-mega [^`]+)`")
_PLACEHOLDERS = re.compile(r"[\[{|]|\.\.\.")
_EXIT_STATUS = re.compile(r"#.*\bexit (\d)\b")
_ASSIGNMENT = re.compile(r"^\w+=")


class UnknownLineError(Exception):
    """A line that no rule above knows, or one that cannot work."""


@dataclass(frozen=True)
class Line:
    """One command line of a page, continuations joined."""

    page: str
    number: int
    text: str

    @property
    def commands(self) -> list[list[str]]:
        """The words of each of its commands (`A && B` has two), without comment and assignments in front."""
        lexer = shlex.shlex(self.text, posix=True, punctuation_chars="&|;")
        lexer.whitespace_split = True
        found: list[list[str]] = [[]]
        for word in lexer:
            if set(word) <= set("&|;"):
                found.append([])
            elif found[-1] or not _ASSIGNMENT.match(word):
                found[-1].append(word)
        return [words for words in found if words]

    @property
    def status(self) -> int:
        """The exit status it should have: 0, or N where its comment says `exit N`."""
        said = _EXIT_STATUS.search(self.text)
        return int(said[1]) if said else 0

    def __str__(self) -> str:
        return f"{self.page}:{self.number}: {self.text}"


def pages() -> list[str]:
    """The documentation's pages, relative to the clone; new ones are found by themselves."""
    found = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md")), REPOSITORY / "slurm/README.md"]
    return [str(path.relative_to(REPOSITORY)) for path in found]


def blocks(text: str) -> Iterator[tuple[int, str]]:
    """Line number and text of every fenced bash block; indented ones would be missed, so they are an error."""
    assert not re.search(r"^[ \t]+```bash", text, re.MULTILINE), "a bash block must not be indented"
    for match in _BLOCK.finditer(text):
        if match["language"] in ("bash", "sh", "shell", "console"):
            yield text.count("\n", 0, match.start("text")) + 1, match["text"]


def read_lines(page: str) -> list[Line]:
    """All command lines of a page, comments and empty lines left out."""
    text = (REPOSITORY / page).read_text(encoding="utf-8")
    return [line for number, block in blocks(text) for line in _logical_lines(page, number, block)]


def inline_commands(page: str) -> list[Line]:
    """Commands in running text that are written out: those with placeholders are left out."""
    text = _BLOCK.sub(lambda block: "\n" * block[0].count("\n"), (REPOSITORY / page).read_text(encoding="utf-8"))
    found = []
    for match in _INLINE.finditer(text):
        said = " ".join(match[1].split())
        if not _PLACEHOLDERS.search(said):
            number = text.count("\n", 0, match.start()) + 1
            found.append(Line(page, number, re.sub(r"\b[A-Z]\b", "1", said)))  # --gpus N
    return found


def _logical_lines(page: str, number: int, block: str) -> Iterator[Line]:
    whole, first = "", number
    for offset, part in enumerate(block.splitlines()):
        first = first if whole else number + offset
        whole += part.removesuffix("\\") if part.endswith("\\") else part
        if not part.endswith("\\"):
            if whole.split("#")[0].strip():
                yield Line(page, first, " ".join(whole.split()))
            whole = ""


def unwrap(words: Sequence[str]) -> list[str] | None:
    """The arguments of the `sama-mega` command in a command; None where there is none."""
    program, *rest = words
    if program == "sama-mega":
        return rest
    if program == "sbatch":
        return _in_batch_script(rest)
    if program in WRAPPERS:
        for number, word in enumerate(rest):
            if word == "sama-mega" or (word == "sama_mega" and rest[number - 1] == "-m"):
                return rest[number + 1 :]
    return None


def _in_batch_script(words: Sequence[str]) -> list[str] | None:
    """What a script of slurm/ runs with its arguments: the command that its last line names."""
    script = next((word for word in words if word.endswith(".sh")), None)
    if script is None or not (REPOSITORY / script).is_file():
        raise UnknownLineError(f"there is no script {script or 'among the words'}")
    text = (REPOSITORY / script).read_text().rstrip()
    command = re.findall(r'(?:entrypoint|job)\.sh" ([a-z-]+) ', text)[-1]
    arguments = list(words[words.index(script) + 1 :])
    return [command, *arguments] if arguments else None


@dataclass(frozen=True)
class Parsed:
    """A command as the command line's own parser understood it: its name, such as `data synth`, and its values."""

    name: str
    values: dict[str, Any]

    @property
    def recipe(self) -> str | None:
        """The recipe that it names, if it names one; `data preview` takes a manifest too."""
        named = str(self.values.get("recipe") or self.values.get("subject") or "")
        return named if named.endswith((".yaml", ".yml")) or named.isupper() else None


@cache
def _command_tree() -> Any:
    """Of the whole command line; making it takes longer than a hundred parses."""
    return typer.main.get_command(app)


def parse(arguments: Sequence[str]) -> Parsed:
    """Parses a command, and loads its recipe with its overrides; runs nothing.

    Raises:
        UnknownLineError: There is no such command, option or value, or the recipe refuses an override.
    """
    command: Any = _command_tree()
    words, name = list(arguments), []
    while hasattr(command, "commands"):
        if words in (["--help"], ["--version"]):
            return Parsed(" ".join([*name, *words]), {})
        if not words:
            raise UnknownLineError(f"Missing command after {' '.join(name)}")
        if words[0] not in command.commands:
            raise UnknownLineError(f"there is no command {' '.join([*name, words[0]])}")
        name.append(words.pop(0))
        command = command.commands[name[-1]]
    try:
        values = dict(command.make_context(name[-1], words).params)
    except Exception as error:  # the parser's own exceptions have no public names
        raise UnknownLineError(str(error)) from error
    parsed = Parsed(" ".join(name), values)
    _check_recipe(parsed)
    return parsed


def _check_recipe(command: Parsed) -> None:
    recipe, overrides = command.recipe, [_without_stage(text) for text in command.values.get("overrides") or ()]
    for sweep in command.values.get("sweeps") or ():
        if sweep.partition("=")[0] not in known_keys(Recipe):
            raise UnknownLineError(f"--sweep {sweep}: no such recipe key")
    if recipe is None or recipe.isupper():  # none, or a placeholder: the keys of overrides are checked all the same
        recipe = "recipes/demo_stage1.yaml"
    if recipe.startswith("recipes/"):
        try:
            load_recipe(REPOSITORY / recipe, overrides)
        except ConfigError as error:
            raise UnknownLineError(str(error)) from error


def _without_stage(override: str) -> str:
    return re.sub(r"^[01]:", "", override)


def check(line: Line) -> list[Parsed]:
    """Checks a line without running it; returns the `sama-mega` commands in it.

    Raises:
        UnknownLineError: The line is none of what this module knows, or cannot work.
    """
    return [parsed for words in line.commands if (parsed := _check_command(words)) is not None]


def _check_command(words: list[str]) -> Parsed | None:
    arguments = unwrap(words)
    if arguments is not None:
        return parse(arguments)
    program = Path(words[0]).name  # ~/mlflow/bin/mlflow
    if program == "make":
        _ask_make(words)
    elif program == "pip" or words[1:3] == ["-m", "pip"]:
        _check_extras(words)
    elif program in WRAPPERS and words[1:3] != ["-m", "venv"]:
        raise UnknownLineError(f"{program} runs no sama-mega command")
    elif program not in (*SHELL_PROGRAMS, *WRAPPERS, "sbatch"):
        fix = f"write a sama-mega command, or add the program to SHELL_PROGRAMS in {Path(__file__).name}"
        raise UnknownLineError(f"{program} is not known here: {fix}")
    return None


def _ask_make(words: Sequence[str]) -> None:
    asked = subprocess.run([words[0], "-n", *words[1:]], cwd=REPOSITORY, capture_output=True, text=True, timeout=30)
    if asked.returncode:
        raise UnknownLineError(asked.stderr.strip())


def _check_extras(words: Sequence[str]) -> None:
    known = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for word in words:
        extras = re.search(r"^(?:\.|sama-mega)\[(.+)\]$", word)
        unknown = set(extras[1].split(",")) - set(known) if extras else None
        if unknown:
            raise UnknownLineError(f"pyproject.toml has no extra {', '.join(sorted(unknown))}")
