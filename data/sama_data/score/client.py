"""Speaks to the endpoint: one question at a time, again and again where that may help, with patience."""

from __future__ import annotations

import asyncio
import json
import logging
import random
import re
import time
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Any

import httpx2

from sama_data.errors import DataError
from sama_data.score.answer import BadAnswer, Verdict, read_completion
from sama_data.score.form import AnswerForm
from sama_data.score.settings import EndpointSettings, JudgeSettings, ResponseFormat

_LOGGER = logging.getLogger("sama_data")

_LOOSER: dict[ResponseFormat, ResponseFormat] = {"json_schema": "json_object", "json_object": "text"}
_ABOUT_THE_FORMAT = re.compile(r"response_format|json_schema|json_object|structured|guided|grammar", re.IGNORECASE)
# No row will fare better: the key, the address or the model's name is wrong.
_STOPPING_STATUSES = frozenset({301, 302, 303, 307, 308, 401, 403, 404, 405})
_PASSING_STATUSES = frozenset({408, 425, 429})
_MAX_RESPONSE_BYTES = 1 << 20
_SHOWN_CHARACTERS = 200
# Asking again for the same turn needs another seed, or a server that caches gives the same answer.
_SEEDS_PER_TURN = 1000


class EndpointError(DataError):
    """The endpoint cannot be used: asking for other rows would be in vain."""


class EndpointRefusal(EndpointError):
    """The endpoint turns us away: what the user said of it is wrong."""


class Unanswered(Exception):
    """One turn of one row got no answer that can be used.

    Attributes:
        reason: Why, in words.
        is_final: Whether the model answered and asking again is in vain; else the endpoint was not to be had.
    """

    def __init__(self, reason: str, is_final: bool) -> None:
        super().__init__(reason)
        self.reason = reason
        self.is_final = is_final


class _Failure(Exception):
    """One attempt failed."""

    def __init__(self, reason: str, is_answer: bool = False, wait_seconds: float | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.is_answer = is_answer
        self.wait_seconds = wait_seconds


class JudgeClient:
    """Asks an OpenAI-compatible chat-completions endpoint; an asynchronous context manager.

    Args:
        endpoint: Where and how.
        judge: The model and its sampling.

    Attributes:
        num_requests: Requests sent so far, those that failed included.
    """

    def __init__(self, endpoint: EndpointSettings, judge: JudgeSettings) -> None:
        self._endpoint = endpoint
        self._judge = judge
        self._format: ResponseFormat = "json_schema" if endpoint.response_format == "auto" else endpoint.response_format
        self._gate_opens = 0.0
        self.num_requests = 0
        headers = {"Content-Type": "application/json", "User-Agent": "sama-mega"}
        if endpoint.api_key is not None:
            headers["Authorization"] = f"Bearer {endpoint.api_key}"
        # One deadline a request is set in `_post`: these would be for each socket operation.
        limits = httpx2.Limits(max_connections=endpoint.concurrency, max_keepalive_connections=endpoint.concurrency)
        self._http = httpx2.AsyncClient(headers=headers, timeout=None, limits=limits, follow_redirects=False)

    async def __aenter__(self) -> JudgeClient:
        await self._http.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.__aexit__(kind, error, trace)

    async def ask(self, messages: list[dict[str, Any]], form: AnswerForm, turn: int) -> Verdict:
        """Returns the verdict of one turn.

        Args:
            messages: What the model is told and shown.
            form: Which scores are asked for.
            turn: From 1.

        Raises:
            Unanswered: Every attempt failed.
            EndpointError: The endpoint refuses us, or asks for too long a wait.
        """
        failure = _Failure("")
        for attempt in range(self._endpoint.attempts):
            await self._wait_at_the_gate()
            try:
                return await self._attempt(messages, form, turn + _SEEDS_PER_TURN * attempt)
            except _Failure as error:
                failure = error
            if failure.wait_seconds is not None:
                # What the endpoint asks of one request, it asks of all.
                self._gate_opens = max(self._gate_opens, time.monotonic() + failure.wait_seconds)
            elif not failure.is_answer and attempt + 1 < self._endpoint.attempts:
                await self._back_off(attempt)
        raise Unanswered(failure.reason, failure.is_answer)

    def body(self, messages: list[dict[str, Any]], form: AnswerForm, seed: int) -> dict[str, Any]:
        """Returns the body of a request."""
        body: dict[str, Any] = {
            "model": self._judge.model,
            "messages": messages,
            "max_tokens": self._judge.max_output_tokens,
            "temperature": self._judge.temperature,
            "seed": seed,
        }
        if self._format == "json_schema":
            schema = {"name": "scores", "strict": True, "schema": form.schema()}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        elif self._format == "json_object":
            body["response_format"] = {"type": "json_object"}
        return body

    async def _attempt(self, messages: list[dict[str, Any]], form: AnswerForm, seed: int) -> Verdict:
        """Asks once; more often while the endpoint refuses the way in which JSON is asked for.

        Raises:
            _Failure: It may go better next time.
            Unanswered: It will not for this row.
            EndpointError: It will not for any.
        """
        while True:
            asked_for = self._format
            status, retry_after, content = await self._post(self.body(messages, form, seed))
            if status == 200:
                try:
                    return read_completion(content, form)
                except BadAnswer as error:
                    raise _Failure(self._without_key(str(error)), is_answer=True) from None
            text = self._without_key(_error_text(content))
            if not self._step_down(asked_for, status, text):
                raise self._failure(status, retry_after, text)

    async def _post(self, body: dict[str, Any]) -> tuple[int, str | None, bytes]:
        self.num_requests += 1
        content = bytearray()
        try:
            async with asyncio.timeout(self._endpoint.timeout_seconds):
                request = self._http.stream("POST", self._endpoint.chat_url, content=json.dumps(body).encode())
                async with request as response:
                    async for chunk in response.aiter_bytes():
                        content += chunk
                        if len(content) > _MAX_RESPONSE_BYTES:
                            raise _Failure("the response is longer than any answer can be", is_answer=True)
        except TimeoutError:
            raise _Failure(f"no answer within {self._endpoint.timeout_seconds:g} s") from None
        except (httpx2.TransportError, httpx2.DecodingError) as error:
            said = self._without_key(str(error))
            raise _Failure(f"the connection failed: {type(error).__name__}{f': {said}' if said else ''}") from None
        return response.status_code, response.headers.get("retry-after"), bytes(content)

    def _failure(self, status: int, retry_after: str | None, text: str) -> Exception:
        """Returns what a status that is not 200 means."""
        said = f"status {status}: {text}" if text else f"status {status}"
        if status in _STOPPING_STATUSES:
            return EndpointRefusal(
                f"{self._endpoint.chat_url}: {said}: check the URL, the model's name and the API key"
            )
        if status not in _PASSING_STATUSES and status < 500:
            return Unanswered(said, is_final=True)
        wait = wait_seconds(retry_after)
        if wait is not None and wait > self._endpoint.max_wait_seconds:
            return EndpointError(
                f"{self._endpoint.chat_url}: {said}: it asks to wait {wait:.0f} s: start this command again then; "
                "nothing is asked twice"
            )
        return _Failure(said, wait_seconds=wait)

    def _step_down(self, asked_for: ResponseFormat, status: int, text: str) -> bool:
        """Whether to ask again at once, because another way to ask for JSON may be accepted."""
        if self._endpoint.response_format != "auto" or asked_for not in _LOOSER:
            return False
        if status not in (400, 422, 500, 501) or not _ABOUT_THE_FORMAT.search(text):
            return False
        if self._format == asked_for:
            self._format = _LOOSER[asked_for]
            _LOGGER.warning(
                "the endpoint refuses response_format %s (%s): asking with %s from now on",
                asked_for,
                text,
                self._format,
            )
        return True

    async def _back_off(self, attempt: int) -> None:
        longest = min(self._endpoint.max_backoff_seconds, self._endpoint.backoff_seconds * 2**attempt)
        # Requests that failed together must not come back together.
        await asyncio.sleep(longest * random.uniform(0.5, 1.0))

    async def _wait_at_the_gate(self) -> None:
        while (left := self._gate_opens - time.monotonic()) > 0:
            await asyncio.sleep(left)

    def _without_key(self, text: str) -> str:
        """Returns a text of the endpoint's without our key: some repeat it in their errors."""
        key = self._endpoint.api_key
        return text.replace(key, "***") if key else text


def wait_seconds(retry_after: str | None, now: datetime | None = None) -> float | None:
    """Returns the seconds that a Retry-After header asks for; None where it says nothing that can be read."""
    if retry_after is None:
        return None
    try:
        return max(0.0, float(int(retry_after.strip())))
    except ValueError:
        pass
    try:
        date = parsedate_to_datetime(retry_after)
    except ValueError:
        return None
    date = date if date.tzinfo else date.replace(tzinfo=UTC)
    return max(0.0, (date - (now or datetime.now(UTC))).total_seconds())


def _error_text(content: bytes) -> str:
    """Returns what a response says is wrong: its error's message where it has one."""
    text = content.decode(errors="replace")
    try:
        found = json.loads(text)
        error = found.get("error", found)
        text = error if isinstance(error, str) else str(error.get("message", text))
    except (ValueError, AttributeError, RecursionError):
        pass
    line = " ".join(text.split())
    return line if len(line) <= _SHOWN_CHARACTERS else line[: _SHOWN_CHARACTERS - 3] + "..."
