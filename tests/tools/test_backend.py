"""examples/backend.py: whose fault an error is."""

import asyncio
import importlib.util
import json
from types import ModuleType

import pytest
from conftest import PROJECT

from fast_truss import errors


@pytest.fixture(scope="module")
def backend() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MODEL_URL", "http://127.0.0.1:9")
        file = PROJECT / "examples" / "backend.py"
        spec = importlib.util.spec_from_file_location("backend", file)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module


@pytest.mark.parametrize(
    ("error", "status", "is_told"),
    [
        (errors.RequestRefused("width: too small", 400), 400, True),
        (errors.RequestRefused("too large", 413), 413, True),
        (errors.InvalidInput("no JSON"), 400, True),
        # Baseten refuses what this backend did.
        (errors.RequestRefused("secret words", 405), 502, False),
        (errors.KeyRefused("secret words", 401), 502, False),
        (errors.NotFound("secret words", 404), 502, False),
        (errors.ModelFailed("secret words", 500), 502, False),
        (errors.UnexpectedAnswer("secret words"), 502, False),
        (errors.Unavailable("secret words", 429, 7.0), 503, False),
        (errors.ConnectionLost("secret words"), 503, False),
        (errors.TimedOut("secret words"), 503, False),
    ],
)
def test_a_visitor_s_fault_is_told_and_ours_is_logged(
    backend: ModuleType, error: errors.ClientError, status: int, is_told: bool, caplog: pytest.LogCaptureFixture
) -> None:
    answer = asyncio.run(backend.tell(None, error))
    assert answer.status_code == status
    assert (json.loads(answer.body)["error"] == str(error)) == is_told
    assert (str(error) in caplog.text) != is_told
    assert ("retry-after" in answer.headers) == (status == 503)


def test_a_backend_without_a_model_ends_in_a_sentence(backend: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match="BASETEN_MODEL_ID is not set"):
        backend.client_of({})
    monkeypatch.delenv("BASETEN_API_KEY", raising=False)
    with pytest.raises(SystemExit, match="BASETEN_API_KEY is not set"):
        backend.client_of({"BASETEN_MODEL_ID": "abc"})
