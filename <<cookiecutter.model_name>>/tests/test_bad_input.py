"""Bad input gets a 400 that names the field, and the server keeps running."""

import base64
import io
from typing import Any

import pytest
import requests
from conftest import Server
from PIL import Image

import local_server


def file_of(image: Image.Image, file_format: str, keep: int | None = None) -> str:
    buffer = io.BytesIO()
    image.save(buffer, file_format)
    return base64.b64encode(buffer.getvalue()[:keep]).decode()


HOSTILE = "'; DROP TABLE x; -- ${jndi:ldap://x} {{7*7}} \u202e\x00"
HUGE = 10**30

BAD_FIELDS = [
    ("prompt", None),
    ("prompt", ""),
    ("prompt", 5),
    ("prompt", ["a"]),
    ("prompt", "x" * 100_000),
    ("negative_prompt", 5),
    ("negative_prompt", "x" * 100_000),
    *[(name, value) for name in ("num_inference_steps", "num_images", "quality") for value in (0, -1, HUGE)],
    *[
        (name, value)
        for name in ("num_inference_steps", "width", "height", "seed", "num_images", "quality")
        for value in ("2", 1.5, True, [], {}, HOSTILE)
    ],
    *[(name, value) for name in ("width", "height") for value in (0, 8, 65, -64, 100_000, HUGE)],
    ("seed", -1),
    ("seed", 2**32),
    ("seed", HUGE),
    ("guidance_scale", -0.1),
    ("guidance_scale", 1e9),
    *[("guidance_scale", value) for value in ("7", True, [], {}, HUGE)],
    ("guidance_scale", HOSTILE),
    ("output_format", "gif"),
    ("output_format", "PNG"),
    ("output_format", 1),
    ("output_format", HOSTILE),
    ("output_format", "x" * 100_000),
    ("image", 5),
    ("image", ""),
    ("image", HOSTILE),
    ("image", "data:image/png;base64,AAAA"),
    ("image", "data:text/html;base64,AAAA"),
    ("image", base64.b64encode(b"no image").decode()),
    ("image", "A" * 13_350_000),
    ("image", file_of(Image.new("1", (20_000, 20_000)), "PNG")),
    ("image", file_of(Image.new("1", (5_000, 5_000)), "PNG")),
    ("image", file_of(Image.effect_noise((64, 64), 50), "PNG", keep=500)),
    ("image", file_of(Image.new("RGB", (8, 8)), "GIF")),
    *[("image", value) for value in ([], [5], ["AAAA"] * 100, {}, True)],
    *[("mask", value) for value in (5, "", [], {}, True, HOSTILE, "AAAA", "A" * 13_350_000)],
    *[(name, value) for name in ("mask_blur", "mask_padding") for value in (-1, 1.5, "4", True, [], {}, HUGE, HOSTILE)],
    *[("strength", value) for value in (0, -1, 1.5, 1e9, "1", True, [], HOSTILE)],
    ("steps", 3),
    (HOSTILE, 1),
]


@pytest.mark.parametrize(("field", "value"), BAD_FIELDS, ids=lambda value: repr(value)[:20])
def test_a_bad_field_is_named(server: Server, small: dict[str, Any], field: str, value: Any) -> None:
    response = server.predict({**small, field: value})
    assert response.status_code == 400, response.text
    assert f"`{field}`" in response.json()["error"]


@pytest.mark.parametrize("field", ["guidance_scale", "seed", "width"])
@pytest.mark.parametrize("literal", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_not_a_number_is_refused(server: Server, field: str, literal: str) -> None:
    response = post(server, f'{{"prompt": "x", "{field}": {literal}}}'.encode())
    assert response.status_code == 400
    assert field in response.json()["error"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b'"x"',
        b"{",
        b'{"prompt": "x"',
        b"\xff\xfe",
        b'{"prompt": "\xff"}',
        b'{"prompt": "\\ud800"}',
    ],
)
def test_a_body_that_is_no_request_is_refused(server: Server, body: bytes) -> None:
    response = post(server, body)
    assert response.status_code == 400, response.text
    assert response.json()["error"].startswith("Input Parsing Error")


def test_a_missing_prompt_is_named(server: Server) -> None:
    response = server.predict({})
    assert response.status_code == 400
    assert "`prompt`" in response.json()["error"]


def test_more_than_a_request_can_need_is_not_even_parsed(server: Server, small: dict[str, Any]) -> None:
    for more in ({"image": "A" * 20_000_000}, {f"field {i}": i for i in range(100_000)}):
        response = server.predict({**small, **more})
        assert response.status_code == 413
        assert "more than" in response.json()["error"]


def test_ten_errors_are_named_at_most(server: Server, small: dict[str, Any]) -> None:
    response = server.predict({**small, **{f"field {i}": i for i in range(1000)}})
    assert response.status_code == 400
    assert response.json()["error"].count("`field ") == 10


def test_a_hostile_prompt_is_only_text(server: Server, small: dict[str, Any]) -> None:
    assert server.predict({**small, "prompt": HOSTILE}).status_code == 200


def test_all_bad_fields_are_named_at_once(server: Server) -> None:
    error = server.predict({"prompt": "x", "width": 1, "seed": -1, "quality": 0}).json()["error"]
    assert all(f"`{field}`" in error for field in ("width", "seed", "quality"))


def post(server: Server, body: bytes) -> requests.Response:
    return requests.post(server.url + local_server.PREDICT, data=body, timeout=60)
