"""A fault in the middle of a request leaves the model as it was, or says that it is not healthy."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import ALL, FAMILIES, Make, Served

FAULTS: dict[str, Any] = {
    "out of memory": torch.OutOfMemoryError("CUDA out of memory."),
    "device": torch.AcceleratorError("CUDA error: an illegal memory access was encountered"),
    "ordinary": ValueError("The test asked for it."),
    "NaN": None,
}
# A mask of one pixel, which is white.
WHITE = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR42mP4DwABAQEAHLCMmQAAAABJRU5ErkJggg=="
STAGES = ("text encoder", "step", "decode", "encode the start image")
# What a family can answer by itself, as SANA does when memory runs out. Another exception leaves all of them alike.
OWN = ("out of memory", "NaN")


def spoiled(value: Any) -> Any:
    """Return value with NaN in place of every number."""
    if isinstance(value, torch.Tensor):
        return value * float("nan") if value.is_floating_point() else value
    if isinstance(value, dict):  # also the outputs of transformers and diffusers
        for key, part in value.items():
            value[key] = spoiled(part)
        return value
    if isinstance(value, list | tuple):
        return type(value)(map(spoiled, value))
    if dataclasses.is_dataclass(value):
        return dataclasses.replace(
            value, **{f.name: spoiled(getattr(value, f.name)) for f in dataclasses.fields(value)}
        )
    if hasattr(value, "mean") and hasattr(value, "std"):  # the distribution that a VAE encodes to
        value.mean, value.std = spoiled(value.mean), spoiled(value.std)
    return value


def place(served: Served, stage: str, masked: bool = False) -> tuple[Any, str, int]:
    """Return what is called at the stage: the owner, the name, and which call fails. masked: with a mask."""
    pipeline = served.masked if masked else served.pipeline
    parts = pipeline.components
    if stage == "text encoder":
        last = max(name for name, part in parts.items() if name.startswith("text_encoder") and part is not None)
        return parts[last], "forward", 1
    if stage == "step":
        return parts.get("unet") or parts["transformer"], "forward", 2
    if stage == "decode":
        return pipeline.vae.decoder, "forward", 1
    return pipeline.vae, "encode", 1


def fail_once(owner: Any, name: str, number: int, fault: Exception | None, patch: pytest.MonkeyPatch) -> list[int]:
    """Let one call of owner.name fail, or return NaN. Returns a list that grows with each call."""
    true, calls = getattr(owner, name), []

    def call(*arguments: Any, **more: Any) -> Any:
        calls.append(len(calls) + 1)
        if calls[-1] != number:
            return true(*arguments, **more)
        if fault is not None:
            raise fault
        return spoiled(true(*arguments, **more))

    patch.setattr(owner, name, call)
    return calls


# sdxl-turbo decodes in float32, and puts its VAE back after that.
@pytest.mark.parametrize("preset", [*FAMILIES, "sdxl-turbo"])
def test_after_a_fault_the_next_image_is_the_same_or_the_model_is_not_healthy(
    preset: str, settings_of: Make, serve: Callable[..., Served]
) -> None:
    served = serve(settings_of(preset))
    few = {"num_inference_steps": max(2, served.settings.limits.min_steps)}
    text = served.image(**few)
    bodies: list[dict[str, Any]] = [few]
    bodies += [{**few, "image": text, "strength": 1.0}] if served.settings.image_to_image else []
    bodies += [{**few, "image": text, "mask": WHITE}] if served.settings.inpaint else []
    for body in bodies:
        usual = served.image(**body)
        for stage in STAGES[: None if "image" in body else 3]:
            for name, fault in FAULTS.items():
                if not (name in OWN or stage == "step" or preset == "sdxl-turbo" or ALL):
                    continue
                broken = f"{stage}, {name}"
                with pytest.MonkeyPatch.context() as patch:
                    calls = fail_once(*place(served, stage, "mask" in body), fault, patch)
                    try:
                        answer = served.ask(**body)
                    except (RuntimeError, ValueError) as error:
                        assert name in ("ordinary", "device"), (broken, error)
                    else:
                        assert answer.status_code == (503 if name == "out of memory" else 500), broken
                    assert calls, f"{broken}: never called"
                assert served.healthy() is (name != "device"), broken
                # An image proves that the device works.
                assert served.image(**body) == usual, broken
                assert served.healthy(), broken
        assert served.image(**few) == text


def test_a_fault_while_the_image_is_encoded_is_forgotten(
    settings_of: Make, serve: Callable[..., Served], monkeypatch: pytest.MonkeyPatch
) -> None:
    from model import images

    served = serve(settings_of("sd15"))
    usual = served.image()
    with monkeypatch.context() as patch:
        fail_once(images, "encode", 1, FAULTS["ordinary"], patch)
        with pytest.raises(ValueError, match="asked for it"):
            served.ask()
    assert served.image() == usual
    assert served.healthy()


# Of infinity in the last layer of a VAE the pipelines make a white image.
@pytest.mark.parametrize(("part", "number"), [("model", "nan"), ("decoder", "inf")])
@pytest.mark.parametrize("preset", FAMILIES)
def test_weights_that_make_no_numbers_are_an_error_and_then_not_healthy(
    preset: str, part: str, number: str, settings_of: Make, serve: Callable[..., Served]
) -> None:
    served = serve(settings_of(preset))
    usual = served.image()
    assert served.healthy()
    parts = served.pipeline.components
    model = parts["vae"].decoder if part == "decoder" else parts.get("unet") or parts["transformer"]
    *_, last = model.parameters()
    kept = last.data.clone()
    last.data.fill_(float(number))
    for _ in range(2):
        answer = served.ask()
        assert answer.status_code == 500
        assert b"NaN" in answer.body
        # The first is enough, as no other image can be made either.
        assert not served.healthy()
    last.data.copy_(kept)
    assert served.image() == usual
    assert served.healthy()


@pytest.mark.parametrize("preset", ["sd15", "sdxl-turbo"])
def test_requests_that_make_no_numbers_end_no_healthy_replica(
    preset: str, settings_of: Make, serve: Callable[..., Served]
) -> None:
    served = serve(settings_of(preset))
    usual = served.image()
    for stage in ("text encoder", "step", "decode", "step"):
        with pytest.MonkeyPatch.context() as patch:
            fail_once(*place(served, stage), None, patch)
            assert served.ask().status_code == 500
        assert served.healthy()
    assert served.image() == usual


@pytest.mark.parametrize("fault", ["out of memory", "device"])
def test_a_model_that_can_make_no_usual_image_either_is_not_healthy(
    fault: str, settings_of: Make, serve: Callable[..., Served], monkeypatch: pytest.MonkeyPatch
) -> None:
    served = serve(settings_of("sdxl-turbo"))
    usual = served.image()
    with monkeypatch.context() as patch:
        fail_once(*place(served, "decode"), None, patch)
        # The second decode is that of the image by which the first is judged.
        fail_once(served.pipeline.vae, "decode", 2, FAULTS[fault], patch)
        assert served.ask().status_code == 500
    assert not served.healthy()
    # Also this one's VAE is back in its dtype.
    assert served.image() == usual
    assert served.healthy()


@pytest.mark.parametrize(
    ("words", "status"),
    [
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", 503),
        ("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED", None),
        ("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm`", None),
    ],
)
def test_faults_of_cuda_libraries_are_plain_runtime_errors(
    settings_of: Make, serve: Callable[..., Served], monkeypatch: pytest.MonkeyPatch, words: str, status: int | None
) -> None:
    served = serve(settings_of("sd15"))
    fail_once(*place(served, "step"), RuntimeError(words), monkeypatch)
    if status:
        assert served.ask().status_code == status
        assert served.healthy()
        return
    with pytest.raises(RuntimeError):
        served.ask()
    assert not served.healthy()


def test_a_device_that_fails_while_it_is_cleaned_up_is_not_healthy(
    settings_of: Make, serve: Callable[..., Served], monkeypatch: pytest.MonkeyPatch
) -> None:
    served = serve(settings_of("sd15"))
    fail_once(*place(served, "step"), FAULTS["out of memory"], monkeypatch)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: (_ for _ in ()).throw(FAULTS["device"]))
    assert served.ask().status_code == 503
    assert not served.healthy()


def test_a_device_that_fails_before_an_image_request_starts_is_not_healthy(
    settings_of: Make, serve: Callable[..., Served], monkeypatch: pytest.MonkeyPatch
) -> None:
    import model.model

    served = serve(settings_of("sd15"))
    start = served.image()
    fail_once(model.model.copy, "deepcopy", 1, FAULTS["device"], monkeypatch)
    with pytest.raises(torch.AcceleratorError):
        served.ask(image=start, strength=1.0)
    assert not served.healthy()


def test_memory_is_free_when_the_client_is_told(
    settings_of: Make, serve: Callable[..., Served], monkeypatch: pytest.MonkeyPatch
) -> None:
    import weakref

    served, held = serve(settings_of("sd15")), []
    true = served.pipeline.unet.forward

    def forward(*arguments: Any, **more: Any) -> Any:
        result = true(*arguments, **more)
        big = torch.zeros(1000)
        held.append(weakref.ref(big))
        if len(held) == 2:
            raise FAULTS["out of memory"]
        return result

    monkeypatch.setattr(served.pipeline.unet, "forward", forward)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: held.append([each() for each in held]))
    assert served.ask().status_code == 503
    assert held[-1] == [None, None], "emptied while the traceback still held tensors"


@pytest.mark.parametrize("preset", FAMILIES)
def test_an_image_request_changes_nothing_for_the_next(
    preset: str, settings_of: Make, serve: Callable[..., Served]
) -> None:
    served = serve(settings_of(preset))
    if served.settings.image_to_image is None:
        pytest.skip("this family cannot start from an image")
    before = dtypes(served)
    usual = served.image()
    served.ask(image=usual, strength=0.5)
    if served.settings.inpaint:
        served.ask(image=usual, mask=WHITE, strength=0.5)
    assert served.image() == usual
    assert dtypes(served) == before


def dtypes(served: Served) -> list[torch.dtype]:
    parts = [part for part in served.pipeline.components.values() if isinstance(part, torch.nn.Module)]
    return [parameter.dtype for part in parts for parameter in part.parameters()]


def test_a_warm_up_that_fails_stops_no_replica(
    settings_of: Make, serve: Callable[..., Served], monkeypatch: pytest.MonkeyPatch
) -> None:
    import model.model

    true = model.model.read_pipeline

    def read_pipeline(*arguments: Any) -> Any:
        pipeline = true(*arguments)
        fail_once(pipeline.unet, "forward", 1, FAULTS["out of memory"], monkeypatch)
        return pipeline

    monkeypatch.setattr(model.model, "read_pipeline", read_pipeline)
    served = serve(settings_of("sd15", warm_up=True))
    assert served.healthy()
    assert served.image()
