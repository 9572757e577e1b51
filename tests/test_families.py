"""Every family, as its real files are and in half precision: whatever the schema allows is an image or a sentence."""

import base64
import json
import re
import struct
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest
import yaml
from conftest import ALL, CATALOG, FACTS, PROJECT, render_config
from generated_requests import SENTENCES, bodies
from httpx_sse import EventSource
from hypothesis import HealthCheck, given, settings
from platforms import PROJECT_PYTHON
from serving import PREDICT, READY, Server, Serving

from catalog.written import tiny

# One preset of each family.
TESTED = sorted({facts.tested for facts in FACTS.values() if ALL or not facts.alike})
CASES = (2000 if ALL else 440) // len(TESTED) + 1
# Prints the places of the images in argv[1], of which each is a file in base64, that are of one color. So is an
# image of NaN.
OF_ONE_COLOR = """
import base64, io, json, sys
from PIL import Image

images = json.load(open(sys.argv[1]))
bands = [Image.open(io.BytesIO(base64.b64decode(image))).convert("RGB").getextrema() for image in images]
print(json.dumps([place for place, found in enumerate(bands) if all(low == high for low, high in found)]))
"""
MAKE = """
import sys
from pathlib import Path

sys.path.insert(0, sys.argv[1])
import make, yaml

for preset, asked in yaml.safe_load(Path(sys.argv[2], "asked.yaml").read_text()).items():
    make.make(Path(sys.argv[2], preset), **asked)
"""
pytestmark = pytest.mark.skipif(
    PROJECT_PYTHON is None, reason="PROJECT_PYTHON is not set: `make test` makes that environment and names it"
)


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Return the block model_metadata.pipeline of each, on its tiny weights: one process makes them all."""
    folder = tmp_path_factory.mktemp("families")
    blocks: dict[str, dict[str, Any]] = {}
    for preset in TESTED:
        block = render_config(preset=preset).model_metadata["pipeline"]
        block |= {"weights_dir": str(folder / preset), "cpu_dtype": block["dtype"]}
        blocks[preset] = with_loras(block) if CATALOG[preset]["takes_lora"] else block
    asked = {preset: {"settings": block, "tiny": tiny(FACTS[preset])} for preset, block in blocks.items()}
    (folder / "asked.yaml").write_text(yaml.safe_dump(asked, sort_keys=False), "utf-8")
    command = [PROJECT_PYTHON, "-c", MAKE, str(PROJECT / "tiny"), str(folder)]
    made = subprocess.run(command, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    return blocks


def with_loras(block: dict[str, Any]) -> dict[str, Any]:
    """Name two LoRAs that a request can choose, and one that is in the weights. The tiny pipeline brings them."""
    names = ("ink", "oil", "warm")
    loras = [{"name": name, "scale": 0.5, "fused": name == "warm"} for name in names]
    files = {f"lora-{name}": ["pytorch_lora_weights.safetensors"] for name in names}
    return {**block, "loras": [*block["loras"], *loras], "weight_files": {**block["weight_files"], **files}}


# One test for each, with all that needs its server: to start one takes longer than a hundred requests.
@pytest.mark.parametrize("preset", TESTED)
def test_a_family_in_half_precision(
    families: dict[str, dict[str, Any]], serving: Serving, tmp_path: Path, preset: str
) -> None:
    with serving.start(serving.copy(tmp_path, **families[preset])) as server:
        family = Family(server, preset)
        first = family.text()
        family.loras(first)
        family.every_number_of_steps()
        family.sizes()
        family.generated()
        # Nothing of that has changed the pipeline.
        assert family.text() == first
        log = server.log.read_text()
        # diffusers deprecates names that its own files import: this project imports none of them.
        assert "deprecated" not in re.sub(r"^.*Importing and using.*\n.*\n", "", log, flags=re.MULTILINE).lower()
        assert "Traceback" not in log
        constant = of_one_color(tmp_path, [image for _, image in family.images])
        assert not constant, [family.images[place][0] for place in constant]


class Family:
    """Asks the server of a family, and keeps each request that was answered, with its image."""

    def __init__(self, server: Server, preset: str) -> None:
        self.server = server
        self.preset = preset
        self.image_to_image = CATALOG[preset]["image_to_image"] is not None
        self.inpaint = CATALOG[preset]["inpaint"] is not None
        self.references = CATALOG[preset]["reference_images"]
        example = render_config(preset=preset).model_metadata["example_model_input"]
        self.example = {**example, "prompt": "a red house", "seed": 1}
        self.schema = server.http.get(f"{READY}/schema").json()["input_schema"]
        self.images: list[tuple[Any, str]] = []
        self.starts: list[str] = []

    def ask(self, body: Any) -> httpx.Response:
        response = self.server.http.post(PREDICT, content=json.dumps(body).encode())
        if response.status_code == 200:
            self.images += [(body, entry["image"]) for entry in answer_of(response)["images"]]
        else:
            said = f"{str(body)[:1000]}\n{response.text[:1000]}"
            assert response.status_code == 400, f"{said}\n{self.server.log.read_text()[-3000:]}"
            assert SENTENCES.fullmatch(response.json()["error"]), said
        return response

    def image(self, **more: Any) -> str:
        small = {name: self.schema["properties"][name]["minimum"] for name in ("width", "height")}
        response = self.ask({**self.example, **small, **more})
        assert response.status_code == 200, (more, response.text)
        return response.json()["images"][0]["image"]

    def text(self) -> str:
        return self.image(num_inference_steps=2)

    def every_number_of_steps(self) -> None:
        """The least that the schema allows and a few more: with an image, at the strengths that fit.

        Of the most, `tests/emitted/test_schedulers.py` makes sure.
        """
        steps = self.schema["properties"]["num_inference_steps"]
        for count in (*range(steps["minimum"], 4), *[steps["maximum"]] * ALL):
            self.image(num_inference_steps=count)
        self.starts = [self.image(num_inference_steps=2, output_format=name) for name in ("png", "jpeg", "webp")]
        start, other = {"image": self.starts[0]}, {"image": self.starts[0], "strength": 0.5}
        if self.references:
            self.several()
        elif not self.image_to_image:
            assert self.ask({"prompt": "x", **start}).status_code == 400
        masked = {**start, "mask": self.starts[1]}
        if not self.inpaint:
            assert self.ask({"prompt": "x", **masked}).status_code == 400
        for more in [other] * self.image_to_image + [{**masked, "strength": 0.5}] * self.inpaint:
            whole, half = (self.image(num_inference_steps=4, **{**more, "strength": s}) for s in (1.0, 0.5))
            assert whole != half
            small = {name: self.schema["properties"][name]["minimum"] for name in ("width", "height")}
            counts = (1, 2, 3, *[20, steps["maximum"]] * ALL)
            pairs = [(count, strength) for count in counts for strength in (0.1, 0.3, 0.6, 1.0)]
            for count, strength in [*pairs, (4, 5e-324)]:
                # Whether they fit is the family's own matter. If they do not, ask() wants a sentence.
                self.ask({"prompt": "a boat", **small, **more, "num_inference_steps": count, "strength": strength})

    def several(self) -> None:
        """As many references as the family takes, each of which counts, and no more."""
        count, other = self.references["count"], self.image(seed=7)
        assert "reference" in self.ask({"prompt": "x", "image": other, "strength": 0.5}).text
        if count == 1:
            assert self.image(image=self.starts[0]) != self.image(image=other)
            assert "send one file" in self.ask({"prompt": "x", "image": [other]}).text
            return
        assert self.schema["properties"]["image"]["anyOf"][1]["maxItems"] == count
        made = [self.image(image=images) for images in (self.starts[0], [self.starts[0]], [self.starts[0], other])]
        assert made[0] == made[1] != made[2]
        self.image(
            image=[other] * count, num_inference_steps=self.schema["properties"]["num_inference_steps"]["minimum"]
        )
        assert f"a list of 1 to {count}" in self.ask({"prompt": "x", "image": [other] * (count + 1)}).text

    def loras(self, plain: str) -> None:
        """Each that can be chosen changes the image, alone and together, and that of no other request."""
        lora = self.schema.get("$defs", {}).get("LoraChoice")
        names = lora["properties"]["name"]["enum"] if lora else []
        assert bool(names) == CATALOG[self.preset]["takes_lora"]
        chosen = [[{"name": name}] for name in names] + [[{"name": name} for name in names]]
        found = {self.image(num_inference_steps=2, loras=loras) for loras in chosen if loras}
        assert len(found | {plain}) == 1 + len(names) + bool(names)
        refused = self.ask({"prompt": "x", "loras": [{"name": "warm"}]})
        assert refused.status_code == 400
        assert all(name in refused.json()["error"] for name in names)
        assert self.text() == plain

    def sizes(self) -> None:
        """The smallest that are not square are made, and not another one in their place."""
        least, multiple = (self.schema["properties"]["width"][name] for name in ("minimum", "multipleOf"))
        for width, height in ((least + multiple, least), (least, least + 3 * multiple)):
            more = {"width": width, "height": height, "num_inference_steps": 2}
            assert size_of(self.image(**more)) == (width, height)
            if self.image_to_image or self.references:
                assert size_of(self.image(**more, image=self.starts[0])) == (width, height)
            if self.inpaint:
                masked = {"image": self.starts[0], "mask": self.starts[1], "mask_padding": 4}
                assert size_of(self.image(**more, **masked)) == (width, height)

    def generated(self) -> None:
        """CASES requests made from the schema."""
        validator = jsonschema.Draft202012Validator(self.schema)
        answers: Counter = Counter()

        @settings(
            max_examples=CASES, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck)
        )
        @given(bodies(self.schema, self.starts))
        def check(body: Any) -> None:
            response = self.ask(body)
            answers[response.status_code] += 1
            # null means left out, which the schema does not say of each field.
            said = (
                {name: value for name, value in body.items() if value is not None} if isinstance(body, dict) else body
            )
            assert response.status_code == 400 or validator.is_valid(said)

        check()
        assert answers.total() >= CASES
        assert min(answers[200], answers[400]) > CASES / 20, answers


def answer_of(response: httpx.Response) -> dict[str, Any]:
    """Return the answer, also of a stream: its last event, with the images of those before."""
    if response.headers["content-type"] == "application/json":
        return response.json()
    *events, last = EventSource(response).iter_sse()
    assert last.event == "result", last
    images, answer = [each.data for each in events if each.event == "image"], last.json()
    answer["images"] = [{**each, "image": image} for each, image in zip(answer["images"], images, strict=True)]
    return answer


def size_of(png: str) -> tuple[int, int]:
    return struct.unpack(">II", base64.b64decode(png)[16:24])


def of_one_color(folder: Path, images: list[str]) -> list[int]:
    """Return the places of those that are of one color."""
    (folder / "images.json").write_text(json.dumps(images))
    command = [PROJECT_PYTHON, "-c", OF_ONE_COLOR, str(folder / "images.json")]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
