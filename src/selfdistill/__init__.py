"""On-policy self-distillation of language-model reasoning: methods as values, one step for all of them."""

# what type checkers take for typing's own: Ctrl-C falls in fewer imports before `__main__` can catch it
TYPE_CHECKING = False
if TYPE_CHECKING:
    from selfdistill.api import train, train_pair
    from selfdistill.loading import load_policy
    from selfdistill.method import Method, describe, diff
    from selfdistill.types import Problem

__version__ = "0.1.0"
__all__ = ["Method", "Problem", "describe", "diff", "load_policy", "train", "train_pair"]

_HOMES = {
    "Method": "selfdistill.method",
    "Problem": "selfdistill.types",
    "describe": "selfdistill.method",
    "diff": "selfdistill.method",
    "load_policy": "selfdistill.loading",
    "train": "selfdistill.api",
    "train_pair": "selfdistill.api",
}


def __getattr__(name: str) -> object:
    """Loads torch only when something that needs it is asked for."""
    import importlib

    if name not in _HOMES:
        raise AttributeError(f"module 'selfdistill' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
