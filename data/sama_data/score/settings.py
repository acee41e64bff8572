"""How edits are judged, and how the endpoint that judges them is spoken to."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal
from urllib.parse import urlsplit

from sama_data.errors import DataError

ResponseFormat = Literal["auto", "json_schema", "json_object", "text"]

DEFAULT_MODEL = "Qwen/Qwen2.5-VL-72B-Instruct"
JPEG_QUALITY = 90

_CHAT_PATH = "/chat/completions"


@dataclass(frozen=True)
class JudgeSettings:
    """What the scores depend on: two runs that differ here must not share their answers.

    Attributes:
        model: The model's name at the endpoint.
        turns: How often an edit is judged; its scores are the means.
        num_frames: Frames that are shown of each of the two clips, evenly spaced; all of a shorter clip.
        max_frames: They are taken from this many frames at the clip's start: what training sees.
        video_side: A frame's longer side is scaled down to this, in pixels.
        image_side: The same for pictures.
        temperature: Of the model's sampling; at 0 every turn would give the same answer.
        max_output_tokens: Longest answer.
    """

    model: str = DEFAULT_MODEL
    turns: int = 3
    num_frames: int = 8
    max_frames: int = 81
    video_side: int = 640
    image_side: int = 1024
    temperature: float = 0.7
    max_output_tokens: int = 400

    def __post_init__(self) -> None:
        """Checks the ranges.

        Raises:
            DataError: A value is out of range.
        """
        if not self.model.strip():
            raise DataError(f"the model's name is empty: name the model, such as {DEFAULT_MODEL}")
        least = {"turns": 1, "num_frames": 1, "max_frames": 1, "video_side": 28, "image_side": 28}
        for name, value in (least | {"max_output_tokens": 32}).items():
            if getattr(self, name) < value:
                raise DataError(f"{name} ({getattr(self, name)}) must be at least {value}")
        if not 0.0 <= self.temperature <= 2.0:
            raise DataError(f"temperature ({self.temperature}) must be from 0 to 2")

    def identity(self, prompts: str) -> dict[str, Any]:
        """Returns the settings and the prompts' digest as plain values."""
        return asdict(self) | {"jpeg_quality": JPEG_QUALITY, "prompts": prompts}


@dataclass(frozen=True)
class EndpointSettings:
    """Where and how requests are sent; nothing here changes what an answer means.

    Attributes:
        url: The base, such as `http://host:8000/v1`, or the whole `.../chat/completions`.
        api_key: Sent as a bearer token; never logged or stored. None sends none.
        concurrency: Requests under way at a time.
        timeout_seconds: For one request, from connecting to the last byte.
        attempts: How often one turn is asked before its row is given up.
        response_format: How JSON is asked for; auto takes the strictest that the endpoint accepts.
        backoff_seconds: The first wait after a failure; it doubles each time.
        max_backoff_seconds: The longest wait that we choose.
        max_wait_seconds: The longest wait that the endpoint may ask for; beyond it the run stops.
        max_failed_rows: So many rows in a row that the endpoint did not judge stop the run.
    """

    url: str
    api_key: str | None = field(default=None, repr=False)
    concurrency: int = 16
    timeout_seconds: float = 120.0
    attempts: int = 6
    response_format: ResponseFormat = "auto"
    backoff_seconds: float = 1.0
    max_backoff_seconds: float = 60.0
    max_wait_seconds: float = 900.0
    max_failed_rows: int = 20

    def __post_init__(self) -> None:
        """Checks the address and the key.

        Raises:
            DataError: One of them cannot be used.
        """
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise DataError(f"the endpoint ({parts.hostname or self.url}) must be a URL like http://host:8000/v1")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise DataError(f"the endpoint (at {parts.hostname}) must hold no user, key, query or fragment")
        # The key itself must not show up in the message.
        if self.api_key is not None and not (self.api_key.isascii() and self.api_key.isprintable() and self.api_key):
            raise DataError("the API key is empty or holds a line break or a character outside ASCII")
        for name in ("concurrency", "attempts"):
            if getattr(self, name) < 1:
                raise DataError(f"{name} ({getattr(self, name)}) must be at least 1")
        if not self.timeout_seconds > 0:
            raise DataError(f"timeout_seconds ({self.timeout_seconds}) must be greater than 0")

    @property
    def chat_url(self) -> str:
        """Where requests go."""
        base = self.url.rstrip("/")
        return base if base.endswith(_CHAT_PATH) else base + _CHAT_PATH
