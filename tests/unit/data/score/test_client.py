"""The client against a server that misbehaves: what is asked again, what is waited for, what stops a run."""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime

import numpy as np
import pytest

from sama_data.errors import DataError
from sama_data.score.answer import Verdict
from sama_data.score.client import EndpointError, JudgeClient, Unanswered, wait_seconds
from sama_data.score.pictures import data_uri
from sama_data.score.prompts import answer_form, make_messages
from sama_data.score.settings import EndpointSettings, JudgeSettings
from tests.support.chat_server import CLOSE, DRIP, HANG, Asked, ChatServer, Reply, answer, good, refuse, serve

PICTURE = data_uri(np.full((8, 8, 3), 255, np.uint8))
NINES = {"if_score": 9.0, "vq_score": 9.0, "cp_score": 9.0}
QUICK = {"backoff_seconds": 0.01, "timeout_seconds": 10.0}


def ask(server: ChatServer, turns: tuple[int, ...] = (1,), **settings: object) -> list[Verdict | Exception]:
    """Asks about one image pair, all turns at once; returns what came of each."""
    messages = make_messages("image", "Make it red.", [PICTURE], [PICTURE])
    endpoint = EndpointSettings(server.url, **QUICK | settings)  # type: ignore[arg-type]

    async def run() -> list[Verdict | Exception]:
        async with JudgeClient(endpoint, JudgeSettings(model="judge", temperature=0.5)) as client:
            asked = [client.ask(messages, answer_form("image"), turn) for turn in turns]
            return await asyncio.gather(*asked, return_exceptions=True)  # type: ignore[return-value]

    return asyncio.run(run())


def first(*replies: Reply) -> Callable[[Asked, int], Reply]:
    """Gives these replies, and good ones after them."""
    return lambda asked, count: replies[count] if count < len(replies) else good(asked)


def test_a_request_is_what_the_schema_and_the_judge_want():
    with serve() as server:
        (verdict,) = ask(server, api_key="sk-secret")
    (asked,) = server.asked
    assert isinstance(verdict, Verdict) and verdict.scores == NINES
    assert (asked.authorization, asked.instruction, asked.turn) == ("Bearer sk-secret", "Make it red.", 1)
    assert [picture.size for picture in asked.pictures] == [(8, 8), (8, 8)]
    body = asked.body
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("judge", 0.5, 400)
    assert body["response_format"]["json_schema"]["strict"] is True
    assert "motion_consistency" not in body["response_format"]["json_schema"]["schema"]["properties"]


def test_without_a_key_none_is_sent():
    with serve() as server:
        ask(server)
    assert server.asked[0].authorization is None


TOO_HIGH = answer({"instruction_following": 11, "visual_quality": 9, "content_preservation": 9})
PASSING = {
    "malformed JSON": answer("9 out of 10"),
    "a score out of range": TOO_HIGH,
    "a score missing": answer({"instruction_following": 9}),
    "no chat completion": Reply(b"<html>"),
    "an endless response": Reply(b" " * (1 << 21)),
    "internal error": refuse(500),
    "unavailable": refuse(503),
    "too many requests": refuse(429),
    "request time-out": refuse(408),
    "closed connection": CLOSE,
}


@pytest.mark.parametrize("reply", PASSING.values(), ids=PASSING)
def test_what_may_go_better_is_asked_again_with_another_seed(reply):
    with serve(first(reply, reply)) as server:
        (verdict,) = ask(server)
    assert isinstance(verdict, Verdict) and verdict.scores == NINES
    assert [(asked.turn, asked.attempt) for asked in server.asked] == [(1, 0), (1, 1), (1, 2)]


FINAL = {
    "malformed JSON": (answer("9 out of 10"), 3, "is not JSON", True),
    "a score out of range": (TOO_HIGH, 3, "instruction_following is '11'", True),
    "an endless response": (Reply(b" " * (1 << 21)), 3, "longer than any answer can be", True),
    "internal error": (refuse(500, "out of memory"), 3, "status 500: out of memory", False),
    "closed connection": (CLOSE, 3, "the connection failed: RemoteProtocolError", False),
    "a request that is wrong": (refuse(400, "At most 1 image(s) may be provided"), 1, "At most 1 image", True),
    "too large": (refuse(413, "too large"), 1, "status 413: too large", True),
}


@pytest.mark.parametrize(("reply", "requests", "reason", "is_final"), FINAL.values(), ids=FINAL)
def test_after_the_last_attempt_the_reason_is_told(reply, requests, reason, is_final):
    with serve(lambda asked, count: reply) as server:
        (failure,) = ask(server, attempts=3)
    assert isinstance(failure, Unanswered)
    assert reason in failure.reason and failure.is_final is is_final
    assert len(server.asked) == requests


@pytest.mark.parametrize("reply", [HANG, DRIP], ids=["no word", "a word at a time"])
def test_a_request_that_hangs_is_given_up_in_time(reply):
    started = time.monotonic()
    with serve(first(reply, reply)) as server:
        (verdict,) = ask(server, timeout_seconds=0.3, attempts=30)
        assert isinstance(verdict, Verdict)
        assert 0.6 <= time.monotonic() - started < 20.0 and len(server.asked) >= 3
        server.behave = lambda asked, count: reply
        (failure,) = ask(server, timeout_seconds=0.05, attempts=2)
    assert isinstance(failure, Unanswered) and failure.reason == "no answer within 0.05 s" and not failure.is_final


def test_retry_after_holds_for_every_request():
    times: list[float] = []

    def behave(asked: Asked, count: int) -> Reply:
        times.append(time.monotonic())
        return refuse(429, "slow down", Retry_After="1") if count == 0 else good(asked)

    async def run(server: ChatServer) -> None:
        messages = make_messages("image", "Make it red.", [PICTURE], [PICTURE])
        async with JudgeClient(EndpointSettings(server.url, attempts=1), JudgeSettings()) as client:
            with pytest.raises(Unanswered, match="status 429: slow down"):
                await client.ask(messages, answer_form("image"), 1)
            await client.ask(messages, answer_form("image"), 2)

    with serve(behave) as server:
        asyncio.run(run(server))
    assert len(times) == 2 and times[1] - times[0] >= 1.0


def test_without_a_wish_the_wait_doubles():
    times: list[float] = []

    def behave(asked: Asked, count: int) -> Reply:
        times.append(time.monotonic())
        return refuse(503) if count < 3 else good(asked)

    with serve(behave) as server:
        ask(server, backoff_seconds=0.1)
        server.asked.clear()
        (verdict,) = ask(server, backoff_seconds=100.0, max_backoff_seconds=0.01)
    assert isinstance(verdict, Verdict) and times[-1] - times[4] < 20
    gaps = [later - earlier for earlier, later in itertools.pairwise(times[:4])]
    assert all(gap >= least for gap, least in zip(gaps, (0.05, 0.1, 0.2), strict=True))


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, None),
        ("7", 7.0),
        (" 0 ", 0.0),
        ("-3", 0.0),
        ("Fri, 02 Jan 2026 00:00:30 GMT", 30.0),
        ("Thu, 01 Jan 2026 00:00:00 GMT", 0.0),
        ("soon", None),
        ("1.5", None),
    ],
)
def test_retry_after_is_read(header, seconds):
    assert wait_seconds(header, datetime(2026, 1, 2, tzinfo=UTC)) == seconds


STOPS = {
    "a wrong key": refuse(401, "bad key"),
    "no rights": refuse(403),
    "no such model": refuse(404, "The model `x` does not exist."),
    "a redirect": refuse(307, Location="http://127.0.0.1:9/elsewhere"),
    "a wait of a day": refuse(429, "quota", Retry_After="86400"),
}


@pytest.mark.parametrize("reply", STOPS.values(), ids=STOPS)
def test_what_no_row_can_survive_stops_the_run(reply):
    with serve(lambda asked, count: reply) as server:
        (failure,) = ask(server)
    assert isinstance(failure, EndpointError)
    assert server.url in str(failure) and f"status {reply.status}" in str(failure)
    assert len(server.asked) == 1


def test_the_strictest_format_that_is_taken_is_used_and_said_once(caplog):
    def behave(asked: Asked, count: int) -> Reply:
        if asked.format == "json_schema":
            return refuse(400, "response_format json_schema is not supported")
        return refuse(500, "Grammar error") if asked.format == "json_object" else good(asked)

    with caplog.at_level(logging.WARNING, "sama_data"), serve(behave) as server:
        verdicts = ask(server, turns=(1, 2, 3), attempts=1)
    assert all(isinstance(verdict, Verdict) for verdict in verdicts)
    assert len([record for record in caplog.records if "asking with" in record.getMessage()]) == 2
    assert [asked.format for asked in server.asked].count("text") == 3


def test_a_format_that_was_chosen_is_kept():
    with serve(lambda asked, count: refuse(400, "response_format is not supported")) as server:
        (failure,) = ask(server, response_format="json_object")
    assert isinstance(failure, Unanswered) and failure.is_final
    assert [asked.format for asked in server.asked] == ["json_object"]
    with serve() as server:
        ask(server, response_format="text")
    assert "response_format" not in server.asked[0].body


def test_the_key_is_in_no_message(caplog):
    key = "sk-very-secret"
    endpoint = EndpointSettings("http://host/v1", api_key=key)
    assert key not in repr(endpoint)
    said = f"Incorrect API key provided: {key}"
    replies = [refuse(401, said), refuse(400, said), refuse(500, said), answer(said), Reply(said.encode())]
    with caplog.at_level(logging.DEBUG):
        for reply in [*replies, refuse(400, f"response_format: {said}")]:
            with serve(lambda asked, count, reply=reply: reply) as server:
                (failure,) = ask(server, api_key=key, attempts=1)
            assert isinstance(failure, Exception) and "***" in str(failure)
            assert key not in str(failure) + repr(failure.__context__)
    assert key not in caplog.text


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"url": "host:8000/v1"}, "must be a URL like"),
        ({"url": "ftp://host/v1"}, "must be a URL like"),
        ({"url": "https://user:pw@host/v1"}, "must hold no user"),
        ({"url": "https://host/v1?key=sk-1"}, "must hold no user, key"),
        ({"api_key": ""}, "is empty or holds"),
        ({"api_key": "sk-1\nX: y"}, "line break"),
        ({"api_key": "schlüssel"}, "outside ASCII"),
        ({"concurrency": 0}, "at least 1"),
        ({"timeout_seconds": 0}, "greater than 0"),
        ({"timeout_seconds": float("nan")}, "greater than 0"),
    ],
)
def test_endpoints_that_cannot_be(settings, message):
    with pytest.raises(DataError, match=message) as caught:
        EndpointSettings(**{"url": "http://host/v1"} | settings)
    assert not any(secret in str(caught.value) for secret in ("pw", "sk-1", "schl"))


def test_the_whole_address_may_be_given():
    assert EndpointSettings("http://h/v1/").chat_url == "http://h/v1/chat/completions"
    assert EndpointSettings("http://h/v1/chat/completions").chat_url == "http://h/v1/chat/completions"
