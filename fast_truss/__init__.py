"""Wake, watch and call the model after the push. `fast-truss --help` shows the commands.

    from fast_truss import AsyncClient, Client, Target

    client = Client(Target("MODEL_ID"))
    client.wake()                                  # returns at once
    answer = client.generate("a lighthouse")       # goes through a cold start
    for event in client.events("a lighthouse"):    # the same, step by step; the last event holds the answer
        print(event.kind, event.data.get("step"))

Transport, paths and models come from Baseten's SDK. This package adds waiting until the model is ready, retries through
a cold start, and readable errors. It is not pushed.
"""

from fast_truss.blocking import Client as Client
from fast_truss.client import AsyncClient as AsyncClient
from fast_truss.deployment import Status as Status
from fast_truss.deployment import Target as Target
from fast_truss.errors import ClientError as ClientError
from fast_truss.errors import ConnectionLost as ConnectionLost
from fast_truss.errors import DeploymentFailed as DeploymentFailed
from fast_truss.errors import InvalidInput as InvalidInput
from fast_truss.errors import KeyRefused as KeyRefused
from fast_truss.errors import ModelFailed as ModelFailed
from fast_truss.errors import NotFound as NotFound
from fast_truss.errors import NotReady as NotReady
from fast_truss.errors import RequestRefused as RequestRefused
from fast_truss.errors import TimedOut as TimedOut
from fast_truss.errors import Unavailable as Unavailable
from fast_truss.errors import UnexpectedAnswer as UnexpectedAnswer
from fast_truss.errors import Unreachable as Unreachable
from fast_truss.events import Event as Event
from fast_truss.events import image_bytes as image_bytes
