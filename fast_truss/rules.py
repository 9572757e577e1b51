"""To be removed when no module imports it: see deployment.py and policy.py."""

from fast_truss.deployment import BOUNDS, Status, checked_autoscaling
from fast_truss.policy import Wait

__all__ = ["BOUNDS", "Status", "Wait", "checked_autoscaling"]
