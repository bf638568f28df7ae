"""Which failures are a user's to mend, and the one sentence each becomes; everything else keeps its traceback."""

import errno
import sys

DISK_FULL = "the disk is full; free some space or choose another --output_dir; complete checkpoints are whole"
WRITERS = ("inline_container.cc", "PytorchStreamWriter failed", "os error 28")
"""What torch and safetensors say instead of OSError when the disk is full."""


def sentence(error: BaseException) -> str | None:
    """One sentence for bad input, a full disk or too little memory; None where the fault is not the user's."""
    if _disk_full(error):
        return DISK_FULL
    if out_of_memory(error):
        return "out of memory: lower eval.batch_size, sampling.batch_size or tokens_per_batch"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return " ".join(str(error).split()) if isinstance(error, ValueError | OSError) else None


def interrupted(error: BaseException | None) -> bool:
    """Whether it is Ctrl-C, or what a library or the interpreter raised in its place, as for one that falls into the making of a class."""
    return error is not None and (isinstance(error, KeyboardInterrupt) or interrupted(error.__cause__ or error.__context__))


def _disk_full(error: BaseException) -> bool:
    return (isinstance(error, OSError) and error.errno == errno.ENOSPC) or any(words in str(error) for words in WRITERS)


def out_of_memory(error: BaseException) -> bool:
    """MemoryError or one of torch's two, known without importing torch."""
    torch = sys.modules.get("torch")
    of_torch = torch is not None and isinstance(error, torch.OutOfMemoryError)
    return isinstance(error, MemoryError) or of_torch or "can't allocate memory" in str(error)
