"""Everything that happens after the push: wake, watch and call the model. `fast-truss --help` shows the commands.

    from fast_truss import AsyncClient, Client, Target

    client = Client(Target("MODEL_ID"))
    client.wake()                                  # returns at once
    answer = client.generate("a lighthouse")       # goes through a cold start
    for event in client.events("a lighthouse"):    # the same, step by step; the last event holds the answer
        print(event.kind, event.data.get("step"))

Transport, paths and models are those of Baseten's SDK. This adds what it lacks: waiting until the model is ready,
going through a cold start, and sentences for people. It is not pushed.
"""

from fast_truss.blocking import Client
from fast_truss.client import AsyncClient
from fast_truss.deployment import Status, Target
from fast_truss.errors import (
    ClientError,
    ConnectionLost,
    DeploymentFailed,
    InvalidInput,
    KeyRefused,
    ModelFailed,
    NotFound,
    NotReady,
    RequestRefused,
    TimedOut,
    Unavailable,
    UnexpectedAnswer,
    Unreachable,
)
from fast_truss.events import Event, image_bytes

__all__ = [
    "AsyncClient",
    "Client",
    "ClientError",
    "ConnectionLost",
    "DeploymentFailed",
    "Event",
    "InvalidInput",
    "KeyRefused",
    "ModelFailed",
    "NotFound",
    "NotReady",
    "RequestRefused",
    "Status",
    "Target",
    "TimedOut",
    "Unavailable",
    "UnexpectedAnswer",
    "Unreachable",
    "image_bytes",
]
