"""With stream the same answer comes as server-sent events, and other requests do not wait for it."""

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
import requests
from conftest import Server

import local_server


def stream(server: Server, body: dict[str, Any]) -> requests.Response:
    return requests.post(server.url + local_server.PREDICT, json={**body, "stream": True}, stream=True, timeout=600)


def events(response: requests.Response) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the events as they arrive."""
    assert response.status_code == 200, response.text
    assert response.headers["Content-Type"] == "text/event-stream; charset=utf-8"
    name = ""
    # Split at \n only: a prompt in a warning may contain Unicode line separators.
    for line in response.iter_lines(chunk_size=None, delimiter=b"\n"):
        field, _, value = line.partition(b": ")
        if field == b"event":
            name = value.decode()
        elif field == b"data":
            yield name, json.loads(value)


def told(server: Server, body: dict[str, Any]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return the steps and the answer."""
    (first, nothing), *steps, (last, answer) = events(stream(server, body))
    assert (first, nothing, last) == ("queued", {}, "result")
    assert {name for name, _ in steps} == {"step"}
    return [data for _, data in steps], answer


def without_timings(answer: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in answer.items() if name != "timings"}


def test_each_step_is_told_and_the_answer_is_the_plain_one(server: Server, small: dict[str, Any]) -> None:
    body = {**small, "num_images": 2, "num_inference_steps": 4}
    steps, answer = told(server, body)
    count = steps[0]["of"]
    assert count >= 4
    assert [(each["image"], each["step"], each["of"]) for each in steps] == [
        (image, step, count) for image in (1, 2) for step in range(1, count + 1)
    ]
    assert [each["seconds"] for each in steps] == sorted(each["seconds"] for each in steps)
    assert without_timings(answer) == without_timings(server.predict(body).json())
    timings = answer["timings"]
    assert timings["text"] + timings["steps"] + timings["decode"] <= timings["generate"]


def test_odd_characters_do_not_break_an_event(server: Server, small: dict[str, Any], pipeline: dict[str, Any]) -> None:
    odd = "\r\n\n\x0b\x1c\x85\u2028\u2029 boat "
    body = {**small, "prompt": odd * (pipeline["limits"]["prompt_characters"] // len(odd))}
    assert without_timings(told(server, body)[1]) == without_timings(server.predict(body).json())


@pytest.mark.parametrize("value", ["true", 1, 0, [], {}, "yes"])
def test_what_is_no_yes_or_no_is_refused(server: Server, small: dict[str, Any], value: Any) -> None:
    response = server.predict({**small, "stream": value})
    assert response.status_code == 400
    assert "`stream`" in response.json()["error"]


def test_a_bad_field_is_a_plain_400(server: Server, small: dict[str, Any]) -> None:
    for field, value in (("width", 65), ("image", "AAAA"), ("unknown", 1)):
        response = server.predict({**small, "stream": True, field: value})
        assert response.status_code == 400, response.text
        assert f"`{field}`" in response.json()["error"]


def test_health_and_other_requests_are_answered_meanwhile_and_who_leaves_holds_nobody_up(
    server: Server, small: dict[str, Any], pipeline: dict[str, Any]
) -> None:
    # Large, since some models take few steps, and the request must last until its client has disconnected.
    most = pipeline["limits"]["max_steps"]
    body = {**small, "num_inference_steps": most, "num_images": 4, "width": 256, "height": 256}
    with stream(server, body) as response:
        found = events(response)
        assert next(found) == ("queued", {})
        assert next(found)[0] == "step"
        assert server.get("/v1/models/model").status_code == 200
        # A request that waits behind it gets its queued event at once.
        with stream(server, small) as behind:
            in_behind = events(behind)
            assert next(in_behind) == ("queued", {})
            response.close()
            assert [name for name, _ in in_behind][-1] == "result"
    for _ in range(1200):
        if "Answered 499: The client disconnected." in server.log.read_text():
            break
        time.sleep(0.05)
    log = server.log.read_text()
    assert "Answered 499: The client disconnected." in log
    assert "Traceback" not in log


def test_the_schema_tells_that_there_are_streams(server: Server) -> None:
    schema = server.get("/v1/models/model/schema").json()
    assert schema["supports_streaming"] is True
    assert schema["input_schema"]["properties"]["stream"]["default"] is False
