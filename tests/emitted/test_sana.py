"""SANA-Sprint: where its pipelines would deviate from a request."""

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import Make, Served, pixels_of
from pydantic import ValidationError


@pytest.fixture
def served(settings_of: Make, serve: Callable[..., Served]) -> Served:
    return serve(settings_of("sana-sprint", cpu_dtype="float32"))


def test_the_size_that_is_asked_is_painted_and_not_another_one_scaled(served: Served) -> None:
    shapes: list[tuple[int, ...]] = []
    served.pipeline.vae.decoder.register_forward_pre_hook(lambda _, given: shapes.append(tuple(given[0].shape[2:])))
    start = served.image(width=96, height=64)
    served.image(width=96, height=160, image=start, strength=0.5)
    assert shapes == [(2, 3), (5, 3)]


def test_each_number_of_steps_makes_its_own_image(served: Served) -> None:
    assert len({served.image(num_inference_steps=count) for count in (1, 2, 3, 4)}) == 4
    with pytest.raises(ValueError, match=r"num_inference_steps must be 2 to 4 at strength 0\.5"):
        served.image(num_inference_steps=1, image=served.image(), strength=0.5)


def test_strength_counts_in_quarters_at_four_steps(served: Served) -> None:
    """The pipeline rounds what it paints up: above three quarters the image is as good as gone."""
    start, other = (served.image(seed=seed) for seed in (5, 6))
    made = [served.image(image=start, strength=strength) for strength in (0.25, 0.5, 0.75, 1.0)]
    assert len(set(made)) == 4
    for strength, effect in ((0.25, True), (0.75, True), (0.76, False)):
        one, another = (pixels_of(served.image(image=each, strength=strength)) for each in (start, other))
        # Of it, 4 in a million are.
        assert (abs(one - another).max() > 2) == effect, strength


def test_guidance_has_an_effect_without_a_second_pass(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, true = [], served.pipeline.transformer.forward
    monkeypatch.setattr(served.pipeline.transformer, "forward", lambda *a, **m: calls.append(m) or true(*a, **m))
    assert served.image(guidance_scale=1.0) != served.image(guidance_scale=8.0)
    assert len(calls) == 2 * 4
    with pytest.raises(ValidationError, match="negative_prompt cannot be used"):
        served.ask(negative_prompt="blurry")


def test_memory_that_runs_out_while_it_decodes_is_told_as_that(
    settings_of: Make, serve: Callable[..., Served], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its pipelines catch that, and then miss the image. A client must hear that a smaller one helps."""
    served, held = serve(settings_of("sana-sprint")), []
    usual = served.image()

    def decode(*_: Any, **__: Any) -> Any:
        big = torch.zeros(1000)
        held.append(weakref.ref(big))
        raise torch.OutOfMemoryError("CUDA out of memory.")

    bodies: tuple[dict[str, Any], ...] = ({}, {"image": usual, "strength": 0.5})
    for body in bodies:
        with monkeypatch.context() as patch:
            patch.setattr(served.pipeline.vae, "decode", decode)
            patch.setattr(torch.cuda, "empty_cache", lambda: held.append(held[-1]()))
            answer = served.ask(**body)
        assert answer.status_code == 503
        assert b"too little memory" in answer.body
        assert held[-1] is None, "emptied while the traceback still held tensors"
    assert served.healthy()
    assert served.image() == usual
