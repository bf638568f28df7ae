"""From the host to a device, and how much of something a device holds."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor


def allowed(sizes: Mapping[str, int], device: torch.device) -> int:
    """A device's own of some sizes; one that is not named is taken for a CPU."""
    return sizes.get(device.type, sizes["cpu"])


def send(values: np.ndarray | Tensor, device: torch.device) -> Tensor:
    """A tensor on the device, which is not waited for: it copies from pinned memory, since a copy from any other waits for all that it is still at."""
    host = torch.from_numpy(values) if isinstance(values, np.ndarray) else values
    if device.type == "cuda" and host.device.type == "cpu":
        return host.pin_memory().to(device, non_blocking=True)
    return host.to(device)
