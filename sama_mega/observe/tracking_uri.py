"""Where runs are tracked."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

DEFAULT_URI = "sqlite:///runs/mlflow.db"
URI_VARIABLE = "MLFLOW_TRACKING_URI"

_SQLITE_PREFIX = "sqlite:///"


def resolve_tracking_uri(recipe_uri: str | None, environment: Mapping[str, str] = os.environ) -> str:
    """Where to track: the environment variable, else the recipe, else SQLite below runs/.

    Args:
        recipe_uri: `track.uri`.
        environment: Holds MLFLOW_TRACKING_URI where the user set it.

    Returns:
        The URI, a relative SQLite path made absolute: later lives may start in another folder.
    """
    uri = environment.get(URI_VARIABLE) or recipe_uri or DEFAULT_URI
    database = _sqlite_path(uri)
    return uri if database is None else f"{_SQLITE_PREFIX}{database.absolute()}"


def without_password(uri: str) -> str:
    """The URI without user and password, for logs and files."""
    parts = urlsplit(uri)
    if "@" not in parts.netloc:
        return uri
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def make_database_folder(uri: str) -> None:
    """Makes the folder of a SQLite file; does nothing for a server."""
    database = _sqlite_path(uri)
    if database is not None:
        database.parent.mkdir(parents=True, exist_ok=True)


def artifact_location(uri: str) -> str | None:
    """Beside a SQLite file; None: a server decides for itself. MLflow's default litters the working directory."""
    database = _sqlite_path(uri)
    return None if database is None else (database.parent / "mlflow-artifacts").absolute().as_uri()


def _sqlite_path(uri: str) -> Path | None:
    return Path(uri.removeprefix(_SQLITE_PREFIX)) if uri.startswith(_SQLITE_PREFIX) else None
