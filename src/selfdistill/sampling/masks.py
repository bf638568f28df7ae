"""What is added to attention's scores so that columns are not seen."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def hiding(hidden: Bool[Tensor, "rows columns"], *, dtype: torch.dtype) -> Float[Tensor, "rows 1 1 columns"]:
    """0, and where hidden the lowest number that scores of this type can have."""
    return torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill_(hidden, torch.finfo(dtype).min)[:, None, None]
