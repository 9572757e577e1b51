"""The real Truss server answers as documented."""

import base64
import io
import json
from collections.abc import Iterator
from typing import Any

import pytest
import requests
from conftest import Server, file_of
from PIL import Image


def images_of(answer: dict[str, Any]) -> list[Image.Image]:
    return [Image.open(io.BytesIO(base64.b64decode(entry["image"], validate=True))) for entry in answer["images"]]


def generate(server: Server, body: dict[str, Any]) -> dict[str, Any]:
    response = server.predict(body)
    assert response.status_code == 200, response.text
    return response.json()


def test_the_cold_start_is_told(server: Server, small: dict[str, Any], pipeline: dict[str, Any]) -> None:
    phases = server.first_answer["timings"]["cold_start"]
    cuda = ["cuda_init"] if "cuda_init" in phases else []
    warm_up = ["warm_up"] if pipeline["warm_up"] else []
    imports, weights = ["import_torch", "import_diffusers"], ["wait_for_weights", "read_weights"]
    assert list(phases) == ["server_start", *imports, *cuda, *weights, *warm_up, "first_image"]
    assert all(seconds >= 0 for seconds in phases.values())
    assert generate(server, small)["timings"]["cold_start"] is None
    metrics = server.get("/metrics/").text
    assert all(f'cold_start_phase_seconds{{phase="{name}"}}' in metrics for name in phases)
    lines = [line for line in server.log.read_text().splitlines() if "cold_start" in line]
    assert "first_image" not in lines[0]
    assert "first_image" in lines[-1]
    assert server.get("/v1/models/model").status_code == server.get("/v1/models/model/loaded").status_code == 200


def test_schema_holds_the_bounds(server: Server, pipeline: dict[str, Any]) -> None:
    schema = server.get("/v1/models/model/schema").json()
    fields = schema["input_schema"]["properties"]
    limits, defaults = pipeline["limits"], pipeline["defaults"]
    references = pipeline["reference_images"] or {"required": False}
    assert schema["input_schema"]["required"] == ["prompt", *["image"] * references["required"]]
    assert schema["input_schema"]["additionalProperties"] is False
    assert fields["num_inference_steps"]["maximum"] == limits["max_steps"]
    assert fields["width"]["maximum"] == fields["height"]["maximum"] == limits["max_size"]
    assert all(fields[name]["default"] == defaults[name] for name in ("num_inference_steps", "width", "height"))
    # The schema leaves out fields that the model cannot use.
    image = bool(pipeline["image_to_image"] or pipeline["reference_images"])
    usable = {"image": image, "mask": pipeline["inpaint"] is not None, "negative_prompt": pipeline["negative_prompt"]}
    usable["loras"] = any(not lora["fused"] for lora in pipeline["loras"])
    assert {name: name in fields for name in usable} == usable
    assert set(schema["output_schema"]["properties"]) == {"images", "content_type", "warnings", "timings"}
    assert schema["supports_streaming"] is True


@pytest.mark.parametrize("output_format", ["png", "jpeg", "webp"])
def test_image_has_the_asked_size_and_format(server: Server, small: dict[str, Any], output_format: str) -> None:
    answer = generate(server, {**small, "width": 128, "output_format": output_format})
    (image,) = images_of(answer)
    assert answer["content_type"] == f"image/{output_format}"
    assert (image.format, image.size) == (output_format.upper(), (128, 64))
    assert image.convert("L").getextrema()[0] < image.convert("L").getextrema()[1], "the image is constant"
    low = generate(server, {**small, "width": 128, "output_format": output_format, "quality": 5})
    assert (len(low["images"][0]["image"]) < len(answer["images"][0]["image"])) is (output_format != "png")
    assert bool(low["warnings"]) is (output_format == "png")


def test_the_same_seed_makes_the_same_image(server: Server, small: dict[str, Any]) -> None:
    several = generate(server, {**small, "seed": 2**32 - 1, "num_images": 3})["images"]
    assert [entry["seed"] for entry in several] == [2**32 - 1, 0, 1]
    assert len({entry["image"] for entry in several}) == 3
    assert several == [generate(server, {**small, "seed": entry["seed"]})["images"][0] for entry in several]
    body = {name: value for name, value in small.items() if name != "seed"}
    first, second = (generate(server, body)["images"][0] for _ in range(2))
    assert first["seed"] != second["seed"]
    assert generate(server, {**body, "seed": first["seed"]})["images"][0] == first


def test_negative_prompt_counts_or_is_refused(server: Server, small: dict[str, Any], pipeline: dict[str, Any]) -> None:
    guided = {**small, "guidance_scale": min(7.5, pipeline["limits"]["guidance_scale"])}
    body = {**guided, "negative_prompt": "blurry, dark"}
    if not pipeline["negative_prompt"]:
        assert "negative_prompt cannot be used" in server.predict(body).json()["error"]
        return
    assert generate(server, body)["images"] != generate(server, guided)["images"]
    assert "guidance_scale" in server.predict({**body, "guidance_scale": 1.0}).json()["error"]


def test_an_image_is_a_start_or_is_refused(server: Server, small: dict[str, Any], pipeline: dict[str, Any]) -> None:
    first = generate(server, {**small, "seed": 5})["images"][0]["image"]
    body = {**small, "image": first, "strength": 0.5, "width": 128, "num_inference_steps": 4}
    if not pipeline["image_to_image"]:
        sentence = "strength has no effect" if pipeline["reference_images"] else "image cannot be used"
        assert sentence in server.predict(body).json()["error"]
        return
    answer = generate(server, body)
    assert images_of(answer)[0].size == (128, 64)
    assert generate(server, body)["images"] == answer["images"]
    assert generate(server, {**body, "strength": 1.0})["images"] != answer["images"]
    assert generate(server, {**body, "seed": 6})["images"] != answer["images"]
    assert "strength 0.005 is too little" in server.predict({**body, "strength": 0.005}).json()["error"]
    # Defaults of steps and strength work together.
    generate(server, {"prompt": "a red house", "width": 64, "height": 64, "image": f"data:image/png;base64,{first}"})
    # Both pipelines share one scheduler, which must not leak state.
    assert generate(server, {**small, "seed": 5})["images"][0]["image"] == first


def test_loras_are_chosen_by_name_or_refused(server: Server, small: dict[str, Any], pipeline: dict[str, Any]) -> None:
    plain = generate(server, small)["images"]
    assert "`loras`" in server.predict({**small, "loras": [{"name": "no-such-style"}]}).json()["error"]
    for name in (lora["name"] for lora in pipeline["loras"] if not lora["fused"]):
        chosen = [generate(server, {**small, "loras": [{"name": name, "scale": s}]})["images"] for s in (1.0, -1.0)]
        assert plain != chosen[0] != chosen[1]
        # A request's LoRAs do not affect the next.
        assert generate(server, small)["images"] == plain


def test_references_have_an_effect(server: Server, small: dict[str, Any], pipeline: dict[str, Any]) -> None:
    first, other = (generate(server, {**small, "seed": seed})["images"][0]["image"] for seed in (5, 6))
    if not (references := pipeline["reference_images"]):
        assert "`image`" in server.predict({**small, "image": [first, other]}).json()["error"]
        return
    asked = [{}, {"image": first}, {"image": other}] + [{"image": [first, other]}] * (references["count"] > 1)
    made = [generate(server, {**small, **more})["images"][0]["image"] for more in asked]
    assert len(set(made)) == len(made)


def test_a_mask_keeps_the_rest_or_is_refused(server: Server, small: dict[str, Any], pipeline: dict[str, Any]) -> None:
    start = Image.effect_noise((64, 64), 100).convert("RGB")
    mask = Image.new("L", (64, 64))
    mask.paste(255, (0, 0, 64, 16))
    body = {**small, "image": file_of(start), "mask": file_of(mask), "mask_blur": 0}
    if not pipeline["inpaint"]:
        assert server.predict(body).status_code == 400
        return
    answer = generate(server, body)
    kept, painted = (0, 16, 64, 64), (0, 0, 64, 16)
    (found,) = images_of(answer)
    assert found.crop(kept).tobytes() == start.crop(kept).tobytes()
    assert found.crop(painted).tobytes() != start.crop(painted).tobytes()
    assert generate(server, {**body, "strength": 1.0})["images"] == answer["images"]
    generate(server, {**body, "strength": 0.5, "mask_padding": 8, "num_inference_steps": 4})
    black = file_of(Image.new("L", (8, 8)))
    assert "nothing would change" in server.predict({**body, "mask": black}).json()["error"]


def test_what_the_model_does_not_read_is_told(server: Server, small: dict[str, Any], pipeline: dict[str, Any]) -> None:
    assert generate(server, small)["warnings"] == []
    words = "boat " * (pipeline["limits"]["prompt_characters"] // 5)
    warnings = generate(server, {**small, "prompt": words})["warnings"]
    assert warnings or pipeline["prompt_tokens"]["count"] >= len(words.split())
    assert all(each.startswith("prompt: the model reads") and each.endswith(words[-20:]) for each in warnings)


def events(response: requests.Response) -> Iterator[tuple[str, Any]]:
    """Yield the events of a stream: base64 of an image, JSON of others."""
    assert response.status_code == 200, response.text
    assert response.headers["Content-Type"] == "text/event-stream; charset=utf-8"
    blocks = response.content.decode().split("\n\n")
    for name, *lines in (block.split("\n") for block in blocks if block.startswith("event: ")):
        data = [line.removeprefix("data: ") for line in lines]
        yield name[7:], "".join(data) if name == "event: image" else json.loads(*data)


def test_a_stream_tells_each_step(server: Server, small: dict[str, Any], pipeline: dict[str, Any]) -> None:
    odd = "\r\n\n\x0b\x1c\x85\u2028\u2029 boat "
    prompt = odd * (pipeline["limits"]["prompt_characters"] // len(odd))
    body = {**small, "prompt": prompt, "num_images": 2, "num_inference_steps": 4}
    (first, nothing), *steps, one, two, (last, answer) = events(server.predict({**body, "stream": True}))
    assert (first, nothing, one[0], two[0], last) == ("queued", {}, "image", "image", "result")
    assert {name for name, _ in steps} == {"step"}
    for each, (_, image) in zip(answer["images"], (one, two), strict=True):
        each["image"] = image
    assert (count := steps[0][1]["of"]) >= 4
    assert [(each["image"], each["step"], each["of"]) for _, each in steps] == [
        (image, step, count) for image in (1, 2) for step in range(1, count + 1)
    ]
    timings = answer.pop("timings")
    assert timings["text"] + timings["steps"] + timings["decode"] <= timings["generate"]
    plain = server.predict(body).json()
    assert answer == {name: value for name, value in plain.items() if name != "timings"}
