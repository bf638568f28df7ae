"""On-policy self-distillation of language-model reasoning: methods as values, one step for all of them."""

import importlib
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "train": "selfdistill.api",
    "Method": "selfdistill.method",
    "describe": "selfdistill.method",
    "diff": "selfdistill.method",
    "evaluate": "selfdistill.evaluate",
    "load_policy": "selfdistill.loading",
    "Problem": "selfdistill.types",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    """Loads torch only when something that needs it is asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module 'selfdistill' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
