"""Serve this Truss locally: the same server as in the image, without Docker, GPU or network.

`truss image build-context` writes the image's build context from the files that `truss push` would push. This module
lays them out as the image does, points a copy of config.yaml at local weights, and starts main.py.
"""

import argparse
import base64
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import yaml

PROJECT = Path(__file__).resolve().parent
sys.path += [str(PROJECT), str(PROJECT / "packages")]

from pipeline_settings import SettingsError, did_you_mean, read_settings  # noqa: E402

REAL_WEIGHTS = PROJECT / ".weights"
# A small trained pipeline with its example request, in projects whose pipeline has the same shape.
DEMO = PROJECT / "tiny" / "demo"
# Ignores HTTP_PROXY and similar variables.
OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))
PREDICT = "/v1/models/model:predict"
READY = "/v1/models/model/loaded"
# How load() ends if config.yaml or the weights are wrong, in a line of JSON.
SENTENCE = re.compile(r'(?:SettingsError|WeightsError): ([^"\\]+)')
# Environment variables to pass on: programs, libraries, GPU, locale, threads, secrets that Truss reads, coverage.
# Others, such as keys and tokens, do not reach the server.
PASSED_ON = re.compile(r"PATH|LD_LIBRARY_PATH|TMPDIR|TZ|LANG|(LC|CUDA|NVIDIA|OMP|MKL|TRUSS_SECRET|COVERAGE)_.*")
# main.py always binds 0.0.0.0, so subclass uvicorn.Config to force the host. The image has packages/ at /packages, on
# the server's path; here it is in the app.
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


def read_config() -> dict[str, Any]:
    """Return this project's config.yaml. Raises SettingsError. Every command reads it through this function."""
    read_settings(PROJECT / "config.yaml")
    return dict(yaml.safe_load((PROJECT / "config.yaml").read_text("utf-8")))


def check_with_truss(config: dict[str, Any]) -> None:
    """Raise SettingsError if Truss would refuse the config."""
    import pydantic
    from truss.base.truss_config import TrussConfig

    for unknown in (key for key in config if key not in TrussConfig.model_fields):
        hint = did_you_mean(unknown, list(TrussConfig.model_fields))
        raise SettingsError(f"config.yaml: Truss has no key {unknown}{hint}")
    try:
        TrussConfig.from_dict(config).validate_forbid_extra()
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise SettingsError(f"config.yaml: {where}: {first['msg'].removeprefix('Value error, ')}") from error
    except ValueError as error:
        raise SettingsError(f"config.yaml: {error}") from error


def pushed_files() -> list[Path]:
    """Return the files that `truss push` would push, relative to the project. Truss itself reads .truss_ignore."""
    from truss.util.path import collect_files, load_trussignore_patterns_from_truss_dir

    files = collect_files(PROJECT, load_trussignore_patterns_from_truss_dir(PROJECT))
    return sorted(file.relative_to(PROJECT) for file in files)


def build_context(target: Path) -> None:
    """Write the image's build context to target. Raises SettingsError if Truss refuses the project.

    Truss gets a copy of the config without model_cache, for which it would ask the Hub.
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
        raise SettingsError(f"Truss cannot build this project: {built.stdout.strip()}")


def build_app(app: Path, weights: Path, defaults: dict[str, Any] | None = None) -> None:
    """Lay out app as /app in the image, with weights as the cache. defaults: replace config.yaml's, within limits."""
    build_context(app / "context")
    shutil.copytree(app / "context" / "server", app, dirs_exist_ok=True)
    for folder in ("model", "data", "packages"):
        if (app / "context" / folder).is_dir():
            shutil.copytree(app / "context" / folder, app / folder)
    # Use Truss's copy of the config, which has its defaults filled in.
    config = yaml.safe_load((app / "context" / "config.yaml").read_text("utf-8"))
    pipeline = config["model_metadata"]["pipeline"]
    pipeline["weights_dir"] = str(weights.resolve())
    if defaults:  # nobody trained LoRAs for those weights, and they draw shapes
        pipeline |= {"loras": [], "safety": None}
        kept = ("pipeline", *pipeline["components"])
        pipeline["weight_files"] = {name: pipeline["weight_files"][name] for name in kept}
        limits = pipeline["limits"]
        bounds = {"num_inference_steps": (limits["min_steps"], limits["max_steps"])}
        bounds["guidance_scale"] = (0.0, limits["guidance_scale"])
        for name, value in defaults.items():
            low, high = bounds.get(name, (limits["min_size"], limits["max_size"]))
            pipeline["defaults"][name] = min(max(value, low), high)
    (app / "config.yaml").write_text(yaml.safe_dump(config), "utf-8")


def start(app: Path, port: int, host: str = "127.0.0.1", **options: Any) -> subprocess.Popen[bytes]:
    """Start the server on host and port. options go to subprocess.Popen."""
    declared = read_config()["environment_variables"]
    declared = {name: re.sub("^/app/", f"{app}/", value) for name, value in declared.items()}
    # The server writes a marker into the home folder when load() fails: keep it out of the user's.
    passed_on = {name: value for name, value in os.environ.items() if PASSED_ON.fullmatch(name)}
    environment = {**passed_on, **declared, "INFERENCE_SERVER_PORT": str(port), "HOME": str(app)}
    command = [sys.executable, "-c", LAUNCHER, host, "main.py"]
    return subprocess.Popen(command, cwd=app, env=environment, **options)


def wait_until_ready(process: subprocess.Popen[bytes], url: str, timeout: float = 600) -> None:
    """Return when load() is done. Raises RuntimeError if the server ends, TimeoutError after timeout seconds."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError("The server stopped before it was ready: see its log above.")
        try:
            OPENER.open(url + READY, timeout=5).close()
            return
        except OSError:
            time.sleep(0.1)
    raise TimeoutError(f"The server was not ready after {timeout:.0f} s.")


def stop(process: subprocess.Popen[bytes]) -> None:
    """Stop the server. It has 20 s to finish running requests."""
    process.terminate()
    try:
        process.wait(timeout=20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def free_port() -> int:
    """Return a free port on 127.0.0.1."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def refuse_busy_port(host: str, port: int) -> None:
    """Raise RuntimeError if the port is taken: another server would answer in our place."""
    try:
        socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
    except OSError as error:
        raise RuntimeError(
            f"Cannot listen on port {port} of {host} ({error.strerror}): stop the program that uses it, or set --host "
            "or --port (with make: PORT=8001)."
        ) from error


def cached_repos() -> list[dict[str, Any]]:
    """Return repo_id, revision, folder and allow_patterns of each repository that the image caches."""
    config = read_config()
    repos = [{**repo, "folder": repo["volume_folder"]} for repo in config.get("model_cache", [])]
    for source in config.get("weights", []):
        repo_id, _, revision = source["source"].removeprefix("hf://").partition("@")
        folder = Path(source["mount_location"]).name
        repos.append({**source, "repo_id": repo_id, "revision": revision, "folder": folder})
    return [{key: repo[key] for key in ("repo_id", "revision", "folder", "allow_patterns")} for repo in repos]


def download_weights() -> Path:
    """Download the cached repositories, at their commits, into .weights. Returns the folder."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    for repo in cached_repos():
        try:
            pins = {key: repo[key] for key in ("repo_id", "revision", "allow_patterns")}
            snapshot_download(**pins, local_dir=REAL_WEIGHTS / repo["folder"])
        except (HfHubHTTPError, LocalEntryNotFoundError) as error:
            sys.exit(
                f"{repo['repo_id']} cannot be downloaded: check the network, and for a private or gated repository "
                f"set HF_TOKEN.\n{error}"
            )
    return REAL_WEIGHTS


def demo_request() -> dict[str, Any] | None:
    """Return the demo's example request, or None if this project cannot use the demo's weights."""
    pipeline, index = read_config()["model_metadata"]["pipeline"], DEMO / "model_index.json"
    if not index.is_file() or json.loads(index.read_text("utf-8"))["_class_name"] != pipeline["class_name"]:
        return None
    if pipeline["loras"] or pipeline["safety"]:
        print("The demo's weights are served without the LoRAs and the safety checker of config.yaml.")
    return dict(json.loads((DEMO / "request.json").read_text("utf-8")))


def find_weights(choice: str, temporary: Path, trained: bool = False) -> Path:
    """Return the folder of weights for --weights. demo and tiny are written to temporary. trained: there is a demo."""
    if choice == "real":
        return download_weights()
    if choice not in ("demo", "tiny"):
        return Path(choice)
    # A separate process, so that this one does not import torch.
    made = temporary / "weights"
    if choice == "demo" and not trained:
        print("The demo fits only SDXL's family: using tiny random weights, so the image is noise.")
    program = PROJECT / "tiny" / "make.py"
    quiet = {**os.environ, "TQDM_DISABLE": "1", "DIFFUSERS_VERBOSITY": "critical"}
    subprocess.run([sys.executable, program, made, *(["--trained"] if trained else [])], check=True, env=quiet)
    return made


def save_first_image(url: str, example: dict[str, Any], output: Path) -> None:
    """Send example, write the PNG, and print the phases of the cold start."""
    try:
        answer = json.load(OPENER.open(url + PREDICT, json.dumps(example).encode(), timeout=3600))
    except urllib.error.HTTPError as error:
        sys.exit(f"The server answered {error.code}: {error.read().decode()}")
    output.write_bytes(base64.b64decode(answer["images"][0]["image"]))
    print(f"\nImage: {output}: {example['prompt']} (seed {answer['images'][0]['seed']})\nCold start, in seconds:")
    for name, seconds in answer["timings"]["cold_start"].items():
        print(f"  {name:<18}{seconds:8.2f}")


def print_fields() -> None:
    """Print each field of a request: type, bounds, default and description. Raises SettingsError."""
    from model.request import request_model

    shown = ("type", "enum", "minimum", "exclusiveMinimum", "maximum", "multipleOf", "maxLength", "maxItems", "default")
    schema = request_model(read_settings(PROJECT / "config.yaml")).model_json_schema()
    for owner, part in {"": schema, **schema.get("$defs", {})}.items():
        for name, field in part["properties"].items():
            found = {**next(each for each in field.get("anyOf", [field]) if each.get("type") != "null"), **field}
            facts = ", ".join(f"{key} {found[key]}" for key in shown if found.get(key) is not None)
            print(f"{owner and owner + '.'}{name} ({facts.removeprefix('type ')}): {field['description']}")


def parse_arguments() -> argparse.Namespace:
    """Return the arguments. Exits with 2 if they are wrong."""
    parser = argparse.ArgumentParser(description="Serve this Truss locally.")
    weights = "demo: trained, paints flat shapes (SDXL's family; others: tiny). tiny: random. real: downloaded at the "
    weights += "commits in config.yaml. DIR: a folder laid out like .weights. Default: demo."
    parser.add_argument("--weights", default="demo", metavar="demo|tiny|real|DIR", help=weights)
    parser.add_argument("--port", type=int, default=8000, help="0 picks a free one. Default: 8000.")
    host = "With 0.0.0.0, anybody who reaches this machine can use the server and reload its code. Default: 127.0.0.1."
    parser.add_argument("--host", default="127.0.0.1", help=host)
    parser.add_argument("--prompt", help='Generate one image, show the cold start, and stop. "" uses an example.')
    parser.add_argument("--output", type=Path, default=Path("image.png"), help="File for --prompt. Default: image.png.")
    parser.add_argument("--context", type=Path, help="Only write the image's build context to this folder.")
    parser.add_argument("--fields", action="store_true", help="Only list the fields of a request.")
    arguments = parser.parse_args()
    if arguments.weights not in ("demo", "tiny", "real") and not Path(arguments.weights).is_dir():
        parser.error(f"--weights is {arguments.weights!r}: use demo, tiny, real or a folder that exists.")
    if not 0 <= arguments.port <= 65535:
        parser.error(f"--port is {arguments.port}: use 0 to 65535.")
    return arguments


def main() -> None:
    try:
        if (arguments := parse_arguments()).context:
            build_context(arguments.context)
        elif arguments.fields:
            print_fields()
        else:
            serve(arguments)
    except KeyboardInterrupt:
        pass
    except (SettingsError, RuntimeError, TimeoutError) as error:
        sys.exit(str(error))


def serve(arguments: argparse.Namespace) -> None:
    """Build the app, and run the server until it stops. Raises SettingsError, RuntimeError or TimeoutError."""
    # Let SIGTERM run the finally below, which stops the server.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    host, port = arguments.host, arguments.port or free_port()
    refuse_busy_port(host, port)
    check_with_truss(read_config())
    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    url = f"http://[{reachable}]:{port}" if ":" in reachable else f"http://{reachable}:{port}"
    request = (demo_request() if arguments.weights == "demo" else None) or {}
    example = read_config()["model_metadata"]["example_model_input"]
    prompt = request.pop("prompt", example["prompt"])
    example["prompt"] = arguments.prompt or prompt
    with tempfile.TemporaryDirectory(prefix="truss-") as temporary:
        app = Path(temporary) / "app"
        build_app(app, find_weights(arguments.weights, Path(temporary), bool(request)), request)
        process = start(app, port, host, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        said: list[str] = []
        log = threading.Thread(target=copy_log, args=(process.stdout, said), daemon=True)
        log.start()
        try:
            wait_until_ready(process, url)
            if arguments.prompt is not None:
                return save_first_image(url, example, arguments.output)
            body = json.dumps({name: value for name, value in example.items() if name != "seed"})
            print(f"\nReady. Ctrl-C stops it. Try:\n  curl {url}{PREDICT} -d '{body}'\n", flush=True)
            process.wait()
            raise RuntimeError("The server stopped: see its log above.")
        except RuntimeError as error:
            log.join(5)  # as it ends with the server
            raise RuntimeError(said[-1] if said else str(error)) from error
        finally:
            stop(process)


def copy_log(output: Any, said: list[str]) -> None:
    """Write what the server writes, and add to said the sentences in which load() refuses."""
    for line in output:
        sys.stdout.buffer.write(line)
        sys.stdout.flush()
        said += SENTENCE.findall(line.decode(errors="replace"))


if __name__ == "__main__":
    main()
