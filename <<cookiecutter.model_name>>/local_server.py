"""Serve this Truss on this machine: the server that the image runs, without Docker, GPU or network.

`truss image build-context` writes what the image is built from, out of what `truss push` would push. This puts its
parts side by side, as the image does, points the copy of config.yaml at weights on this machine, and starts main.py.
"""

import argparse
import base64
import difflib
import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

PROJECT = Path(__file__).resolve().parent
REAL_WEIGHTS = PROJECT / ".weights"
# A small trained pipeline and the request that it was made for: in projects whose pipeline is shaped like it.
DEMO = PROJECT / "tiny" / "demo"
PREDICT = "/v1/models/model:predict"
READY = "/v1/models/model/loaded"
# What the server may need of this shell: programs, libraries, the GPU, the language, threads, secrets that Truss reads,
# and the measuring of coverage. All else, such as keys and tokens, stays here.
PASSED_ON = re.compile(r"PATH|LD_LIBRARY_PATH|TMPDIR|TZ|LANG|(LC|CUDA|NVIDIA|OMP|MKL|TRUSS_SECRET|COVERAGE)_.*")
# main.py listens on all addresses of this machine, and nothing tells it otherwise. So the class of its settings is one
# that knows better. The image has packages/ in /packages, where the server looks for it; here it is in the app.
LAUNCHER = """
import os, runpy, sys, uvicorn
host, script = sys.argv[1:]
class Config(uvicorn.Config):
    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **{**options, "host": host})
uvicorn.Config = Config
sys.argv, sys.path[0] = [script], os.getcwd()
sys.path.append(os.path.abspath("packages"))
runpy.run_path(script, run_name="__main__")
"""


class ConfigError(ValueError):
    """config.yaml is wrong: one sentence that names the key."""


def read_config() -> dict[str, Any]:
    """Return config.yaml of this project. Raises ConfigError. Every command reads it here, and nowhere else."""
    # By its path: this module is imported from elsewhere too.
    spec = importlib.util.spec_from_file_location("settings", PROJECT / "packages" / "pipeline_settings.py")
    assert spec is not None and spec.loader is not None
    settings = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(settings)
    try:
        settings.read_settings(PROJECT / "config.yaml")
    except settings.SettingsError as error:
        raise ConfigError(str(error)) from error
    return dict(yaml.safe_load((PROJECT / "config.yaml").read_text("utf-8")))


def check_with_truss(config: dict[str, Any]) -> None:
    """Raise ConfigError, in one sentence, if Truss would refuse the config."""
    import pydantic
    from truss.base.truss_config import TrussConfig

    unknown = [key for key in config if key not in TrussConfig.model_fields]
    if unknown:
        near = difflib.get_close_matches(str(unknown[0]), TrussConfig.model_fields, n=1)
        hint = f"did you mean {near[0]}?" if near else "take it out."
        raise ConfigError(f"config.yaml: Truss knows no key {unknown[0]}: {hint}")
    try:
        TrussConfig.from_dict(config).validate_forbid_extra()
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"config.yaml: {where}: {first['msg'].removeprefix('Value error, ')}") from error
    except ValueError as error:
        raise ConfigError(f"config.yaml: {error}") from error


def pushed_files() -> list[Path]:
    """Return what `truss push` would push, by Truss's own reading of .truss_ignore; paths in this project."""
    from truss.util.path import collect_files, load_trussignore_patterns_from_truss_dir

    files = collect_files(PROJECT, load_trussignore_patterns_from_truss_dir(PROJECT))
    return sorted(file.relative_to(PROJECT) for file in files)


def build_context(target: Path) -> None:
    """Write the image's build context to target. Raises ConfigError if Truss refuses the project.

    With model_cache in the config Truss asks the Hub for the list of files. So it gets a copy without.
    """
    config = read_config()
    check_with_truss(config)
    for delivery in ("model_cache", "weights"):
        config.pop(delivery, None)
    with tempfile.TemporaryDirectory() as temporary:
        copy = Path(temporary)
        for file in pushed_files():
            (copy / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(PROJECT / file, copy / file)
        (copy / "config.yaml").write_text(yaml.safe_dump(config), "utf-8")
        truss = Path(sys.executable).parent / "truss"
        command = [str(truss), "image", "build-context", "--non-interactive", str(target), str(copy)]
        built = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if built.returncode:
        raise ConfigError(f"Truss cannot build this project: {built.stdout.strip()}")


def build_app(app: Path, weights: Path, defaults: dict[str, Any] | None = None) -> None:
    """Lay out app as /app is in the image, with weights (a folder) in the place of the cache.

    defaults: of a request, in place of those in config.yaml where limits allow them.
    """
    build_context(app / "context")
    shutil.copytree(app / "context" / "server", app, dirs_exist_ok=True)
    for folder in ("model", "data", "packages"):
        if (app / "context" / folder).is_dir():
            shutil.copytree(app / "context" / folder, app / folder)
    # Truss fills in its defaults: the server needs its copy, not the one in this repository.
    config = yaml.safe_load((app / "context" / "config.yaml").read_text("utf-8"))
    pipeline = config["model_metadata"]["pipeline"]
    pipeline["weights_dir"] = str(weights.resolve())
    for name, value in (defaults or {}).items():
        pipeline["defaults"][name] = _within(pipeline["limits"], name, value)
    (app / "config.yaml").write_text(yaml.safe_dump(config), "utf-8")


def _within(limits: dict[str, Any], name: str, value: float) -> float:
    bounds: dict[str, tuple[float, float]] = {
        "num_inference_steps": (limits["min_steps"], limits["max_steps"]),
        "guidance_scale": (0.0, limits["guidance_scale"]),
    }
    size: tuple[float, float] = (limits["min_size"], limits["max_size"])
    low, high = bounds.get(name, size)
    return min(max(value, low), high)


def start(app: Path, port: int, host: str = "127.0.0.1", **options: Any) -> subprocess.Popen[bytes]:
    """Start the server on port of host. options go to subprocess.Popen."""
    declared = read_config()["environment_variables"]
    declared = {name: re.sub("^/app/", f"{app}/", value) for name, value in declared.items()}
    # The server leaves a mark in the home folder when load() fails: keep it out of the user's.
    passed_on = {name: value for name, value in os.environ.items() if PASSED_ON.fullmatch(name)}
    environment = {**passed_on, **declared, "INFERENCE_SERVER_PORT": str(port), "HOME": str(app)}
    command = [sys.executable, "-c", LAUNCHER, host, "main.py"]
    return subprocess.Popen(command, cwd=app, env=environment, **options)


def wait_until_ready(process: subprocess.Popen[bytes], url: str, timeout: float = 600) -> None:
    """Return when load() is done. Raises RuntimeError if the server ends, TimeoutError after timeout seconds."""
    import requests

    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError("The server stopped before it was ready: its log says why.")
        try:
            if local_session().get(url + READY, timeout=5).ok:
                return
        except requests.RequestException:
            pass
        time.sleep(0.1)
    raise TimeoutError(f"The server was not ready after {timeout:.0f} s.")


def local_session() -> Any:
    """Return a requests.Session that asks this machine itself: HTTP_PROXY and the like are for other machines."""
    import requests

    session = requests.Session()
    session.trust_env = False
    return session


def stop(process: subprocess.Popen[bytes]) -> None:
    """End the server: it has 20 s to finish the answers that it works on."""
    process.terminate()
    try:
        process.wait(timeout=20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def free_port() -> int:
    """Return a port on 127.0.0.1 that nobody listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def refuse_busy_port(host: str, port: int) -> None:
    """Raise RuntimeError, in one sentence, if nobody can listen there: another server may answer in our place."""
    try:
        socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
    except OSError as error:
        raise RuntimeError(
            f"Cannot listen on port {port} of {host} ({error.strerror}): stop what uses it, or choose with --host and "
            "--port (of make: PORT=8001)."
        ) from error


def cached_repos() -> list[dict[str, Any]]:
    """Return what the image gets from Hugging Face: repo_id, revision, folder and allow_patterns of each."""
    config = read_config()
    repos = [{**repo, "folder": repo["volume_folder"]} for repo in config.get("model_cache", [])]
    for source in config.get("weights", []):
        repo_id, _, revision = source["source"].removeprefix("hf://").partition("@")
        folder = Path(source["mount_location"]).name
        repos.append({**source, "repo_id": repo_id, "revision": revision, "folder": folder})
    return [{key: repo[key] for key in ("repo_id", "revision", "folder", "allow_patterns")} for repo in repos]


def download_weights() -> Path:
    """Fetch what the image would get, at its commits, into .weights. Returns the folder."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    for repo in cached_repos():
        folder = REAL_WEIGHTS / repo["folder"]
        try:
            snapshot_download(
                repo["repo_id"], revision=repo["revision"], allow_patterns=repo["allow_patterns"], local_dir=folder
            )
        except (HfHubHTTPError, LocalEntryNotFoundError) as error:
            sys.exit(
                f"{repo['repo_id']} cannot be downloaded: check the network, and for a private or gated repository "
                f"set HF_TOKEN.\n{error}"
            )
    return REAL_WEIGHTS


def demo_request() -> dict[str, Any] | None:
    """Return the request that the demo's weights were made for, or None if this project cannot use them."""
    if not DEMO.is_dir():
        return None
    pipeline = read_config()["model_metadata"]["pipeline"]
    fits = json.loads((DEMO / "model_index.json").read_text("utf-8"))["_class_name"] == pipeline["class_name"]
    # The tiny LoRAs are random.
    if not fits or pipeline["loras"]:
        return None
    return dict(json.loads((DEMO / "request.json").read_text("utf-8")))


def find_weights(choice: str, temporary: Path) -> Path:
    """Return the folder that --weights means; demo and tiny are made in temporary."""
    if choice == "real":
        return download_weights()
    if choice not in ("demo", "tiny"):
        return Path(choice)
    # A process of its own: this one stays light, and needs no torch.
    made, trained = temporary / "weights", choice == "demo" and demo_request() is not None
    if choice == "demo" and not trained:
        print("This preset has no demo weights: the weights are tiny and random, so the image is noise.")
    program = PROJECT / "tiny" / "make.py"
    subprocess.run([sys.executable, program, made, *(["--trained"] if trained else [])], check=True)
    return made


def save_first_image(url: str, example: dict[str, Any], output: Path) -> None:
    """Send example, write the PNG, and print where the cold start went."""
    response = local_session().post(url + PREDICT, json=example, timeout=3600)
    if not response.ok:
        sys.exit(f"The server answered {response.status_code}: {response.text}")
    answer = response.json()
    output.write_bytes(base64.b64decode(answer["images"][0]["image"]))
    print(f"\nImage: {output}: {example['prompt']} (seed {answer['images'][0]['seed']})\nCold start, in seconds:")
    for name, seconds in answer["timings"]["cold_start"].items():
        print(f"  {name:<18}{seconds:8.2f}")


def parse_arguments() -> argparse.Namespace:
    """Return the arguments. Exits with 2 if they are wrong."""
    parser = argparse.ArgumentParser(description="Serve this Truss on this machine.")
    parser.add_argument(
        "--weights",
        default="demo",
        metavar="demo|tiny|real|DIR",
        help="demo: small ones that paint flat shapes as the prompt says, and tiny where this family has none. "
        "tiny: random weights of the same family, made here. real: downloaded at the commit in config.yaml. "
        "DIR: a folder that holds them as .weights does. Default: demo.",
    )
    parser.add_argument("--port", type=int, default=8000, help="Default: 8000. 0: any free port.")
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="The address to listen on. Default: 127.0.0.1, this machine alone. 0.0.0.0: whoever reaches this machine "
        "can use the server, and reload its code.",
    )
    parser.add_argument("--prompt", help="Make one image, print the phases of the cold start, stop. Empty: an example.")
    parser.add_argument("--output", type=Path, default=Path("image.png"), help="Where --prompt puts the PNG.")
    parser.add_argument("--context", type=Path, help="Only write the image's build context to this folder.")
    arguments = parser.parse_args()
    if arguments.weights not in ("demo", "tiny", "real") and not Path(arguments.weights).is_dir():
        parser.error(f"--weights must be demo, tiny, real or a folder, and {arguments.weights!r} is none of them.")
    if not 0 <= arguments.port <= 65535:
        parser.error(f"--port must be 0 to 65535, and is {arguments.port}.")
    return arguments


def main() -> None:
    """Do what the arguments say. Exits with one sentence if that cannot be done."""
    arguments = parse_arguments()
    try:
        if arguments.context:
            build_context(arguments.context)
        else:
            serve(arguments)
    except KeyboardInterrupt:
        pass
    except (ConfigError, RuntimeError, TimeoutError) as error:
        sys.exit(str(error))


def serve(arguments: argparse.Namespace) -> None:
    """Build the app, start the server, and end it. Raises ConfigError, RuntimeError or TimeoutError."""
    # Whatever ends this process ends the server too: see finally.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    host, port = arguments.host, arguments.port or free_port()
    refuse_busy_port(host, port)
    check_with_truss(read_config())
    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    url = f"http://[{reachable}]:{port}" if ":" in reachable else f"http://{reachable}:{port}"
    request = (demo_request() if arguments.weights == "demo" else None) or {}
    example = read_config()["model_metadata"]["example_model_input"]
    example = {**example, "prompt": request.pop("prompt", example["prompt"])}
    if arguments.prompt:
        example["prompt"] = arguments.prompt
    with tempfile.TemporaryDirectory(prefix="truss-") as temporary:
        app = Path(temporary) / "app"
        build_app(app, find_weights(arguments.weights, Path(temporary)), request)
        process = start(app, port, host)
        try:
            wait_until_ready(process, url)
            if arguments.prompt is not None:
                return save_first_image(url, example, arguments.output)
            body = json.dumps({"prompt": example["prompt"]})
            print(f"\nReady. Ctrl-C stops it. Try:\n  curl {url}{PREDICT} -d '{body}'\n", flush=True)
            process.wait()
            raise RuntimeError("The server stopped: its log says why.")
        finally:
            stop(process)


if __name__ == "__main__":
    main()
