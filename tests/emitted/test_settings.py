"""What is wrong in config.yaml is one sentence with the key."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import BLOCKS, PROJECT
from pipeline_settings import Settings, SettingsError, read_settings

CONFIG = yaml.safe_load((PROJECT / "config.yaml").read_text("utf-8"))


def changed(path: str, value: Any) -> dict[str, Any]:
    """Return config.yaml with value at path; None takes the key out."""
    config = yaml.safe_load((PROJECT / "config.yaml").read_text("utf-8"))
    place = config
    *parents, key = path.split("/")
    for parent in parents:
        place = place[parent]
    if value is None:
        del place[key]
    else:
        place[key] = value
    return config


BLOCK = "model_metadata/pipeline"
STYLE = {"name": "style", "scale": 1.0, "fused": False}


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (f"{BLOCK}/guidance_paramter", "x", "guidance_paramter: .* did you mean guidance_parameter"),
        (f"{BLOCK}/limits/max_sise", 1, "limits.max_sise: .* did you mean max_size"),
        (f"{BLOCK}/defaults/steps", 1, "defaults.steps: there is no such key"),
        (f"{BLOCK}/dtype", "fp16", "dtype: .*'float16', 'bfloat16' or 'float32'"),
        (f"{BLOCK}/dtype", None, "dtype: field required"),
        (f"{BLOCK}/warm_up", "no", "warm_up: .* valid boolean"),
        (f"{BLOCK}/loras", [{**STYLE, "scale": "high"}], "loras.0.scale: .* valid number"),
        (f"{BLOCK}/loras", [{**STYLE, "sclae": 1.0}], "loras.0.sclae: .* did you mean scale"),
        (f"{BLOCK}/loras", [{**STYLE, "name": "Pixel Art"}], "loras.0.name: string should match"),
        (f"{BLOCK}/loras", [{**STYLE, "scale": 3.0}], "the scale of style is 3.0, beyond limits.lora_scale"),
        (f"{BLOCK}/loras", [STYLE, {**STYLE, "fused": True}], "loras holds a name twice"),
        (
            f"{BLOCK}/limits/loras_in_memory",
            3,
            "limits.loras_in_memory is less than limits.loras, 4: change one of them",
        ),
        (f"{BLOCK}/compile", "whole", "compile: .*'regional'"),
        (f"{BLOCK}/compile", "regional", "no effect without warm_up: set it to true"),
        (f"{BLOCK}/warm_up_sizes", [[512, 512]], "no effect without warm_up: set it to true"),
        (f"{BLOCK}/warm_up_sizes", [512, 512], "warm_up_sizes.0: .* valid list"),
        (f"{BLOCK}/warm_up_sizes", [[512]], "warm_up_sizes.0: .* at least 2 items"),
        (f"{BLOCK}/warm_up_sizes", [[512, 32]], r"warm_up_sizes holds \[512, 32\]: use 64 to "),
        (f"{BLOCK}/warm_up_sizes", [[512, 4096]], r"warm_up_sizes holds \[512, 4096\]: use 64 to "),
        (f"{BLOCK}/warm_up_sizes", [[512, 500]], r"warm_up_sizes holds \[512, 500\]: .* multiples of "),
        (f"{BLOCK}/limits/max_pixels", 63 * 1024, "limits.max_pixels is less than that of .* max_size x min_size"),
        (f"{BLOCK}/png_compress_level", 10, "png_compress_level: .* less than or equal to 9"),
        (f"{BLOCK}/png_compress_level", 1.5, "png_compress_level: .* valid integer"),
        (f"{BLOCK}/defaults/num_inference_steps", "thirty", "num_inference_steps: .* valid integer"),
        (f"{BLOCK}/defaults/guidance_scale", float("nan"), "guidance_scale: .* finite number"),
        (f"{BLOCK}/image_to_image", "StableDiffusionImg2ImgPipeline", "image_to_image: "),
        (f"{BLOCK}/inpaint", "StableDiffusionInpaintPipeline", "inpaint: "),
        (f"{BLOCK}/inpaint/max_pixel", 1, "inpaint.max_pixel: .* did you mean max_pixels"),
        (f"{BLOCK}/reference_images", BLOCKS["flux2-klein-4b"]["reference_images"], "exclude each other"),
        (f"{BLOCK}/call_kwargs", {"mask_image": None}, "call_kwargs has mask_image"),
        (f"{BLOCK}/limits/max_size", 256, "defaults.width is 512, and limits allow 64 to 256"),
        (f"{BLOCK}/limits/max_pixels", 512 * 504, "limits.max_pixels is less than that of defaults"),
        (f"{BLOCK}/limits/max_pixels", 0, "limits.max_pixels: .* greater than or equal to 1"),
        (f"{BLOCK}/limits/max_steps", 20, "defaults.num_inference_steps is 30, and limits allow 1 to 20"),
        (f"{BLOCK}/limits/guidance_scale", 5.0, "defaults.guidance_scale is 7.5"),
        (f"{BLOCK}/defaults/width", 500, "defaults.width is 500: use a multiple"),
        (f"{BLOCK}/loras", [STYLE], "weight_files lacks lora-style"),
        (f"{BLOCK}/weight_files", {}, "weight_files lacks pipeline"),
        (f"{BLOCK}/defaults/strength", 0.001, "defaults.strength is 0.001: too little"),
        (f"{BLOCK}/call_kwargs", {"num_inference_steps": 2}, "call_kwargs has num_inference_steps"),
        (f"{BLOCK}/call_kwargs", {"guidance_scale": 2}, "call_kwargs has guidance_scale"),
        (BLOCK, None, "lacks the block"),
        (BLOCK, [], "model_metadata.pipeline: "),
        ("model_metadata", None, "lacks the block"),
        ("runtime", "x", "runtime: use keys such as predict_concurrency: 1"),
        ("runtime", True, "runtime: use keys such as"),
        (f"{BLOCK}/embed_metadata", "yes", "embed_metadata: .* valid boolean"),
        ("runtime/predict_concurrency", 9, "predict_concurrency: use 1 to 8"),
        ("runtime/predict_concurrency", "2", "predict_concurrency: use 1 to 8"),
    ],
)
def test_a_wrong_key_or_value_is_one_sentence(tmp_path: Path, path: str, value: Any, words: str) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(changed(path, value)))
    with pytest.raises(SettingsError, match=words) as caught:
        read_settings(file)
    assert str(caught.value).startswith("config.yaml")
    assert "\n" not in str(caught.value)


def test_a_misspelt_key_is_told_and_not_the_one_that_is_missing(tmp_path: Path) -> None:
    config = changed(f"{BLOCK}/warm_pu", False)
    del config["model_metadata"]["pipeline"]["warm_up"]
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(config))
    with pytest.raises(SettingsError, match=r"warm_pu: there is no such key, did you mean warm_up\?"):
        read_settings(file)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"a: 1\nb:\n  c: 1\n  c: 2\n", "config.yaml, line 4: c stands twice."),
        (b"a: 1\n? [x, y]\n: 1\na: 1\n", "config.yaml, line 4: a stands twice."),
        ("a: ä".encode("latin-1"), "config.yaml holds bytes that are no UTF-8: save it as UTF-8."),
        ("a: ä".encode("utf-16"), "config.yaml holds bytes that are no UTF-8: save it as UTF-8."),
    ],
)
def test_a_file_that_cannot_be_meant_is_one_sentence(tmp_path: Path, content: bytes, words: str) -> None:
    file = tmp_path / "config.yaml"
    file.write_bytes(content)
    with pytest.raises(SettingsError) as caught:
        read_settings(file)
    assert str(caught.value) == words


@pytest.mark.parametrize("text", ["a:\n\t- b", "a: [", "", "just words", "a: \x07"])
def test_what_is_no_yaml_is_one_sentence(tmp_path: Path, text: str) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(text)
    with pytest.raises(SettingsError, match=r"^config\.yaml") as caught:
        read_settings(file)
    assert "\n" not in str(caught.value)


def test_hashes_come_with_model_cache_alone(tmp_path: Path) -> None:
    config = changed(f"{BLOCK}/check_hashes", True)
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(config))
    assert read_settings(file).check_hashes
    # Truss fills it in, empty, in the copy that the server reads.
    file.write_text(yaml.safe_dump({**config, "weights": []}))
    assert read_settings(file).check_hashes
    file.write_text(yaml.safe_dump({**config, "weights": [{"source": "hf://owner/name@main"}]}))
    with pytest.raises(SettingsError, match="check_hashes: weights has no hashes"):
        read_settings(file)


@pytest.mark.parametrize("preset", BLOCKS)
def test_each_preset_is_valid(preset: str) -> None:
    Settings.model_validate(BLOCKS[preset])
