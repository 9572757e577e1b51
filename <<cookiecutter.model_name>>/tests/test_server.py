"""The real Truss server answers as documented."""

import base64
import io
import json
import re
from typing import Any

import pytest
from conftest import Server
from PIL import Image

FORMATS = {"png": "PNG", "jpeg": "JPEG", "webp": "WEBP"}


def images_of(answer: dict[str, Any]) -> list[Image.Image]:
    return [Image.open(io.BytesIO(base64.b64decode(entry["image"], validate=True))) for entry in answer["images"]]


def generate(server: Server, body: dict[str, Any]) -> dict[str, Any]:
    response = server.predict(body)
    assert response.status_code == 200, response.text
    return response.json()


def test_the_first_answer_the_log_and_the_metrics_tell_the_cold_start(
    server: Server, small: dict[str, Any], pipeline: dict[str, Any]
) -> None:
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


def test_ready(server: Server) -> None:
    assert server.get("/v1/models/model").status_code == 200
    assert server.get("/v1/models/model/loaded").status_code == 200


def test_schema_holds_the_bounds_of_the_config(server: Server, pipeline: dict[str, Any]) -> None:
    schema = server.get("/v1/models/model/schema").json()
    fields = schema["input_schema"]["properties"]
    limits, defaults = pipeline["limits"], pipeline["defaults"]
    assert schema["input_schema"]["required"] == ["prompt"]
    assert schema["input_schema"]["additionalProperties"] is False
    assert fields["num_inference_steps"]["maximum"] == limits["max_steps"]
    assert fields["width"]["maximum"] == fields["height"]["maximum"] == limits["max_size"]
    shown = {name: value for name, value in defaults.items() if name in fields and name != "strength"}
    assert {name: fields[name]["default"] for name in shown} == shown
    assert set(defaults) - set(shown) <= {"strength", "guidance_scale"}
    # The schema leaves out fields that the model cannot use.
    assert ("negative_prompt" in fields) == pipeline["negative_prompt"]
    assert ("image" in fields) == bool(pipeline["image_to_image"] or pipeline["reference_images"])
    assert {name in fields for name in ("mask", "mask_blur", "mask_padding")} == {pipeline["inpaint"] is not None}
    assert ("loras" in fields) == any(not lora["fused"] for lora in pipeline["loras"])
    if "strength" in fields:
        assert str(defaults["strength"]) in fields["strength"]["description"]
    assert set(schema["output_schema"]["properties"]) == {"images", "content_type", "warnings", "timings"}


@pytest.mark.parametrize("output_format", FORMATS)
def test_image_has_the_size_and_format_that_were_asked(
    server: Server, small: dict[str, Any], output_format: str
) -> None:
    answer = generate(server, {**small, "width": 128, "output_format": output_format})
    (image,) = images_of(answer)
    assert answer["content_type"] == f"image/{output_format}"
    assert image.format == FORMATS[output_format]
    assert image.size == (128, 64)
    assert image.convert("L").getextrema()[0] < image.convert("L").getextrema()[1], "the image is constant"


def test_quality_changes_the_size_of_a_jpeg(server: Server, small: dict[str, Any]) -> None:
    low, high = (
        generate(server, {**small, "output_format": "jpeg", "quality": quality})["images"][0]["image"]
        for quality in (5, 95)
    )
    assert len(low) < len(high)


@pytest.mark.parametrize("seed", [0, 2**32 - 1])
def test_the_same_seed_makes_the_same_image(server: Server, small: dict[str, Any], seed: int) -> None:
    body = {**small, "seed": seed}
    first, again = generate(server, body)["images"], generate(server, body)["images"]
    other = generate(server, {**body, "seed": 77})["images"]
    assert first == again
    assert first[0]["seed"] == seed
    assert first[0]["image"] != other[0]["image"]


def test_without_a_seed_images_differ_and_tell_theirs(server: Server, small: dict[str, Any]) -> None:
    body = {name: value for name, value in small.items() if name != "seed"}
    first, second = generate(server, body)["images"][0], generate(server, body)["images"][0]
    assert first["seed"] != second["seed"]
    assert generate(server, {**body, "seed": first["seed"]})["images"][0] == first


def test_each_of_several_images_can_be_made_again_alone(server: Server, small: dict[str, Any]) -> None:
    several = generate(server, {**small, "seed": 2**32 - 1, "num_images": 3})["images"]
    assert [entry["seed"] for entry in several] == [2**32 - 1, 0, 1]
    alone = [generate(server, {**small, "seed": entry["seed"]})["images"][0] for entry in several]
    assert several == alone
    assert len({entry["image"] for entry in several}) == 3


def test_the_example_of_the_config_is_a_valid_request(
    server: Server, config: dict[str, Any], pipeline: dict[str, Any]
) -> None:
    small_enough = {"width": 64, "height": 64, "num_inference_steps": pipeline["limits"]["min_steps"]}
    generate(server, {**config["model_metadata"]["example_model_input"], **small_enough})


def test_negative_prompt_has_an_effect_or_is_refused(
    server: Server, small: dict[str, Any], pipeline: dict[str, Any]
) -> None:
    body = {
        **small,
        "negative_prompt": "blurry, dark",
        "guidance_scale": min(7.5, pipeline["limits"]["guidance_scale"]),
    }
    response = server.predict(body)
    if not pipeline["negative_prompt"]:
        assert response.status_code == 400
        assert "negative_prompt cannot be used" in response.json()["error"]
        return
    assert response.json()["images"] != generate(server, {**small, "guidance_scale": 7.5})["images"]
    unguided = server.predict({**body, "guidance_scale": 1.0})
    assert unguided.status_code == 400
    assert "guidance_scale" in unguided.json()["error"]


def test_an_image_is_a_start_or_is_refused(server: Server, small: dict[str, Any], pipeline: dict[str, Any]) -> None:
    first = generate(server, {**small, "seed": 5})["images"][0]["image"]
    body = {**small, "image": first, "strength": 0.5, "width": 128, "num_inference_steps": 4}
    if not pipeline["image_to_image"]:
        response = server.predict(body)
        assert response.status_code == 400
        sentence = "strength has no effect" if pipeline["reference_images"] else "image cannot be used"
        assert sentence in response.json()["error"]
        return
    answer = generate(server, body)
    assert images_of(answer)[0].size == (128, 64)
    assert generate(server, body)["images"] == answer["images"]
    assert generate(server, {**body, "strength": 1.0})["images"] != answer["images"]
    assert generate(server, {**body, "seed": 6})["images"] != answer["images"]
    weak = server.predict({**body, "strength": 0.005})
    assert weak.status_code == 400
    assert "strength 0.005 is too little" in weak.json()["error"]
    # Defaults of steps and strength work together.
    generate(server, {"prompt": "a red house", "width": 64, "height": 64, "image": first})
    url = generate(server, {**body, "image": f"data:image/png;base64,{first}"})
    assert url["images"] == answer["images"]
    alone = server.predict({**small, "strength": 0.5})
    assert alone.status_code == 400
    assert "strength has no effect" in alone.json()["error"]
    # Both pipelines share one scheduler, which must not leak state.
    assert generate(server, {**small, "seed": 5})["images"][0]["image"] == first


def test_loras_are_chosen_by_name_or_refused(server: Server, small: dict[str, Any], pipeline: dict[str, Any]) -> None:
    plain = generate(server, small)["images"]
    names = [lora["name"] for lora in pipeline["loras"] if not lora["fused"]]
    response = server.predict({**small, "loras": [{"name": "no-such-style"}]})
    assert response.status_code == 400
    assert "`loras`" in response.json()["error"]
    assert all(name in response.json()["error"] for name in names)
    for name in names:
        chosen = generate(server, {**small, "loras": [{"name": name, "scale": 1.0}]})["images"]
        assert chosen != plain
        assert generate(server, {**small, "loras": [{"name": name, "scale": -1.0}]})["images"] != chosen
    # A request's LoRAs do not affect the next.
    assert generate(server, small)["images"] == plain


def test_references_have_an_effect(server: Server, small: dict[str, Any], pipeline: dict[str, Any]) -> None:
    first, other = (generate(server, {**small, "seed": seed})["images"][0]["image"] for seed in (5, 6))
    several = server.predict({**small, "image": [first, other]})
    if not pipeline["reference_images"]:
        assert several.status_code == 400
        assert "`image`" in several.json()["error"]
        return
    answers = [generate(server, {**small, **more})["images"] for more in ({}, {"image": first}, {"image": other})]
    answers.append(several.json()["images"])
    assert all(images not in answers[:place] for place, images in enumerate(answers))


def test_a_mask_keeps_the_rest_or_is_refused(server: Server, small: dict[str, Any], pipeline: dict[str, Any]) -> None:
    start = Image.effect_noise((64, 64), 100).convert("RGB")
    mask = Image.new("L", (64, 64))
    mask.paste(255, (0, 0, 64, 16))
    body = {**small, "image": png_of(start), "mask": png_of(mask), "mask_blur": 0}
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
    black = server.predict({**body, "mask": png_of(Image.new("L", (8, 8)))})
    assert black.status_code == 400
    assert "nothing would change" in black.json()["error"]
    alone = server.predict({**small, "mask": png_of(mask)})
    assert alone.status_code == 400
    assert "mask needs one image" in alone.json()["error"]


def png_of(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def test_the_server_speaks_no_word_of_a_deprecated_call(server: Server) -> None:
    log = server.log.read_text()
    # diffusers deprecates names that its own files import: this project imports none of them.
    own = re.sub(r"^.*Importing and using.*\n.*\n", "", log, flags=re.MULTILINE)
    assert "deprecated" not in own.lower()
    assert "Traceback" not in log


def test_timings_are_json_numbers(server: Server, small: dict[str, Any]) -> None:
    timings = generate(server, small)["timings"]
    assert json.dumps(timings)
    assert timings["generate"] > 0
    assert timings["encode"] > 0


def test_what_the_model_does_not_read_is_said(server: Server, small: dict[str, Any], pipeline: dict[str, Any]) -> None:
    assert generate(server, small)["warnings"] == []
    limit = pipeline["limits"]["prompt_characters"]
    words = "boat " * (limit // 5)
    warnings = generate(server, {**small, "prompt": words})["warnings"]
    for warning in warnings:
        assert warning.startswith("prompt: the model reads")
        assert warning.endswith(words[-20:])
        # Changing the unread rest changes nothing.
        rest = warning.split("had no effect: ", 1)[1]
        # Keep the length of words: a token may end with a word.
        other = words.removesuffix(rest) + rest.translate(str.maketrans("boat", "xyzw"))
        assert (
            generate(server, {**small, "prompt": other})["images"]
            == generate(server, {**small, "prompt": words})["images"]
        )
