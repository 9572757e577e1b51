"""Bakes of the template, and its axes read from cookiecutter.json."""

import dataclasses
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from cookiecutter.main import cookiecutter
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from truss.base.truss_config import TrussConfig

TEMPLATE = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(TEMPLATE))
import catalog  # noqa: E402
from catalog.written import entry  # noqa: E402

pytest_plugins = ["platforms", "serving"]
PROJECT = TEMPLATE / "<<cookiecutter.model_name>>"
CONTEXT = json.loads((TEMPLATE / "cookiecutter.json").read_text("utf-8"))
FACTS = catalog.load()
# What a project imports of each preset, and what its repositories hold.
CATALOG = {preset: entry(facts) for preset, facts in FACTS.items()}
REPO_FILES = {repo.repo_id: repo.files for facts in FACTS.values() for repo in facts.repos.values()}
ACCELERATOR_FACTS = catalog.accelerators()
PRESETS = CONTEXT["preset"]
ACCELERATORS = CONTEXT["accelerator"]
DELIVERIES = CONTEXT["weights"]
LOADER = FileSystemLoader(TEMPLATE / "templates")
JINJA = Environment(**CONTEXT["_jinja2_env_vars"], loader=LOADER, undefined=StrictUndefined, keep_trailing_newline=True)
# `make test-all`: what finds rare things, and takes long.
ALL = "TEST_ALL" in os.environ
# In a background job of a shell Ctrl-C is ignored, and children inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# Threads of torch that wait for each other make tiny images 30 times slower beside other tests.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Files whose tests share what is costly to start.
GROUPS = {
    "platform": {f"tests/tools/test_{name}.py" for name in ("commands", "gateway", "make", "page", "plan", "wake")},
    "serving": {f"tests/test_{name}.py" for name in ("families", "hostile_input", "load_and_faults")},
}
# Files whose tests share nothing and take long.
APART = {"tests/test_emitted_model.py", "tests/test_generated_project.py"}
# With this environment a Python writes down which lines it runs. Only some do: it makes the imports a third slower.
MEASURED: dict[str, str] = {}
if "COVERAGE_FILE" in os.environ:
    MEASURED = {
        "COVERAGE_FILE": os.environ["COVERAGE_FILE"],
        "COVERAGE_PROCESS_START": str(TEMPLATE / "pyproject.toml"),
    }


def pytest_xdist_auto_num_workers() -> int:
    """One more than there are processors: some tests wait for other processes, or for time to pass."""
    return (os.cpu_count() or 1) + 1


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give each worker whole groups of files: those of a group share a server, a platform or a cache.

    xdist's own loadgroup does not hold its groups with this pytest.
    """
    from xdist.scheduler import LoadScopeScheduling

    config.option.loadscopereorder = False  # which would begin with the groups of the most tests

    class ByGroup(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.split("::")[0]
            return nodeid if file in APART else _group(file) or file

    return ByGroup(config, log)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Print the CPU time of the whole run: wall time depends on other work on the machine."""
    if not hasattr(config, "workerinput"):
        spent = os.times()
        print(f"CPU: {spent.user + spent.system + spent.children_user + spent.children_system:.0f} s")


def render(file: str, **answers: str) -> str:
    """Return the text of a file of the emitted project: a bake writes the same, and takes longer."""
    first = {name: value[0] if isinstance(value, list) else value for name, value in CONTEXT.items()}
    return source(file).render(cookiecutter={**first, **answers})


@functools.cache
def source(file: str) -> Template:
    return JINJA.from_string((PROJECT / file).read_text("utf-8"))


def render_config(**answers: str) -> TrussConfig:
    """Return config.yaml as Truss reads it."""
    text = render("config.yaml", **answers)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return TrussConfig.model_validate(yaml.load(text, catalog.LOADER))


@dataclasses.dataclass(frozen=True)
class BakedProject:
    """A project that the template emitted."""

    path: Path

    @property
    def config(self) -> dict[str, Any]:
        return yaml.load((self.path / "config.yaml").read_text("utf-8"), catalog.LOADER)

    def files(self) -> dict[str, bytes]:
        return {
            file.relative_to(self.path).as_posix(): file.read_bytes()
            for file in sorted(self.path.rglob("*"))
            if file.is_file()
        }


@pytest.fixture(scope="session", autouse=True)
def _no_user_settings(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The user's own cookiecutter settings must not decide what the tests bake."""
    folder = tmp_path_factory.mktemp("cookiecutter")
    settings = folder / "config.yaml"
    settings.write_text(yaml.safe_dump({"cookiecutters_dir": str(folder), "replay_dir": str(folder / "replay")}))
    os.environ["COOKIECUTTER_CONFIG"] = str(settings)


@pytest.fixture(scope="module")
def measured() -> Iterator[None]:
    """Count the lines that the servers of this module run."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in MEASURED.items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="session")
def bake(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., BakedProject]:
    def _bake(template: str | Path = TEMPLATE, **answers: str) -> BakedProject:
        folder = tmp_path_factory.mktemp("bake")
        return BakedProject(Path(cookiecutter(str(template), no_input=True, extra_context=answers, output_dir=folder)))

    return _bake


@pytest.fixture(scope="session", params=PRESETS)
def preset_project(request: pytest.FixtureRequest, bake: Callable[..., BakedProject]) -> tuple[str, BakedProject]:
    return request.param, bake(preset=request.param)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--preset", choices=PRESETS, help="Only the tests that are about this preset.")
    parser.addoption("--modules", help="Only these of tests/emitted, in one process: test_lora.py,test_masks.py.")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    items.sort(key=_rank)
    chosen = config.getoption("--preset")
    if chosen is None:
        return
    about = [item for item in items if chosen in presets_of(item)]
    config.hook.pytest_deselected(items=[item for item in items if item not in about])
    items[:] = about


def _rank(item: pytest.Item) -> int:
    """Return the place of the test's file: what takes minutes first, so that no worker is left alone with it."""
    file = item.nodeid.split("::")[0]
    return 0 if file == "tests/test_emitted_model.py" else 1 if _group(file) else 2


def _group(file: str) -> str | None:
    return next((group for group, files in GROUPS.items() if file in files), None)


def presets_of(item: pytest.Item) -> list[str]:
    """Return the presets that a test is about: those of its parameters, or all, where it is about each."""
    parameters = item.callspec.params.values() if hasattr(item, "callspec") else ()
    found = [value for value in parameters if isinstance(value, str) and value in PRESETS]
    return found or (PRESETS if "presets" in getattr(item, "fixturenames", ()) else [])


@pytest.fixture(scope="session")
def presets(pytestconfig: pytest.Config) -> list[str]:
    """All of them, or the one of --preset: for a test that is about each."""
    chosen = pytestconfig.getoption("--preset")
    return [chosen] if chosen else PRESETS


def git(folder: Path, *arguments: str) -> None:
    who = ["-c", "user.name=t", "-c", "user.email=t@localhost"]
    subprocess.run(["git", *who, *arguments], cwd=folder, check=True, capture_output=True)


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The template as a git repository, without what is not its own."""
    folder = tmp_path_factory.mktemp("repository") / "fast-truss"
    ignore = shutil.ignore_patterns(".git", ".venv*", "build", "__pycache__", ".*_cache", ".hypothesis")
    shutil.copytree(TEMPLATE, folder, ignore=ignore)
    git(folder, "init", "--quiet", "--initial-branch", "main")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "-m", "t")
    # A URL that ends in /.git makes cookiecutter empty its own folder of clones.
    bare = folder.with_suffix(".git")
    git(folder, "clone", "--quiet", "--bare", str(folder), str(bare))
    return bare
