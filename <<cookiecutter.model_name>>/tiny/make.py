"""Make a tiny pipeline for a CPU, laid out like the real repositories, with random weights or the demo's."""

import json
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent / "packages"))

from cold_start import lean_imports  # noqa: E402

lean_imports.import_diffusers("")  # takes a second less than to import all of it

import diffusers  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
import yaml  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

lean_imports.finish()
# A trained pipeline that paints flat shapes, in projects whose pipeline has the same shape.
DEMO = HERE / "demo"
Settings = dict[str, Any]
# Regular expressions, applied in order, from diffusers' tensor names to the original names in single files.
# Names that end in #0, #1, ... are joined into one tensor; #swapped stands for two halves in reverse order.
Layout = Sequence[Sequence[str]]


def make(folder: Path, settings: Settings, tiny: Settings | None = None, trained: bool = False) -> None:
    """Write one folder for each cached repository in settings (model_metadata.pipeline in config.yaml).

    tiny: how to make each component. Default: pipeline.yaml. trained: use the demo's weights.
    """
    torch.manual_seed(0)
    tiny = tiny or yaml.safe_load((HERE / "pipeline.yaml").read_text("utf-8"))
    class_name = settings["class_name"]
    if class_name != tiny["class_name"]:
        raise ValueError(f"{HERE}/pipeline.yaml makes a {tiny['class_name']}, but config.yaml names {class_name}.")
    target = folder / "pipeline"
    target.mkdir(parents=True, exist_ok=True)
    published = tiny["scheduler"]
    if trained:
        of_demo = json.loads((DEMO / "scheduler" / "scheduler_config.json").read_text())
        published = {**published, "prediction_type": of_demo["prediction_type"]}
    elsewhere = {name: how for name, how in tiny.get("from_elsewhere", {}).items() if name in settings["components"]}
    parts = _demo(target) if trained else _components(target, {**tiny["components"], **elsewhere}, tiny["tokenizers"])
    scheduler = getattr(diffusers, published["_class_name"]).from_config(published)
    # Components that the real model_index.json has but load() leaves out: the tests check that it does.
    absent = {name: which for name, which in tiny["left_out"].items() if name in settings["load_kwargs"]}
    # The files of tokenizers are there, in the layout of the real repositories, which save_pretrained would change.
    classes = {name: how["class"] for name, how in tiny["components"].items() if how["class"] in tiny["tokenizers"]}
    absent |= {name: ["transformers", class_] for name, class_ in classes.items()}
    parts = {**parts, "scheduler": scheduler, **dict.fromkeys(absent), **tiny["model_index"]}
    pipeline = getattr(diffusers, class_name)(**parts)
    dtypes = _stored_dtypes(tiny["stored"], settings)
    for name, module in pipeline.components.items():
        if isinstance(module, torch.nn.Module):
            module.to(dtypes.get(name, getattr(torch, settings["dtype"])))
    pipeline.save_pretrained(target, variant=settings["variant"], safe_serialization=True)
    patterns = settings["weight_files"]["pipeline"]
    # Those that the real repository has in two files and an index.
    for name in {pattern.split("/")[0] for pattern in patterns if pattern.endswith("-of-00002.safetensors")}:
        shutil.rmtree(target / name)
        module = pipeline.components[name]
        module.save_pretrained(target / name, max_shard_size=int(0.6 * module.get_memory_footprint()))
    # Write all keys: save_pretrained drops those that the installed version does not know.
    (target / "scheduler" / "scheduler_config.json").write_text(json.dumps(published, indent=2))
    index = json.loads((target / "model_index.json").read_text())
    (target / "model_index.json").write_text(json.dumps({**index, **absent}, indent=2))
    for name, part in settings["components"].items():
        layout = tiny["components"][name].get("layout", ())
        _move_component(folder, name, part, pipeline.components[name], layout)
    fetched = {pattern.split("/")[0] for pattern in patterns}
    for name in (name for name, value in settings["load_kwargs"].items() if value is None and name not in fetched):
        shutil.rmtree(target / name, ignore_errors=True)
    for lora in settings["loras"]:
        make_lora(folder, pipeline, lora["name"])
    if settings["safety"]:
        make_safety_checker(folder / settings["safety"])


def _components(folder: Path, tiny: dict[str, Settings], files: dict[str, Settings]) -> dict[str, Any]:
    """Return random components, except the scheduler. files: of the tokenizers, by class; written to folder."""
    made: dict[str, Any] = {}
    # First the tokenizers: how many tokens they have is the size of other components.
    for name, how in sorted(tiny.items(), key=lambda each: each[1]["class"] not in files):
        if how["class"] in files:
            made[name] = _tokenizer(folder / name, how, files[how["class"]])
            continue
        config = {key: value for key, value in how.items() if key not in ("class", "init", "layout")}
        # from_config keeps unknown keys, as it does for the real config.
        if hasattr(diffusers, how["class"]):
            made[name] = getattr(diffusers, how["class"]).from_config(config)
        else:
            model = getattr(transformers, how["class"])
            made[name] = model(model.config_class(**_with_vocabulary(config, made)))
        tensors = {**dict(made[name].named_parameters()), **dict(made[name].named_buffers())}
        for tensor, (function, *arguments) in how.get("init", {}).items():
            getattr(torch.nn.init, function)(tensors[tensor], *arguments)
    return made


def _with_vocabulary(config: Settings, tokenizers: dict[str, Any]) -> Settings:
    """Return the config of a text encoder with vocab_size, where it names a tokenizer, replaced by its size."""
    nested = {key: _with_vocabulary(value, tokenizers) for key, value in config.items() if isinstance(value, dict)}
    known = {"vocab_size": len(tokenizers[config["vocab_size"]])} if "vocab_size" in config else {}
    return {**config, **nested, **known}


def _demo(folder: Path) -> dict[str, Any]:
    """Return the trained components, except the scheduler. Writes their tokenizers to folder."""
    pipeline = diffusers.DiffusionPipeline.from_pretrained(DEMO, dtype=torch.float32, local_files_only=True)
    for name in ("tokenizer", "tokenizer_2"):
        shutil.copytree(DEMO / name, folder / name, dirs_exist_ok=True)
    return {name: part for name, part in pipeline.components.items() if part is not None and name != "scheduler"}


def make_lora(folder: Path, pipeline: Any, lora: str) -> tuple[str, str, torch.Tensor]:
    """Write a LoRA of one layer. Returns the component, the layer, and its delta to the weight at scale 1."""
    name = "unet" if "unet" in pipeline.components else "transformer"
    layers = pipeline.components[name].named_modules()
    path, layer = next((path, layer) for path, layer in layers if path.endswith("to_q"))
    down, up = torch.randn(2, layer.in_features), torch.randn(layer.out_features, 2)
    (folder / f"lora-{lora}").mkdir(exist_ok=True)
    keys = {f"{name}.{path}.lora_A.weight": down, f"{name}.{path}.lora_B.weight": up}
    save_file(keys, folder / f"lora-{lora}" / "pytorch_lora_weights.safetensors")
    return name, path, up @ down


def make_safety_checker(folder: Path, threshold: float = 2.0) -> None:
    """Write one that refuses images whose cosine with a concept is above the threshold: by default none."""
    from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker

    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2}
    vision = {**sizes, "image_size": 224, "patch_size": 32}
    config = transformers.CLIPConfig(text_config=sizes, vision_config=vision, projection_dim=8)
    checker = StableDiffusionSafetyChecker(config)
    checker.concept_embeds_weights.data.fill_(threshold)
    checker.save_pretrained(folder / "safety_checker", variant="fp16")
    transformers.CLIPImageProcessor().save_pretrained(folder / "feature_extractor")


def _stored_dtypes(stored: dict[str, str], settings: Settings) -> dict[str, torch.dtype]:
    """Return the dtypes of components whose weight files differ from the preset's dtype."""
    dtypes = {name: getattr(torch, dtype) for name, dtype in stored.items()}
    from_elsewhere = dtypes.pop("component_vae", None)
    return {**dtypes, "vae": from_elsewhere} if from_elsewhere and "vae" in settings["components"] else dtypes


def _move_component(folder: Path, name: str, part: Settings, module: torch.nn.Module, layout: Layout) -> None:
    """Move the component to its own folder, as in config.yaml."""
    kept = folder / "pipeline" / name
    if part["file"] is None:
        shutil.rmtree(kept)
        module.save_pretrained(folder / name, safe_serialization=True)
        return
    for file in kept.glob("*.safetensors"):
        file.unlink()
    path = folder / name / part["file"]
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = in_layout(layout, module.state_dict())
    if path.suffix == ".gguf":
        _save_gguf(tensors, path)
    else:
        save_file(tensors, path)


def in_layout(layout: Layout, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the tensors of a component in the original layout of its single file."""
    parts: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        for pattern, replacement in layout:
            name = re.sub(pattern, replacement, name)
        name, _, part = name.partition("#")
        parts.setdefault(name, {})[part] = tensor
    for found in parts.values():
        if "swapped" in found:
            found["1"], found["0"] = found.pop("swapped").chunk(2)
    return {name: torch.cat([found[part] for part in sorted(found)]) for name, found in parts.items()}


def _save_gguf(tensors: dict[str, torch.Tensor], path: Path) -> None:
    """Write linear layers' matrices as Q8_0 (8 bits) if their rows are whole blocks, and the rest as float32."""
    # Only projects with a GGUF file require the package.
    import gguf

    writer = gguf.GGUFWriter(path, "tiny")
    for name, tensor in tensors.items():
        packed = name.endswith("weight") and tensor.ndim == 2 and tensor.shape[1] % 32 == 0
        kind = gguf.GGMLQuantizationType.Q8_0 if packed else gguf.GGMLQuantizationType.F32
        writer.add_tensor(name, gguf.quantize(tensor.float().numpy(), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _tokenizer(folder: Path, how: Settings, files: Settings) -> Any:
    """Write the files of a tokenizer to folder: a dictionary is JSON, bytes are a sentencepiece model. Return it."""
    folder.mkdir(exist_ok=True)
    published = {key: value for key, value in how.items() if key != "class"}
    files = {**files, "tokenizer_config.json": {**files["tokenizer_config.json"], **published}}
    for name, content in files.items():
        text = json.dumps(content) if isinstance(content, dict) else content
        (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return transformers.AutoTokenizer.from_pretrained(folder)


if __name__ == "__main__":
    project_config = yaml.safe_load((HERE.parent / "config.yaml").read_text("utf-8"))
    make(Path(sys.argv[1]), project_config["model_metadata"]["pipeline"], trained="--trained" in sys.argv)
