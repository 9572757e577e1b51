"""Bad input gets a 400 that names the field, and the server keeps running."""

import base64
from typing import Any

import pytest
import requests
from conftest import Server, file_of
from PIL import Image

import local_server

HOSTILE = "'; DROP TABLE x; -- ${jndi:ldap://x} {{7*7}} \u202e\x00"
HUGE = 10**30
# Values that no field of a type takes, in the words of JSON Schema.
WRONG: dict[str, list[Any]] = {
    "integer": ["2", 1.5, True, [], {}, HOSTILE, HUGE, -HUGE],
    "number": ["7", True, [], {}, HOSTILE, HUGE, -HUGE],
    "string": [5, True, [], {}, [5], ["AAAA"] * 100],
    "boolean": ["true", 1, 0, [], {}, HOSTILE],
    "array": [5, True, {}, HOSTILE, [5], [{}] * 100, ["no-such-name"]],
}
BAD_FILES = [
    *("", HOSTILE, "AAAA", "data:image/png;base64,AAAA", base64.b64encode(b"no image").decode()),
    "A" * 13_350_000,
    file_of(Image.new("1", (20_000, 20_000))),
    file_of(Image.new("1", (5_000, 5_000))),
    file_of(Image.effect_noise((64, 64), 50), keep=500),
    file_of(Image.new("RGB", (8, 8)), "GIF"),
]


def refused(field: dict[str, Any]) -> list[Any]:
    """Return values of all kinds that the schema of a field does not allow."""
    field = {**next(each for each in field.get("anyOf", [field]) if each["type"] != "null"), **field}
    beyond = {"minimum": -1, "maximum": 1, "exclusiveMinimum": 0}
    values = [*WRONG[field["type"]], *(field[bound] + step for bound, step in beyond.items() if bound in field)]
    values += [field["minimum"] + 1] if field.get("multipleOf", 1) > 1 else []
    return values + (["x" * 100_000] if {"maxLength", "enum"} & set(field) else [])


def check(server: Server, body: dict[str, Any], name: str) -> None:
    response = server.predict(body)
    said = (name, repr(body.get(name))[:100], response.text[:1000])
    assert response.status_code == 400, said
    assert f"`{name}`" in response.json()["error"] or f"`{name}." in response.json()["error"], said


def test_every_field_refuses_what_the_schema_does_not_allow(server: Server, small: dict[str, Any]) -> None:
    fields = server.get("/v1/models/model/schema").json()["input_schema"]["properties"]
    assert {"prompt", "seed", "width", "output_format"} <= set(fields)
    for name, field in fields.items():
        for value in refused(field):
            check(server, {**small, name: value}, name)
    for name, value in (("prompt", None), ("prompt", ""), ("output_format", "PNG"), ("steps", 3), (HOSTILE, 1)):
        check(server, {**small, name: value}, name)
    check(server, {}, "prompt")
    check(server, {**small, "stream": True, "width": 65}, "width")
    assert server.predict({**small, "prompt": HOSTILE}).status_code == 200  # it is only text


@pytest.mark.parametrize("name", ["image", "mask"])
def test_a_file_that_is_no_image_is_refused(server: Server, small: dict[str, Any], name: str) -> None:
    for file in BAD_FILES:
        check(server, {**small, name: file}, name)


@pytest.mark.parametrize("field", ["guidance_scale", "seed", "width"])
def test_not_a_number_is_refused(server: Server, field: str) -> None:
    for literal in ("NaN", "Infinity", "-Infinity", "1e999"):
        response = post(server, f'{{"prompt": "x", "{field}": {literal}}}'.encode())
        assert (response.status_code, field in response.json()["error"]) == (400, True)


def test_a_body_that_is_no_request_is_refused(server: Server) -> None:
    for body in (b"", b"null", b"[]", b'"x"', b'{"prompt": "x"', b"\xff\xfe", b'{"prompt": "\\ud800"}'):
        response = post(server, body)
        assert response.status_code == 400, response.text
        assert response.json()["error"].startswith("Input Parsing Error")


def test_more_than_a_request_can_need_is_not_even_parsed(server: Server, small: dict[str, Any]) -> None:
    for more in ({"image": "A" * 20_000_000}, {f"field {i}": i for i in range(100_000)}):
        response = server.predict({**small, **more})
        assert response.status_code == 413
        assert "more than" in response.json()["error"]


def post(server: Server, body: bytes) -> requests.Response:
    return requests.post(server.url + local_server.PREDICT, data=body, timeout=60)
