"""What the image would install: it resolves, it is what the tests ran on, and no code comes with the weights."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ALL, PROJECT, BakedProject
from platforms import PROJECT_PYTHON

# It requires all that any preset does.
LARGEST = "flux2-klein-4b-8bit"
needs_project_python = pytest.mark.skipif(
    PROJECT_PYTHON is None, reason="PROJECT_PYTHON is not set: `make test` makes that environment and names it"
)
VERSIONS = """
import importlib.metadata, json, sys
print(json.dumps({name: importlib.metadata.version(name) for name in sys.argv[1:]}))
"""


@pytest.fixture(scope="module")
def pins(bake: Callable[..., BakedProject]) -> dict[str, str]:
    return dict(pin.split("==") for pin in bake(preset=LARGEST).config["requirements"])


@pytest.fixture(scope="module")
def resolved(bake: Callable[..., BakedProject], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return what pip would install into the image, together with what Truss's server asks for."""
    folder = tmp_path_factory.mktemp("resolve")
    context, report = folder / "context", folder / "report.json"
    subprocess.run([PROJECT_PYTHON, "local_server.py", "--context", context], cwd=bake(preset=LARGEST).path, check=True)
    requirements = context / "requirements.txt"
    # Truss's own list names a package index. It is taken out, so that the user's holds: see the emitted Makefile.
    lines = [line for line in requirements.read_text("utf-8").splitlines() if not line.startswith("-i ")]
    requirements.write_text("\n".join(lines), "utf-8")
    command = [PROJECT_PYTHON, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet", "--retries", "1"]
    command += ["--python-version", "3.11", "--only-binary", ":all:", "--target", folder / "none", "--report", report]
    command += ["-r", requirements, "-c", context / "constraints.txt"]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode and "Retrying (" in result.stderr:
        pytest.skip("pip cannot reach its package index, so nothing can be resolved")
    assert result.returncode == 0, result.stderr
    found = [package["metadata"] for package in json.loads(report.read_text("utf-8"))["install"]]
    return {package["name"].lower(): public(package["version"]) for package in found}


def public(version: str) -> str:
    """Return 2.13.0 for 2.13.0+cpu: the same release, built for another device."""
    return version.split("+")[0]


@pytest.mark.skipif(
    not ALL, reason="TEST_ALL is not set: pip takes 20 s, and `make test` has just installed the same pins together"
)
@needs_project_python
def test_the_requirements_resolve_together_with_those_of_the_server(
    resolved: dict[str, str], pins: dict[str, str]
) -> None:
    assert {name: resolved[name] for name in pins} == pins
    assert {"fastapi", "uvicorn", "truss_transfer"} <= set(resolved)


@needs_project_python
def test_the_tests_run_on_what_the_image_gets(pins: dict[str, str]) -> None:
    output = subprocess.run([PROJECT_PYTHON, "-c", VERSIONS, *pins], capture_output=True, text=True, check=True).stdout
    assert {name: public(version) for name, version in json.loads(output).items()} == pins
    checked = subprocess.run([PROJECT_PYTHON, "-m", "pip", "check"], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout


@pytest.mark.network
@needs_project_python
def test_no_package_of_the_image_has_a_known_vulnerability(resolved: dict[str, str], tmp_path: Path) -> None:
    requirements = tmp_path / "requirements.txt"
    requirements.write_text("".join(f"{name}=={version}\n" for name, version in resolved.items()), "utf-8")
    command = [sys.executable, "-m", "pip_audit", "--no-deps", "--disable-pip", "--requirement", requirements]
    command += ["--progress-spinner", "off", "--format", "json"]
    result = subprocess.run(command, capture_output=True, text=True)
    audited = json.loads(result.stdout)["dependencies"] if result.stdout else []
    unknown = [package["name"] for package in audited if "skip_reason" in package]
    # A mirror of PyPI answers for no package at all, and pip-audit calls that "no known vulnerabilities".
    if "ConnectionError" in result.stderr or (audited and len(unknown) == len(audited)):
        pytest.skip("the advisory service of PyPI, which pip-audit asks, cannot be reached")
    assert unknown == [], result.stderr
    assert {package["name"]: package["vulns"] for package in audited if package["vulns"]} == {}
    assert audited, result.stderr


def test_nothing_asks_for_the_code_of_a_repository() -> None:
    files = [file for file in PROJECT.rglob("*") if file.suffix in (".py", ".yaml", ".yml") or file.name == "Makefile"]
    assert PROJECT / "packages" / "cold_start" / "pipeline.py" in files
    for file in files:
        assert "trust_remote_code" not in file.read_text("utf-8"), file
