"""A run's state on disk: an ordinary Hugging Face folder (or peft adapter) plus what `--resume` needs to continue bit for bit.

A checkpoint is written beside its final name and renamed when complete, so one killed mid-write is never taken for one.
"""

import json
import random
import shutil
from pathlib import Path
from typing import Any, cast

import numpy
import torch

from selfdistill.atomic import whole_folder
from selfdistill.loading import load_weights, save_policy
from selfdistill.trainer import Trainer

FORMAT = 1


def save(trainer: Trainer, run: Path, *, keep: int) -> Path:
    """Writes run/checkpoints/step_00000N and removes all but the newest `keep`. Raises OSError when the disk is full, leaving the older ones."""
    folder = run / "checkpoints" / f"step_{trainer.steps_done:06d}"
    with whole_folder(folder) as partial:
        save_policy(trainer.policy, partial)
        torch.save(_state(trainer), partial / "trainer_state.pt")
        (partial / "memory.json").write_text(json.dumps(trainer.tools.memory, indent=2) + "\n")
    prune(run, keep=keep)
    return folder


def prune(run: Path, *, keep: int) -> None:
    """Removes all but the newest `keep` checkpoints of a run."""
    for old in checkpoints(run)[:-keep]:
        shutil.rmtree(old)


def checkpoints(run: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    return sorted(p for p in (run / "checkpoints").glob("step_*") if p.suffix != ".partial" and (p / "trainer_state.pt").exists())


def step_of(folder: Path) -> int:
    """Steps behind a checkpoint, by its name."""
    return int(folder.name.removeprefix("step_"))


def shared(*runs: Path) -> list[str]:
    """The names of the checkpoints that all of these runs have, oldest first."""
    return sorted(set.intersection(*({path.name for path in checkpoints(run)} for run in runs)))


def latest(*runs: Path) -> Path:
    """The newest checkpoint of the first run that all of them have. Raises ValueError where a run has nothing to resume from."""
    if not (names := shared(*runs)):
        named = " and ".join(map(str, runs))
        raise ValueError(f"{named} has no complete checkpoint; train it again into another --output_dir (checkpoint_every sets how often one is written)")
    return runs[0] / "checkpoints" / names[-1]


def drop_after(folder: Path) -> None:
    """Removes the checkpoints that a run wrote after this one: it is resumed here, and goes another way."""
    for later in checkpoints(folder.parent.parent):
        if later.name > folder.name:
            shutil.rmtree(later)


def restore(trainer: Trainer, folder: Path) -> None:
    """Puts a trainer, begun from the run's starting weights, where the checkpoint left off. Raises ValueError on an unknown format."""
    state = require_format(folder)
    load_weights(trainer.policy, folder)
    trainer.optimizer.load_state_dict(state["optimizer"])
    trainer.schedule.load_state_dict(state["schedule"])
    for name, reader_state in state["readers"].items():
        trainer.readers[name].load_state_dict(reader_state)
    trainer.stream.drawn, trainer.steps_done = state["drawn"], state["steps_done"]
    trainer.tools.memory.clear()
    trainer.tools.memory.update(json.loads((folder / "memory.json").read_text()))
    trainer.sampler.sync(trainer.policy, trainer.steps_done)
    restore_random_state(state["random"])


def require_format(folder: Path) -> dict[str, Any]:
    """A checkpoint's state. Raises ValueError on a format unknown here."""
    state = torch.load(folder / "trainer_state.pt", weights_only=True, map_location="cpu")
    if state.get("format") != FORMAT:
        raise ValueError(f"{folder} has checkpoint format {state.get('format')}, this version reads {FORMAT}; resume it with the version that wrote it")
    return state


def _state(trainer: Trainer) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "steps_done": trainer.steps_done,
        "drawn": trainer.stream.drawn,
        "optimizer": trainer.optimizer.state_dict(),
        "schedule": trainer.schedule.state_dict(),
        "readers": {name: reader.state_dict() for name, reader in trainer.readers.items()},
        "random": random_state(),
    }


def random_state() -> dict[str, Any]:
    """Every generator a run draws from: torch's on all devices, Python's and numpy's for users' own code."""
    kind, keys, position, has_gauss, gauss = cast(tuple, numpy.random.get_state())
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(keys.astype("int64")), position, has_gauss, gauss),
    }


def restore_random_state(state: dict[str, Any]) -> None:
    """Puts every generator back to where `random_state` found it."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
    random.setstate(state["python"])
    kind, keys, *rest = state["numpy"]
    numpy.random.set_state((kind, keys.numpy().astype("uint32"), *rest))


def seed_all(seed: int) -> None:
    """One seed for every generator a run draws from."""
    torch.manual_seed(seed)
    random.seed(seed)
    numpy.random.seed(seed % 2**32)
