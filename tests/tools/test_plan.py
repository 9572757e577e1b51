"""`fast-truss plan` against another simulation, against the platform of the tests, and the example's backend."""

import concurrent.futures
import itertools
import json
import math
import random
import shlex
import statistics
import time
from types import ModuleType
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from platforms import PROJECT_PYTHON, SMALL, Platform

needs_platform = pytest.mark.skipif(
    PROJECT_PYTHON is None, reason="PROJECT_PYTHON is not set: `make test` makes that environment and names it"
)
BURSTS, WHILE_COLD, WARM = 3, 6, 8


@pytest.fixture(scope="session")
def simulation() -> ModuleType:
    from fast_truss.plan import simulation

    return simulation


def delays_of(outcome: Any) -> list[float]:
    """Seconds of each request before its image was begun."""
    return [start - at for at, start in zip(outcome.arrivals, outcome.starts, strict=True)]


def one_event_after_the_other(
    arrivals: list[float], span: float, wanted: Any, machine: Any, opened: list[float]
) -> tuple[list[float], int, float, int]:
    """The same rules as plainly as they can be written. Returns delays, cold starts, replica seconds, replicas ever."""
    events = [(at, "arrival") for at in arrivals] + [(at, "opened") for at in opened if wanted.wakes]
    for start, end in wanted.windows:
        events += [(start, "up"), (end, "down")]
    events.sort()
    least, replicas, queue, served = wanted.min_replica, [], [], []
    active, below, starts, seconds, ever = 0.0, None, 0, 0.0, 0
    decision = wanted.autoscaling_window
    for _ in range(least):
        replicas.append({"born": 0.0, "free": 0.0})
        ever += 1

    def start(now: float) -> None:
        nonlocal starts, ever
        replicas.append({"born": now, "free": now + machine.cold_start})
        starts += 1
        ever += 1

    def stop(now: float, count: int) -> None:
        nonlocal seconds, active
        for _ in range(count):
            soonest = min(replicas, key=lambda each: each["free"])
            replicas.remove(soonest)
            active = max(active, soonest["free"])  # it finishes its image
            seconds += max(now, min(soonest["free"], span)) - soonest["born"]

    while True:
        expiry = math.inf
        if least == 0 and replicas and not queue:
            expiry = max(active, *(each["free"] for each in replicas)) + wanted.scale_down_delay
        free = min((each["free"] for each in replicas), default=math.inf) if queue else math.inf
        now = min(expiry, free, decision, span, events[0][0] if events else math.inf)
        if now >= span:
            break
        if now == expiry:
            stop(now, len(replicas))
            below = None
        elif now == decision:
            decision += wanted.autoscaling_window
            if replicas:
                since = now - wanted.autoscaling_window
                flights = [*((at, begun + machine.image) for at, begun in served), *((at, now) for at in queue)]
                area = sum(max(0.0, min(end, now) - max(at, since)) for at, end in flights)
                capacity = wanted.concurrency_target * wanted.target_utilization_percentage / 100
                need = math.ceil(area / wanted.autoscaling_window / capacity - 1e-9)
                need = min(max(need, least, 1), max(wanted.max_replica, least))
                if need >= len(replicas):
                    below = None
                    for _ in range(need - len(replicas)):
                        start(now)
                elif below is None:
                    below = now
                elif now - below >= wanted.scale_down_delay:
                    stop(now, math.ceil((len(replicas) - need) * wanted.max_scale_down_rate / 100))
                    below = now
        elif events and now == events[0][0]:
            _, kind = events.pop(0)
            if kind == "arrival":
                queue.append(now)
            if kind == "up":
                least = max(least, wanted.window_replicas)
            if kind == "down":
                least = wanted.min_replica
            if kind in ("opened", "down"):
                active = max(active, now)
            for _ in range(max(least, kind in ("arrival", "opened")) - len(replicas)):
                start(now)
        while queue and min(each["free"] for each in replicas) <= now:
            soonest = min(replicas, key=lambda each: each["free"])
            served.append((queue.pop(0), now))
            soonest["free"] = now + machine.image
    for at in queue:
        soonest = min(replicas, key=lambda each: each["free"])
        served.append((at, soonest["free"]))
        soonest["free"] += machine.image
    stop(span, len(replicas))
    return [begun - at for at, begun in served], starts, seconds, ever


@settings(max_examples=300, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    seed=st.integers(0, 2**32),
    count=st.one_of(st.integers(0, 40), st.integers(100, 400)),
    crowded=st.booleans(),
    least=st.integers(0, 2),
    more=st.integers(0, 3),
    delay=st.sampled_from([0, 10, 60, 200]),
    window=st.sampled_from([10, 30, 60]),
    target=st.integers(1, 3),
    rate=st.sampled_from([10, 50]),
    wakes=st.booleans(),
    windows=st.integers(0, 2),
    window_replicas=st.integers(1, 3),
    cold_start=st.sampled_from([0.0, 7.1, 45.3]),
    image=st.sampled_from([0.51, 5.03, 30.07]),
)
def test_it_is_as_another_simulation_has_it(simulation: ModuleType, **drawn: Any) -> None:
    chance = random.Random(drawn["seed"])
    span = 1500.0
    # Times without other events, so that their order is unambiguous.
    # Crowded: most of them come within a minute or two, so that they queue.
    some = [chance.gauss(chance.choice((300, 900)), 40) for _ in range(drawn["count"] if drawn["crowded"] else 0)]
    some += [chance.uniform(0, span) for _ in range(drawn["count"] - len(some) // 2)]
    arrivals = sorted(at for at in some if 0 < at < span)
    opened = sorted(max(0.0, at - chance.expovariate(1 / 40)) for at in arrivals)
    # Who is woken within a window of the last end has its decision in the next one: no such delay is ever tried.
    delay = max(drawn["delay"], drawn["window"] if drawn["wakes"] else 0)
    moments = sorted(chance.uniform(0, span) for _ in range(2 * drawn["windows"]))
    wanted = simulation.Settings(
        drawn["least"],
        max(1, drawn["least"] + drawn["more"]),
        delay,
        drawn["window"],
        drawn["target"],
        max_scale_down_rate=drawn["rate"],
        wakes=drawn["wakes"],
        windows=tuple(zip(moments[::2], moments[1::2], strict=True)),
        window_replicas=drawn["window_replicas"],
    )
    machine = simulation.Machine(drawn["cold_start"], drawn["image"])
    outcome = simulation.simulate(arrivals, span, wanted, machine, opened)
    delays, starts, seconds, ever = one_event_after_the_other(arrivals, span, wanted, machine, opened)
    assert delays_of(outcome) == pytest.approx(delays, abs=1e-6)
    assert outcome.cold_starts == starts
    # Whole minutes are paid for.
    assert seconds - 1e-6 <= outcome.billed <= seconds + 60 * ever


@settings(max_examples=100, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**32), count=st.integers(1, 200), delay=st.sampled_from([10, 60, 600]))
def test_what_must_be_so_whatever_comes(simulation: ModuleType, seed: int, count: int, delay: int) -> None:
    chance = random.Random(seed)
    arrivals = sorted(chance.uniform(0, 18_000) for _ in range(count))  # all are served by the end
    machine = simulation.Machine(40.0, 5.0)

    def outcome(least: int, most: int, **more: Any) -> Any:
        wanted = simulation.Settings(least, most, delay, **more)
        return simulation.simulate(arrivals, 20_000.0, wanted, machine, arrivals)

    # With a replica for each nobody waits; with one more nobody waits longer.
    assert delays_of(outcome(count, count)) == [0.0] * count
    one, two, zero = outcome(1, 1), outcome(2, 2), outcome(0, 1)
    assert all(more <= less + 1e-6 for more, less in zip(delays_of(two), delays_of(one), strict=True))
    assert all(more <= less + 1e-6 for more, less in zip(delays_of(one), delays_of(zero), strict=True))
    # Nobody is lost, nobody overtakes, and no replica makes two images at once.
    begun = [at + delay for at, delay in zip(arrivals, delays_of(zero), strict=True)]
    assert all(after - before >= 5.0 - 1e-6 for before, after in itertools.pairwise(begun))
    # All images are paid for, and never more than a replica that is always there, but for the rest of a minute.
    assert count * 5.0 <= zero.billed <= one.billed + 60.0 * zero.cold_starts
    # To wake at the moment of the request is to ask.
    assert delays_of(outcome(0, 1, wakes=True)) == pytest.approx(delays_of(zero), abs=1e-6)


def send_in_bursts(platform: Platform, cold_start: float, delay: float) -> tuple[list[float], list[float], list[float]]:
    """Send requests while a replica starts and after it, and again when it is gone.

    Returns when they were sent, the seconds of each, and those of the warm ones.
    """
    started = time.monotonic()
    found, warm = [], []

    def send(at: float) -> tuple[float, float]:
        time.sleep(max(0.0, at - time.monotonic()))
        sent = time.monotonic()
        http.post(f"{platform.url}/model-model/production/predict", json=SMALL).raise_for_status()
        return sent - started, time.monotonic() - sent

    # The platform closes a connection that is silent for some seconds.
    limits = httpx.Limits(max_keepalive_connections=0)
    headers = {"Authorization": "Api-Key good-key"}
    with (
        httpx.Client(timeout=300, limits=limits, headers=headers) as http,
        concurrent.futures.ThreadPoolExecutor(WHILE_COLD) as pool,
    ):
        for _ in range(BURSTS):
            # From the last answer on, however busy the machine is: nothing is sent before the replica is gone, in the
            # simulation too, where every cold start takes as long as the mean one.
            begin = time.monotonic() + (delay + 2.0 + cold_start / 2 if found else 0.0)
            found += pool.map(send, [begin + cold_start * number / WHILE_COLD for number in range(WHILE_COLD)])
            for _ in range(WARM):
                found.append(send(time.monotonic() + 0.1))
                warm.append(found[-1][1])
    return [sent for sent, _ in found], [seconds for _, seconds in found], warm


@needs_platform
def test_it_predicts_what_the_platform_does(simulation: ModuleType, platform: Platform) -> None:
    platform.set(load_seconds=2.0, image_seconds=0.05)
    began = time.monotonic()
    assert platform.post("predict", **SMALL).is_success
    cold_start = time.monotonic() - began
    began = time.monotonic()
    assert platform.post("predict", **SMALL).is_success
    image = time.monotonic() - began
    # Longer than any pause within a burst, and much shorter than that between two.
    delay = max(1.0, cold_start / WHILE_COLD * 2, 4 * image)
    platform.set(scale_to_zero=True)
    platform.set(autoscaling={**platform.tell()["autoscaling"], "scale_down_delay": delay})
    before = platform.tell()["starts"]
    sent, seconds, warm = send_in_bursts(platform, cold_start, delay)
    starts = platform.tell()["starts"] - before

    size = WHILE_COLD + WARM
    # What goes into it is of the same run. A cold start ends as long before the first answer as an image takes: those
    # who wait for it are not answered in their order, which is the same for their mean.
    image = statistics.median(warm)
    answered = [at + waited for at, waited in zip(sent, seconds, strict=True)]
    first = [min(answered[place : place + size]) - sent[place] for place in range(0, len(sent), size)]
    measured = statistics.mean(first) - image
    machine = simulation.Machine(measured, image)
    outcome = simulation.simulate(sent, sent[-1] + 1, simulation.Settings(0, 1, delay), machine)
    mean, predicted = statistics.mean(seconds), outcome.mean() + image
    print(f"first answers {first}, seconds of a burst {seconds[:size]}")
    print(f"cold start {measured:.3f} s, image {image:.3f} s: mean {mean:.3f} s, predicted {predicted:.3f} s")
    assert outcome.cold_starts == pytest.approx(starts, rel=0.15)
    assert starts >= BURSTS
    assert predicted == pytest.approx(mean, rel=0.15)


@needs_platform
def test_plan_asks_the_platform_and_what_it_recommends_is_taken(awake: Platform) -> None:
    pattern = ["--pattern", "weekdays 9 to 18, 40 an hour", "--image-seconds", "0.5"]
    result = awake.run("plan", *pattern, "--p95", "1000", "--json")
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["machine"]["usd_an_hour"] == 0.6
    assert found["machine"]["cold_start"] > 0
    (command,) = found["recommended"]["command"].splitlines()
    # Whoever may wait for 1000 s has it cheapest.
    assert found["recommended"]["usd"] == min(row["usd"] for row in found["settings"])
    words = shlex.split(command)
    assert words[0] == "fast-truss"
    result = awake.run(*words[1:])
    assert result.returncode == 0, result.stderr
    assert awake.tell()["autoscaling"]["scale_down_delay"] == 60
    assert any("startups that Baseten recorded" in sentence for sentence in found["assumptions"])


@needs_platform
def test_plan_says_what_baseten_does_not_tell(awake: Platform) -> None:
    awake.set(has_startups=False)
    result = awake.run("plan", "--pattern", "1 an hour", "--image-seconds", "4")
    assert result.returncode == 1
    assert "set --cold-start" in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr
