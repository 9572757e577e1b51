"""What read_pipeline() accepts, in any layout, and what it refuses, on every family."""

import inspect
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
import transformers
import yaml
from cold_start.pipeline import read_pipeline
from cold_start.weights import WeightsError, check_weights
from conftest import BLOCKS, FAMILIES, TINY, Make
from pipeline_settings import SettingsError
from safetensors.torch import load_file, save_file

UNETS = [preset for preset in FAMILIES if "unet/config.json" in BLOCKS[preset]["weight_files"]["pipeline"]]


def models(folder: Path) -> list[Path]:
    """Return the folder of each model that has weights."""
    return sorted({file.parent for file in folder.rglob("*.safetensors")})


def component_of(model: Path, folder: Path) -> str:
    first, *rest = model.relative_to(folder).parts
    return rest[0] if first == "pipeline" else first


def tensors_of(pipeline: Any) -> dict[str, torch.Tensor]:
    return {
        f"{name}.{key}": tensor
        for name, part in pipeline.components.items()
        if isinstance(part, torch.nn.Module)
        for key, tensor in part.state_dict().items()
    }


def packed(tensor: torch.Tensor) -> torch.Tensor:
    """Return the bytes that hold the tensor in a GGUF file, in 8 bits."""
    import gguf

    return torch.from_numpy(gguf.quantize(tensor.float().numpy(), gguf.GGMLQuantizationType.Q8_0))


@pytest.mark.parametrize("preset", BLOCKS)
def test_every_tensor_is_that_of_a_file_on_the_device_and_in_the_dtype_that_were_asked(
    preset: str, settings_of: Make, tiny: Any, tmp_path: Path
) -> None:
    settings = settings_of(preset, loras=[], cpu_dtype=BLOCKS[preset]["dtype"])
    # The same weights in one plain folder, in the layout of diffusers, as diffusers and transformers read them.
    tiny.make(tmp_path, {**BLOCKS[preset], "components": {}, "loras": []}, TINY[preset])
    index = json.loads((tmp_path / "pipeline" / "model_index.json").read_text())
    found, bits = read_pipeline(settings, "cpu"), 0
    for name, part in found.components.items():
        if not isinstance(part, torch.nn.Module):
            continue
        library = transformers if index[name][0] == "transformers" else diffusers
        folder = tmp_path / "pipeline" / name
        usual = getattr(library, index[name][1]).from_pretrained(
            folder, dtype=getattr(torch, settings.dtype), variant=settings.variant
        )
        tensors = part.state_dict()
        assert tensors.keys() == usual.state_dict().keys()
        for key, tensor in usual.state_dict().items():
            bits += tensors[key].dtype == torch.uint8
            wanted = packed(tensor) if tensors[key].dtype == torch.uint8 else tensor
            assert torch.equal(tensors[key], wanted), (name, key)
            assert tensors[key].dtype == wanted.dtype, (name, key)
            assert not tensor.is_floating_point() or tensor.dtype in (getattr(torch, settings.dtype), torch.float32)
    assert bool(bits) == any((component.file or "").endswith(".gguf") for component in settings.components.values())
    # A device that holds no bytes stands for the GPU.
    assert {tensor.device.type for tensor in tensors_of(read_pipeline(settings, "meta")).values()} == {"meta"}


@pytest.mark.parametrize("preset", FAMILIES)
def test_a_tensor_that_no_file_holds_is_named(preset: str, settings_of: Make, copy_of: Callable[[str], Path]) -> None:
    folder = copy_of(preset)
    for model in models(folder):
        file = min(model.glob("*.safetensors"))
        content, tensors = file.read_bytes(), load_file(file)
        # Not one that is tied to another, and so may be absent.
        name = min(name for name in tensors if name.endswith("weight") and "embed" not in name and "shared" not in name)
        del tensors[name]
        save_file(tensors, file, {"format": "pt"})
        with pytest.raises(WeightsError, match=rf"{component_of(model, folder)} cannot be read from .*: no file has"):
            read_pipeline(settings_of(preset, folder), "cpu")
        file.write_bytes(content)
    read_pipeline(settings_of(preset, folder), "cpu")


@pytest.mark.parametrize("variant", [None, "fp16"])
@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("preset", ["sd15", "sd3-medium"])
def test_each_layout_of_save_pretrained_is_read(
    preset: str, variant: str | None, sharded: bool, settings_of: Make, copy_of: Callable[[str], Path]
) -> None:
    folder = copy_of(preset)
    usual = tensors_of(pipeline := read_pipeline(settings_of(preset, folder), "cpu"))
    for model in models(folder / "pipeline"):
        shutil.rmtree(model)
        part = pipeline.components[model.name]
        size = int(0.6 * part.get_memory_footprint()) if sharded else "10GB"
        part.save_pretrained(model, variant=variant, max_shard_size=size)
        # What real repositories keep beside them: other precisions, and pickles.
        other = "diffusion_pytorch_model" if isinstance(part, diffusers.ModelMixin) else "model"
        other += ".non_ema.safetensors" if variant else ".fp16.safetensors"
        (model / other).write_bytes(b"")
        (model / "pytorch_model.bin").write_bytes(b"no pickle")
    found = tensors_of(read_pipeline(settings_of(preset, folder, variant=variant), "cpu"))
    assert found.keys() == usual.keys()
    assert all(torch.equal(found[name], usual[name]) for name in usual)


def test_a_shard_that_is_missing_is_named(settings_of: Make, copy_of: Callable[[str], Path]) -> None:
    folder = copy_of("sd15")
    for model, part in (
        (model, read_pipeline(settings_of("sd15"), "cpu").components[model.name]) for model in models(folder)
    ):
        shutil.rmtree(model)
        part.save_pretrained(model, variant="fp16", max_shard_size=int(0.6 * part.get_memory_footprint()))
        shard = min(model.glob("*-00002-of-*"))
        content = shard.read_bytes()
        shard.unlink()
        with pytest.raises(WeightsError, match=rf"{model.name} cannot be read from .*00002-of"):
            read_pipeline(settings_of("sd15", folder), "cpu")
        shard.write_bytes(content)


def test_plain_names_are_the_cure_for_a_variant_that_is_not_there(
    settings_of: Make, copy_of: Callable[[str], Path]
) -> None:
    folder = copy_of("sd15")
    for file in folder.rglob("*.fp16.safetensors"):
        file.rename(file.with_name(file.name.replace(".fp16", "")))
    with pytest.raises(WeightsError, match=r"remove \.fp16 from the patterns and set variant to null"):
        check_weights(settings_of("sd15", folder))
    files = {
        name: [pattern.replace(".fp16", "") for pattern in patterns]
        for name, patterns in BLOCKS["sd15"]["weight_files"].items()
    }
    cured = settings_of("sd15", folder, variant=None, weight_files=files)
    check_weights(cured)
    read_pipeline(cured, "cpu")


def test_a_single_file_checkpoint_is_told_how_to_become_a_folder(settings_of: Make, tmp_path: Path) -> None:
    (tmp_path / "pipeline").mkdir()
    (tmp_path / "pipeline" / "model.safetensors").write_bytes(b"")
    with pytest.raises(WeightsError, match=r"from_single_file\(\) and save_pretrained\(\)"):
        check_weights(settings_of("sdxl", tmp_path))


@pytest.mark.parametrize("channels", [8, 9])
@pytest.mark.parametrize("preset", UNETS)
def test_a_unet_for_inpainting_or_editing_is_refused(
    preset: str, channels: int, settings_of: Make, copy_of: Callable[[str], Path]
) -> None:
    folder = copy_of(preset)
    config = json.loads((folder / "pipeline" / "unet" / "config.json").read_text())
    shutil.rmtree(folder / "pipeline" / "unet")
    unet = diffusers.UNet2DConditionModel.from_config({**config, "in_channels": channels})
    unet.to(torch.float16).save_pretrained(folder / "pipeline" / "unet", variant=BLOCKS[preset]["variant"])
    with pytest.raises(WeightsError, match=rf"unet takes {channels} channels instead of 4"):
        read_pipeline(settings_of(preset, folder), "cpu")


def test_a_transformer_for_editing_is_refused(settings_of: Make, copy_of: Callable[[str], Path]) -> None:
    folder = copy_of("flux-schnell")
    config = json.loads((folder / "pipeline" / "transformer" / "config.json").read_text())
    shutil.rmtree(folder / "pipeline" / "transformer")
    wide = diffusers.FluxTransformer2DModel.from_config({**config, "in_channels": 6 * config["in_channels"]})
    wide.to(torch.bfloat16).save_pretrained(folder / "pipeline" / "transformer")
    with pytest.raises(WeightsError, match=r"transformer takes \d+ channels"):
        read_pipeline(settings_of("flux-schnell", folder), "cpu")


# The text embedding widths in each family's UNet or transformer config.
TEXT_KEYS = ("cross_attention_dim", "joint_attention_dim", "pooled_projection_dim", "caption_channels", "cap_feat_dim")
TEXT_KEYS += ("text_in_dim",)


@pytest.mark.parametrize("preset", FAMILIES)
def test_a_model_for_another_text_encoder_is_refused(preset: str, settings_of: Make, tiny: Any, tmp_path: Path) -> None:
    tiny.make(tmp_path, {**BLOCKS[preset], "components": {}, "loras": []}, TINY[preset])
    folder = tmp_path
    name = "unet" if (folder / "pipeline" / "unet").is_dir() else "transformer"
    config = json.loads((folder / "pipeline" / name / "config.json").read_text())
    known = inspect.signature(getattr(diffusers, config["_class_name"]).__init__).parameters
    keys = [key for key in TEXT_KEYS if key in known and config.get(key)]
    keys = [key for key in keys if name == "unet" or key != "cross_attention_dim"]
    assert keys, "a family whose texts nothing checks"
    for key in keys:
        shutil.rmtree(folder / "pipeline" / name)
        other = getattr(diffusers, config["_class_name"]).from_config({**config, key: 5 * config[key]})
        other.to(getattr(torch, BLOCKS[preset]["dtype"])).save_pretrained(
            folder / "pipeline" / name, variant=BLOCKS[preset]["variant"]
        )
        with pytest.raises(WeightsError, match=rf"\({key}\).* use components of one model"):
            read_pipeline(settings_of(preset, folder, components={}), "cpu")


@pytest.mark.parametrize("preset", FAMILIES)
def test_what_the_class_does_not_take_of_a_published_config_means_nothing(
    preset: str, settings_of: Make, copy_of: Callable[[str], Path]
) -> None:
    """Chroma1-HD keeps the pooled_projection_dim of FLUX, and has no encoder of that width."""
    folder = copy_of(preset)
    (file,) = [file for name in ("unet", "transformer") for file in (folder / "pipeline").glob(f"{name}/config.json")]
    config = json.loads(file.read_text())
    known = inspect.signature(getattr(diffusers, config["_class_name"]).__init__).parameters
    unknown = {key: 768 for key in TEXT_KEYS if key not in known}
    assert unknown
    file.write_text(json.dumps({**config, **unknown}))
    read_pipeline(settings_of(preset, folder), "cpu")


def test_a_component_that_is_left_out_needs_no_files(settings_of: Make, copy_of: Callable[[str], Path]) -> None:
    folder = copy_of("sd3-medium")
    shutil.rmtree(folder / "pipeline" / "text_encoder_3")
    shutil.rmtree(folder / "pipeline" / "tokenizer_3")
    pipeline = read_pipeline(
        settings_of("sd3-medium", folder, load_kwargs={"text_encoder_3": None, "tokenizer_3": None}), "cpu"
    )
    assert pipeline.text_encoder_3 is None
    # A safety checker in one's own folder, as real repositories have it.
    folder = Path(shutil.copytree(Path(settings_of("sd15").weights_dir), folder.with_name("checker")))
    (folder / "pipeline" / "safety_checker").mkdir()
    (folder / "pipeline" / "safety_checker" / "config.json").write_text("{}")
    (folder / "pipeline" / "safety_checker" / "pytorch_model.bin").write_bytes(b"no pickle")
    check_weights(settings_of("sd15", folder))
    read_pipeline(settings_of("sd15", folder), "cpu")


@pytest.mark.parametrize("preset", [p for p in BLOCKS if p in ("sd3-medium", "flux-schnell", "pixart-sigma")])
def test_what_a_text_encoder_keeps_in_float32_stays_so(preset: str, settings_of: Make) -> None:
    pipeline = read_pipeline(settings_of(preset, cpu_dtype=BLOCKS[preset]["dtype"]), "cpu")
    kept = [part for part in pipeline.components.values() if isinstance(part, transformers.T5EncoderModel)]
    dtypes = {p.dtype for part in kept for name, p in part.named_parameters() if name.endswith("wo.weight")}
    # transformers keeps them so in float16 alone.
    assert dtypes == {torch.float32 if BLOCKS[preset]["dtype"] == "float16" else torch.bfloat16}


def test_a_tokenizer_of_one_file_is_read(settings_of: Make, copy_of: Callable[[str], Path]) -> None:
    folder = copy_of("sd15")
    tokenizer = read_pipeline(settings_of("sd15", folder), "cpu").tokenizer
    for file in ("vocab.json", "merges.txt"):
        (folder / "pipeline" / "tokenizer" / file).unlink()
    tokenizer.save_pretrained(folder / "pipeline" / "tokenizer")
    assert (
        read_pipeline(settings_of("sd15", folder), "cpu").tokenizer("a boat").input_ids == tokenizer("a boat").input_ids
    )


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"class_name": "StableDifusionPipeline"}, "class_name: .* did you mean StableDiffusionPipeline"),
        ({"guidance_parameter": "guidance"}, "guidance_parameter: there is no guidance"),
        ({"step_callback": "callback"}, "step_callback: there is no callback"),
        ({"area_parameter": "area"}, "area_parameter: there is no area"),
        ({"call_kwargs": {"clip_skp": 1}}, r"call_kwargs\.clip_skp: .* did you mean clip_skip"),
        ({"load_kwargs": {"saftey_checker": None}}, "load_kwargs: .* did you mean safety_checker"),
        ({"load_kwargs": {"vae": None}}, "load_kwargs: no image can be generated without vae"),
        ({"load_kwargs": {"tokenizer": None}}, "load_kwargs: no image can be generated without tokenizer"),
        ({"load_kwargs": {"unet": None}}, "load_kwargs: no image can be generated without unet"),
        ({"load_kwargs": {"scheduler": None}}, "load_kwargs: no image can be generated without scheduler"),
        (
            {"image_to_image": {"class_name": "StableDiffusionPipeline", "takes_size": False}},
            "image_to_image.class_name, StableDiffusionPipeline: there is no strength",
        ),
        ({"prompt_tokens": {"tokenizer": "tokeniser", "count": 75}}, "prompt_tokens.tokenizer: .* mean tokenizer"),
        (
            {"image_to_image": {"class_name": "StableDifusionImg2ImgPipeline", "takes_size": False}},
            "image_to_image.class_name: .* did you mean StableDiffusionImg2ImgPipeline",
        ),
        (
            {"inpaint": {"class_name": "StableDifusionInpaintPipeline", "adds_shift": True, "max_pixels": None}},
            "inpaint.class_name: .* did you mean StableDiffusionInpaintPipeline",
        ),
        ({"call_kwargs": {"clip_skip": 1}}, "clip_skip: this model cannot skip layers"),
        ({"scheduler": {"class_name": "EulerDiscretScheduler"}}, "did you mean EulerDiscreteScheduler"),
        ({"scheduler": {"beta_shedule": "linear"}}, "scheduler.beta_shedule: .* did you mean beta_schedule"),
        ({"scheduler": {"beta_start": "low"}}, r"scheduler\.beta_start: use a value such as 0\.0001"),
        ({"scheduler": {"skip_prk_steps": "no"}}, "scheduler.skip_prk_steps: use a value such as false"),
        ({"scheduler": {"steps_offset": True}}, "scheduler.steps_offset: use a value such as 0"),
        ({"scheduler": {"class_name": "LCMScheduler", "original_inference_steps": 0}}, "config.yaml, scheduler: "),
        ({"scheduler": {"num_train_timesteps": -1}}, "config.yaml, scheduler: "),
        ({"scheduler": {"class_name": "StableDiffusionPipeline"}}, "config.yaml, scheduler: "),
        ({"scheduler": {"class_name": "logging"}}, "config.yaml, scheduler: "),
        ({"scheduler": {"class_name": "LMSDiscreteScheduler"}}, "scheduler: .*scipy"),
        ({"scheduler": {"class_name": "DPMSolverSDEScheduler"}}, "scheduler: .*torchsde"),
        ({"scheduler": {"class_name": "EulerDiscreteScheduler", "use_beta_sigmas": True}}, "scheduler: .*scipy"),
        ({"scheduler": {"class_name": "LCMScheduler"}}, "limits: LCMScheduler can do 1 to 50 steps"),
        ({"scheduler": {"prediction_type": "v_predicton"}}, "scheduler: .*v_predicton"),
        ({"scheduler": {"timestep_spacing": "leadin"}}, "scheduler: .*leadin"),
        ({"scheduler": {"class_name": "FlowMatchEulerDiscreteScheduler"}}, "does not fit this pipeline"),
        ({"scheduler": {"class_name": "PNDMScheduler", "skip_prk_steps": False}}, "PNDMScheduler can do 4 to 100"),
    ],
)
def test_what_config_yaml_cannot_have_is_a_sentence(changes: dict[str, Any], sentence: str, settings_of: Make) -> None:
    with pytest.raises(SettingsError, match=sentence):
        read_pipeline(settings_of("sd15", **changes), "cpu")


@pytest.mark.parametrize(
    ("preset", "name"),
    [
        ("sdxl", "tokenizer_2"),
        ("sdxl", "text_encoder_2"),
        ("flux-schnell", "transformer"),
        ("sd3-medium", "tokenizer_3"),
    ],
)
def test_what_the_family_needs_cannot_be_left_out(preset: str, name: str, settings_of: Make) -> None:
    with pytest.raises(SettingsError, match=f"load_kwargs: no image can be generated without {name}:"):
        read_pipeline(settings_of(preset, load_kwargs={name: None}), "cpu")


@pytest.mark.parametrize("preset", [preset for preset in FAMILIES if BLOCKS[preset]["image_to_image"]])
def test_a_pipeline_for_images_that_takes_the_size_otherwise_is_refused(preset: str, settings_of: Make) -> None:
    block = BLOCKS[preset]["image_to_image"]
    right = str(block["takes_size"]).lower()
    flipped = {**block, "takes_size": not block["takes_size"]}
    with pytest.raises(SettingsError, match=f"takes_size: use {right} for {block['class_name']}"):
        read_pipeline(settings_of(preset, image_to_image=flipped), "cpu")


@pytest.mark.parametrize("preset", ["sd15", "sd21", "lcm-dreamshaper", "sdxl", "sd3-medium"])
def test_clip_skip_works_or_is_refused(preset: str, settings_of: Make, serve: Any) -> None:
    settings = settings_of(preset, call_kwargs={"clip_skip": 1})
    try:
        served = serve(settings)
    except SettingsError:
        assert preset in ("sd15", "sd21", "lcm-dreamshaper")
        return
    assert served.image()


@pytest.mark.parametrize(
    ("preset", "name"),
    [
        *[(preset, "DPMSolverMultistepScheduler") for preset in ("flux-schnell", "lcm-dreamshaper", "sd3-medium")],
        # These know sigmas, but not how a flow model mixes a start image with noise.
        *[(preset, "EulerDiscreteScheduler") for preset in ("flux-schnell", "qwen-image-2512", "sd3-medium")],
        ("z-image-turbo", "UniPCMultistepScheduler"),
    ],
)
def test_a_scheduler_that_does_not_fit_the_family_is_refused(preset: str, name: str, settings_of: Make) -> None:
    with pytest.raises(SettingsError, match=f"a {name} does not fit this pipeline"):
        read_pipeline(settings_of(preset, scheduler={"class_name": name}), "cpu")


def test_a_negative_prompt_that_the_pipeline_does_not_know_is_refused(settings_of: Make) -> None:
    with pytest.raises(SettingsError, match="negative_prompt: there is no negative_prompt"):
        read_pipeline(settings_of("lcm-dreamshaper", negative_prompt=True), "cpu")


def test_a_safety_checker_cannot_be_served_and_says_so(settings_of: Make, copy_of: Callable[[str], Path]) -> None:
    folder = copy_of("sd15")
    (folder / "pipeline" / "safety_checker").mkdir()
    (folder / "pipeline" / "safety_checker" / "config.json").write_text("{}")
    with pytest.raises(SettingsError, match="leave it out with safety_checker: null"):
        read_pipeline(settings_of("sd15", folder, load_kwargs={}), "cpu")


def test_the_tokenizers_of_tiny_pipelines_are_those_that_the_catalog_makes() -> None:
    from catalog import tiny_tokenizers

    assert tiny_tokenizers.made() == yaml.safe_load(tiny_tokenizers.FILE.read_text("utf-8"))


def test_a_tiny_pipeline_keeps_a_published_key_that_its_class_does_not_know(tiny: Any, tmp_path: Path) -> None:
    components = TINY["flux-dev"]["components"]
    published = {**components, "transformer": {**components["transformer"], "clip_width": 768}}
    tiny.make(tmp_path, BLOCKS["flux-dev"], {**TINY["flux-dev"], "components": published})
    assert json.loads((tmp_path / "pipeline" / "transformer" / "config.json").read_text())["clip_width"] == 768
