"""What /metrics, where Truss shows prometheus_client's registry, tells of requests."""

import contextlib
import time
from collections.abc import Iterator

from prometheus_client import Counter, Histogram
from pydantic import ValidationError

REQUESTS = Counter("image_requests", "Requests, by the HTTP status that they ended in, in streams too", ["status"])
BUCKETS = (0.5, 1, 2, 3, 5, 7.5, 10, 15, 20, 30, 45, 60, 120, 300, 600)
SECONDS = Histogram("image_request_seconds", "From a request's arrival to its images, if it got some", buckets=BUCKETS)


@contextlib.contextmanager
def counted(arrived: float | None = None) -> Iterator[None]:
    """Count a request that ends in this block. arrived: by time.perf_counter(). None: it ends here if it fails."""
    status = 500
    try:
        yield
        status = 200
    except Exception as error:
        status = 400 if isinstance(error, ValidationError) else getattr(error, "status_code", 500)
        raise
    finally:
        if status != 200 or arrived is not None:
            REQUESTS.labels(status).inc()
        if status == 200 and arrived is not None:
            SECONDS.observe(time.perf_counter() - arrived)
