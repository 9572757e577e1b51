"""What the commands and the page work out by themselves: schedules, waterfalls, forms, words. Nothing is sent."""

import asyncio
import datetime
import inspect
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from baseten.client import managementapi as sdk
from rich.console import Console
from test_client import environment
from typer.testing import CliRunner

from fast_truss import (
    ClientError,
    Event,
    InvalidInput,
    KeyRefused,
    Target,
    Unreachable,
    cli,
    console,
    doctor,
    form,
    generation,
    load,
    schedule,
    settings,
    waterfall,
)
from fast_truss.rules import Status
from fast_truss.settings import usual_sides
from fast_truss.watcher import Watcher, generating_words

NOW = datetime.datetime(2027, 1, 4, 12, tzinfo=datetime.UTC)
OFFICE = {
    "name": "office",
    "weekdays": "mon-fri",
    "on": None,
    "start": "08:45",
    "end": "18:00",
    "timezone": "Europe/Berlin",
    "min_replica": 1,
    "max_replica": None,
}


def settings_of(**changes: Any) -> Any:
    there = sdk.EnvironmentAutoscalingSchedules(schedules=[], applied_state=None)
    wanted = schedule.Wanted(**{**OFFICE, **changes})
    return schedule.settings_of(wanted, environment(autoscaling_schedules=there), NOW)


def test_a_schedule_is_what_baseten_takes() -> None:
    request = sdk.UpdateEnvironmentRequest(autoscaling_schedule_settings=settings_of())
    parsed = sdk.UpdateEnvironmentRequest.model_validate_json(request.model_dump_json(exclude_unset=True))
    (made,) = parsed.autoscaling_schedule_settings.schedules
    assert isinstance(made, sdk.AutoscalingScheduleUpsert)
    assert made.weekdays == ["MONDAY", "TUESDAY", "WEDNESDAY", "THURSDAY", "FRIDAY"]
    assert (made.start_hour, made.start_minute, made.end_hour, made.end_minute) == (8, 45, 18, 0)
    assert made.autoscaling_settings.min_replica == made.autoscaling_settings.max_replica == 1
    assert made.autoscaling_settings.scale_down_delay is None
    # All eight fields must be there.
    assert len(made.autoscaling_settings.model_fields_set) == 8


def test_one_window_is_in_its_time_zone_also_in_summer() -> None:
    (winter,) = settings_of(on="2027-02-01").schedules
    (summer,) = settings_of(on="2027-07-01").schedules
    assert winter.start_at == datetime.datetime(2027, 2, 1, 7, 45, tzinfo=datetime.UTC)
    assert summer.start_at == datetime.datetime(2027, 7, 1, 6, 45, tzinfo=datetime.UTC)


@pytest.mark.parametrize(
    ("text", "days"),
    [("mon-fri", "MTWTF"), ("sat-mon", "MSS"), ("wed", "W"), ("Mon, wednesday", "MW"), ("daily", "MTWTFSS")],
)
def test_weekdays_are_read(text: str, days: str) -> None:
    assert "".join(day[0] for day in schedule.weekdays_of(text)) == days


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"weekdays": "mon-fry"}, "--weekdays"),
        ({"weekdays": "m"}, "--weekdays"),
        ({"weekdays": "mon-wed-fri"}, "--weekdays"),
        ({"weekdays": ""}, "--weekdays"),
        ({"start": "8.45"}, "--from"),
        ({"start": "24:00"}, "--from"),
        ({"end": "08:45"}, "--to"),
        ({"end": "\u0661\u0662:00"}, "--to"),
        ({"timezone": "Berlin"}, "--timezone"),
        ({"timezone": "../../etc/passwd"}, "--timezone"),
        ({"timezone": None}, "--timezone"),
        ({"min_replica": -1}, "--min-replica"),
        ({"min_replica": 3, "max_replica": 2}, "--min-replica"),
        ({"max_replica": 0, "min_replica": 0}, "--max-replica"),
        ({"on": "31.3.2027"}, "--on"),
        ({"on": "2027-01-04", "start": "08:00"}, "--on"),
        # Clocks go forward over it: sent as it is, the window would end before it starts.
        ({"on": "2027-03-28", "start": "02:15", "end": "03:10"}, "--from is 02:15: there is no such time"),
        ({"on": "2027-03-28", "start": "01:00", "end": "02:30"}, "--to is 02:30: there is no such time"),
        ({"start": "22:00", "end": "06:00"}, "a --name each"),
        ({"name": ""}, "--name"),
        ({"name": "x" * 65}, "--name"),
    ],
)
def test_a_bad_schedule_is_a_sentence_that_names_the_field(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInput, match=field):
        settings_of(**changes)


def test_a_schedule_that_gives_way_is_named(capsys: pytest.CaptureFixture) -> None:
    (made,) = settings_of().schedules
    office = sdk.AutoscalingSchedule(**{**made.model_dump(), "id": "s1"})
    there = sdk.EnvironmentAutoscalingSchedules(timezone="Europe/Berlin", schedules=[office], applied_state=None)
    now = environment(autoscaling_schedules=there)
    saturday = {**OFFICE, "weekdays": "sat", "start": "10:00", "end": "12:00"}

    def told(name: str) -> str:
        settings = schedule.settings_of(schedule.Wanted(**{**saturday, "name": name}), now, NOW)
        schedule.tell_replaced(settings, now)
        return " ".join(capsys.readouterr().err.split())

    assert "This replaces office, which was Mon, Tue, Wed, Thu, Fri 08:45 to 18:00." in told("office")
    assert told("saturday") == ""


class Refusing:
    """A client whose workspace refuses to change schedules."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def change_schedules(self, *_: Any) -> Any:
        raise self.error


def test_schedules_that_are_off_are_no_refused_key() -> None:
    for status, kind, sentence in ((403, ClientError, "does not have Baseten's"), (401, KeyRefused, "the key")):
        refusing = Refusing(KeyRefused("Baseten refused the key.", status))
        with pytest.raises(ClientError, match=sentence) as caught:
            schedule.change(refusing, settings_of(), environment(), 60)
        assert type(caught.value) is kind
    there = sdk.EnvironmentAutoscalingSchedules(schedules=[], applied_state=None)
    with pytest.raises(KeyRefused):
        schedule.change(Refusing(KeyRefused("x", 403)), settings_of(), environment(autoscaling_schedules=there), 60)


def test_the_hour_that_comes_twice_is_the_first_of_them() -> None:
    (made,) = settings_of(on="2027-10-31", start="02:15", end="03:00").schedules
    assert made.start_at.isoformat() == "2027-10-31T02:15:00+02:00"
    assert made.end_at.isoformat() == "2027-10-31T03:00:00+01:00"


@pytest.mark.parametrize("option", ["--name", "--on", "--timezone", "--max-replica"])
def test_a_schedule_without_its_times_is_refused(option: str) -> None:
    with pytest.raises(InvalidInput, match=f"{option} is of a schedule to set"):
        cli.app(["schedule", "--model", "m", option, "1"], standalone_mode=False)


def attempt() -> sdk.StartupAttempt:
    phases = [("SCHEDULING", 0, 4000), ("IMAGE_PULL", 4000, 3000), ("READINESS", 7000, None)]
    return sdk.StartupAttempt(
        model_id="m",
        deployment_id="d",
        deployment_name="first",
        environment_name="production",
        replica_id="r",
        started_at_epoch_millis=1_000_500,
        ready_at_epoch_millis=1_017_500,
        duration_ms=17_000,
        outcome="SUCCESS",
        phase_summary=[
            sdk.StartupPhaseSummary(phase=name, status="COMPLETED", offset_ms=offset, duration_ms=duration)
            for name, offset, duration in phases
        ],
    )


SERVER = {"server_start": 1.0, "import_torch": 5.0, "read_weights": 2.0, "first_image": 3.0}
SEEN = [(0.1, "SCALED_TO_ZERO"), (1.0, "LOADING_MODEL"), (18.0, "ACTIVE")]


def test_the_server_s_phases_are_inside_the_platform_s_last() -> None:
    measured = waterfall.ColdStart(1000.0, SEEN, 18.0, 21.0, SERVER, attempt())
    bars = {bar.name: (bar.start, bar.seconds) for bar in measured.bars()}
    assert bars == {
        "SCHEDULING": (0.5, 4.0),
        "IMAGE_PULL": (4.5, 3.0),
        "READINESS": (7.5, 10.0),
        "server_start": (7.5, 1.0),
        "import_torch": (8.5, 5.0),
        "read_weights": (13.5, 2.0),
        "first image": (18.0, 3.0),
    }
    assert measured.missing() == []


def test_without_a_record_the_status_has_to_do_and_it_says_so() -> None:
    measured = waterfall.ColdStart(1000.0, SEEN, 18.0, 21.0, {}, None)
    assert [(bar.name, bar.start) for bar in measured.bars()] == [
        ("SCALED_TO_ZERO", 0.1),
        ("LOADING_MODEL", 1.0),
        ("first image", 18.0),
    ]
    assert len(measured.missing()) == 2


def test_a_waterfall_fits_any_terminal_and_a_png(tmp_path: Path) -> None:
    from PIL import Image
    from rich.console import Console

    bars = waterfall.ColdStart(1000.0, SEEN, 18.0, 21.0, SERVER, attempt()).bars()
    for width in (40, 80, 200):
        console = Console(width=width, record=True, file=(tmp_path / "out").open("w"))
        waterfall.show(bars, console)
        assert console.export_text().count("\n") == len(bars)
    waterfall.save(bars, "A cold start", tmp_path / "cold.png")
    with Image.open(tmp_path / "cold.png") as picture:
        assert picture.width > 1000
        assert waterfall.COLOURS["server"] in {colour for _, colour in picture.getcolors(1_000_000)}


@pytest.mark.parametrize("content", [b"\xff", b"a: [", b"3", b"model_cache: [a]", b"model_name: m\nresources: 3"])
def test_doctor_says_what_is_wrong_with_any_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    (tmp_path / "config.yaml").write_bytes(content)
    for module in (settings, doctor):
        monkeypatch.setattr(module, "CONFIG", tmp_path / "config.yaml")
    checks = list(doctor.before_the_push(InvalidInput("no key")))
    assert (checks[0].name, checks[0].outcome) == ("config.yaml", "failed")
    assert {check.outcome for check in checks} == {"failed"}


@pytest.mark.parametrize("name", ["x" * 300 + ".png", "file/x.png", "none/x.png"])
def test_a_name_that_no_file_can_have_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InvalidInput, match="--output"):
        generation.check_output(tmp_path / name)


def test_one_picture_is_a_text_and_several_are_a_list(tmp_path: Path) -> None:
    files = [tmp_path / "a.png", tmp_path / "b.png"]
    for file in files:
        file.write_bytes(b"hi")
    assert [generation.read_images(files[:count]) for count in range(3)] == [None, "aGk=", ["aGk=", "aGk="]]
    with pytest.raises(InvalidInput, match="--mask is"):
        generation.read_image(tmp_path / "none.png", "--mask")


@pytest.mark.parametrize("url", ["", "ftp://x"])
@pytest.mark.parametrize("command", ["doctor", "status"])
def test_an_address_that_is_none_ends_the_command(command: str, url: str) -> None:
    with pytest.raises(InvalidInput, match="--url is"):
        cli.app([command, "--url", url], standalone_mode=False)


@pytest.mark.parametrize(("percent", "value"), [(50, 2.0), (95, 4.0), (99, 4.0)])
def test_percentiles_are_the_nearest_rank(percent: int, value: float) -> None:
    assert load.percentile([4.0, 1.0, 3.0, 2.0], percent) == value
    assert load.percentile([], percent) is None


FORM = {
    "prompt": " a boat ",
    "width": 512,
    "height": 768,
    "num_images": 1,
    "steps": 4,
    "guidance_scale": 1,
    "output_format": "png",
    "quality": 90,
    "seed": "",
}
PIPELINE = {
    "image_to_image": {"class_name": "x"},
    "limits": {"prompt_characters": 20, "num_images": 4, "image_bytes": 10},
    "loras": [{"name": "pixel-art", "scale": 1.0, "fused": False}, {"name": "warm", "scale": 1.0, "fused": True}],
}


def test_a_form_is_a_request(tmp_path: Path) -> None:
    request = form.request_of(PIPELINE, FORM)
    assert (request["prompt"], request["width"], request["height"]) == ("a boat", 512, 768)
    assert not {"seed", "image", "strength", "negative_prompt", "loras"} & set(request)
    assert form.request_of(PIPELINE, {**FORM, "loras": ["pixel-art"]})["loras"] == [{"name": "pixel-art"}]
    assert form.request_of(PIPELINE, {**FORM, "seed": " 7 "})["seed"] == 7
    assert "seed" not in form.request_of(PIPELINE, {**FORM, "seed": "7", "random_seed": True})
    picture = tmp_path / "x.png"
    picture.write_bytes(b"hi")
    with_picture = form.request_of(PIPELINE, {**FORM, "image": str(picture), "strength": 0.5})
    assert (with_picture["image"], with_picture["strength"]) == ("aGk=", 0.5)
    # With a mask or as a reference, strength is the model's own.
    masked = form.request_of(PIPELINE, {**FORM, "image": str(picture), "mask": str(picture), "strength": 0.5})
    assert (masked["image"], masked["mask"], "strength" in masked) == ("aGk=", "aGk=", False)
    references = {**PIPELINE, "image_to_image": None, "reference_images": {"count": 2}}
    gallery = [(str(picture), None)] * 2
    assert len(form.request_of(references, {**FORM, "image": gallery})["image"]) == 2
    assert form.request_of(references, {**FORM, "image": gallery[:1]})["image"] == "aGk="
    with pytest.raises(InvalidInput, match="There are 3 pictures: use at most 2"):
        form.request_of(references, {**FORM, "image": [*gallery, gallery[0]]})
    without = {name: value for name, value in FORM.items() if name != "guidance_scale"}
    assert "guidance_scale" not in form.request_of(PIPELINE, without)
    reference = form.request_of({**PIPELINE, "image_to_image": None}, {**FORM, "image": str(picture)})
    assert (reference["image"], "strength" in reference) == ("aGk=", False)
    # The usual number of steps may be too few for the strength: then the model chooses.
    usual = {**PIPELINE, "defaults": {"num_inference_steps": FORM["steps"]}}
    assert "num_inference_steps" not in form.request_of(usual, {**FORM, "image": str(picture), "strength": 0.5})
    assert "num_inference_steps" in form.request_of(usual, FORM)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"prompt": None}, "The prompt is text"),
        ({"prompt": "  "}, "Write a prompt"),
        ({"prompt": "x" * 21}, "use at most 20"),
        ({"negative_prompt": 5}, "The negative prompt is text"),
        ({"seed": "9" * 5000}, "The seed is a whole number"),
        ({"seed": "1.5"}, "The seed is a whole number"),
        ({"seed": str(2**32)}, "The seed is a whole number"),
        ({"seed": "\u00b2"}, "The seed is a whole number"),
        ({"width": None}, "Width"),
        ({"height": float("nan")}, "Height"),
        ({"num_images": 5}, "Pictures"),
        ({"steps": 1e300}, "Steps"),
        ({"guidance_scale": "7"}, "Guidance"),
        ({"quality": 0}, "Quality"),
        ({"output_format": "exe"}, "The format"),
        ({"loras": ["warm"]}, "Styles: choose from pixel-art"),
        ({"loras": "pixel-art"}, "Styles: choose from pixel-art"),
        ({"loras": [["x"]]}, "Styles: choose from pixel-art"),
        ({"image": "/no/such/file"}, "The picture cannot be read"),
        ({"image": ["x"]}, "The picture cannot be read"),
        ({"mask": "x.png"}, "The mask belongs to a picture"),
    ],
)
def test_a_bad_form_is_a_sentence(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InvalidInput, match=sentence):
        form.request_of(PIPELINE, {**FORM, **changes})


def test_a_lora_is_a_name_and_perhaps_a_scale() -> None:
    assert generation.read_lora("pixel-art") == {"name": "pixel-art"}
    assert generation.read_lora("pixel-art:-0.5") == {"name": "pixel-art", "scale": -0.5}
    for text in ("pixel-art:", "pixel-art:much", "pixel-art:1:2", "pixel-art:nan", ":1"):
        with pytest.raises(InvalidInput, match=r"--lora is .* use NAME or NAME:SCALE"):
            generation.read_lora(text)


def test_a_picture_that_is_too_large_is_a_sentence(tmp_path: Path) -> None:
    picture = tmp_path / "x.png"
    picture.write_bytes(bytes(11))
    with pytest.raises(InvalidInput, match="use one of at most"):
        form.request_of(PIPELINE, {**FORM, "image": str(picture)})


def test_the_default_size_is_always_offered() -> None:
    assert usual_sides(600, {"max_size": 640, "min_size": 500, "size_multiple": 64}) == [512, 576, 600, 640]


class Waking:
    """An AsyncClient whose model needs some looks to be ready."""

    local = False

    def __init__(self, error: Exception | None = None) -> None:
        self.target = Target("m")
        self.woken = 0
        self.error = error
        self.go_on = asyncio.Event()

    async def wake(self) -> None:
        self.woken += 1
        if self.error:
            raise self.error

    async def watch(self) -> Any:
        yield Status("WAKING_UP", 0, "d", None)
        await self.go_on.wait()
        yield Status("ACTIVE", 1, "d", None)

    async def startups_summary(self, timeout: float, **window: int) -> Any:
        assert timeout < 5  # the phase stands still meanwhile
        assert window["start_epoch_millis"] < window["end_epoch_millis"]
        points = {f"p{percent}_ms": 42_400 for percent in (50, 90, 95, 99)}
        whole = sdk.StartupPercentiles(sample_count=3, mean_ms=42_400, **points)
        return sdk.StartupSummary(**window, total_duration_ms=whole, phase_duration_ms=[])


def test_all_visitors_share_one_watch() -> None:
    async def visit() -> None:
        waking = Waking()
        watcher = Watcher(waking)
        for _ in range(50):
            watcher.start()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert watcher.words() == "Waking: getting a machine (0 s, usually 42 s)"
        assert watcher.kind == "waking"
        waking.go_on.set()
        while watcher.waiting:
            await asyncio.sleep(0)
        assert (watcher.words(), watcher.kind) == ("Ready", "ready")
        # So soon after it nobody needs to ask again.
        watcher.start()
        assert waking.woken == 1

    asyncio.run(visit())


def test_what_stops_a_watch_is_said_and_the_next_visitor_tries_again() -> None:
    async def visit() -> None:
        waking = Waking(Unreachable("the platform cannot be reached"))
        watcher = Watcher(waking)
        for tries in (1, 2):
            watcher.start()
            while watcher.waiting:
                await asyncio.sleep(0)
            assert (watcher.words(), watcher.kind) == ("the platform cannot be reached", "error")
            assert waking.woken == tries

    asyncio.run(visit())


def test_progress_has_a_place_for_steps() -> None:
    assert generating_words(3.2) == "Generating (3 s)"
    assert generating_words(3.2, 4, 30) == "Step 4 of 30 (3 s)"


class Made:
    """A client whose model makes two images at once."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.answer = {"images": [{"image": "aGk=", "seed": seed} for seed in (1, 2)], "warnings": []}

    def generate(self, **request: Any) -> dict[str, Any]:
        self.asked.append("generate")
        return self.answer

    def events(self, **request: Any) -> Iterator[Event]:
        self.asked.append("events")
        yield Event("queued", {})
        for image, step in ((1, 1), (1, 2), (2, 1), (2, 2)):
            yield Event("step", {"image": image, "step": step, "of": 2, "seconds": 0.1})
        yield Event("result", self.answer)


@pytest.mark.parametrize(
    ("stream", "terminal", "asked"),
    [(None, False, "generate"), (None, True, "events"), (True, False, "events"), (False, True, "generate")],
)
def test_each_step_is_shown_on_a_terminal_or_as_asked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, stream: bool | None, terminal: bool, asked: str
) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    screen = io.StringIO()
    made, shown = Made(), Console(file=screen, force_terminal=terminal, width=120)
    for module in (console, generation):
        monkeypatch.setattr(module, "console", lambda: shown)
    generation.generate(made, {"prompt": "a boat", "num_images": 2}, tmp_path / "out.png", 60, False, stream)
    assert made.asked == [asked]
    assert [(tmp_path / f"out-{number}.png").read_bytes() for number in (1, 2)] == [b"hi"] * 2
    assert ("image 2 of 2, step 2 of 2" in screen.getvalue()) is (terminal and asked == "events")


def test_a_stream_and_a_webhook_exclude_each_other() -> None:
    result = CliRunner().invoke(
        cli.app, ["generate", "x", "--stream", "--webhook", "https://example.com/", "--model", "m"]
    )
    assert isinstance(result.exception, InvalidInput)
    assert "exclude each other" in str(result.exception)


def test_both_clients_can_do_the_same() -> None:
    from fast_truss import AsyncClient, Client

    def signatures(kind: type) -> dict[str, list[str]]:
        methods = inspect.getmembers(kind, inspect.isfunction)
        return {name: list(inspect.signature(method).parameters) for name, method in methods if name[0] != "_"}

    assert signatures(Client) == signatures(AsyncClient)
