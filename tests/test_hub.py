"""The catalog against the Hub (marked network), and the error without a network."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx2
import pytest
from conftest import CATALOG, FACTS, REPO_FILES, TEMPLATE
from huggingface_hub import HfApi
from test_catalog import REPOS, fetched_by_model_cache

import catalog
from catalog import refresh


@pytest.mark.network
@pytest.mark.parametrize(("preset", "name"), REPOS)
def test_the_hub_has_the_commit_the_files_and_the_sizes(preset: str, name: str) -> None:
    repo = CATALOG[preset]["repos"][name]
    try:
        info = HfApi().model_info(repo["repo_id"], revision=repo["revision"], files_metadata=True)
    except httpx2.TransportError:
        pytest.fail(refresh.OFFLINE)
    # What could not be confirmed when the pin was made: if the test fails, look there first.
    print(f"Unverified: {repo.get('unverified', 'nothing')}")
    assert info.sha == repo["revision"]
    assert bool(info.gated) == (CATALOG[preset]["gated"] and name == "pipeline")
    files = {file.rfilename: file.size for file in info.siblings}
    for pattern in repo["allow_patterns"]:
        assert fetched_by_model_cache([pattern], files), f"{pattern} fetches nothing"
    for file, size in REPO_FILES.get(repo["repo_id"], {}).items():
        if size is not None and file in fetched_by_model_cache(repo["allow_patterns"], files):
            assert files[file] == pytest.approx(size, rel=0.01), file
    if set(CATALOG[preset]["repos"]) == {"pipeline"}:
        total = sum(files[file] for file in fetched_by_model_cache(repo["allow_patterns"], files))
        assert total / 1e9 == pytest.approx(CATALOG[preset]["download_gb"], rel=0.01)


@pytest.mark.parametrize("offline", [{"HF_ENDPOINT": "http://127.0.0.1:9"}, {"HF_HUB_OFFLINE": "1"}])
def test_refresh_says_in_one_sentence_that_it_is_offline(offline: dict[str, str]) -> None:
    command = [sys.executable, "-m", "catalog.refresh", "--write"]
    before = presets(TEMPLATE)
    result = subprocess.run(command, cwd=TEMPLATE, env={**os.environ, **offline}, capture_output=True, text=True)
    assert result.returncode != 0
    assert result.stderr.strip() == refresh.OFFLINE
    assert presets(TEMPLATE) == before


def presets(root: Path) -> dict[str, str]:
    return {file.name: file.read_text("utf-8") for file in (root / "catalog" / "presets").glob("*.yaml")}


def test_refresh_writes_the_newer_commits_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(TEMPLATE / "catalog", tmp_path / "catalog")
    shutil.copy2(TEMPLATE / "cookiecutter.json", tmp_path)
    before = presets(TEMPLATE)
    base = CATALOG["sdxl"]["repos"]["pipeline"]

    class Hub:
        def model_info(self, repo_id: str) -> Any:
            pinned = {r["repo_id"]: r["revision"] for p in CATALOG.values() for r in p["repos"].values()}
            sha = "c" * 40 if repo_id == base["repo_id"] else pinned[repo_id]
            return type("Info", (), {"sha": sha})

    monkeypatch.setattr(refresh, "HfApi", Hub)
    monkeypatch.setattr(sys, "argv", ["refresh.py"])
    refresh.main(tmp_path)
    assert f"{base['repo_id']}: {base['revision']} -> {'c' * 40}" in capsys.readouterr().out
    assert presets(tmp_path) == before
    monkeypatch.setattr(sys, "argv", ["refresh.py", "--write"])
    refresh.main(tmp_path)
    # sdxl-lightning takes it from sdxl.
    assert presets(tmp_path) == {**before, "sdxl.yaml": before["sdxl.yaml"].replace(base["revision"], "c" * 40)}
    moved = catalog.load(tmp_path)
    assert {name for name in moved if moved[name] != FACTS[name]} == {"sdxl", "sdxl-lightning"}
