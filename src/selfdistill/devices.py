"""From the host to a device."""

import numpy as np
import torch
from torch import Tensor


def send(values: np.ndarray | Tensor, device: torch.device) -> Tensor:
    """A tensor on the device, which is not waited for: it copies from pinned memory, since a copy from any other waits for all that it is still at."""
    host = torch.from_numpy(values) if isinstance(values, np.ndarray) else values
    if device.type == "cuda" and host.device.type == "cpu":
        return host.pin_memory().to(device, non_blocking=True)
    return host.to(device)
