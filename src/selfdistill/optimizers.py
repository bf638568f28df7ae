"""Optimizer and schedule from their settings: torch's and transformers' own, or the user's by `package.module:name`."""

from collections.abc import Iterable

import torch
from torch.optim.lr_scheduler import LRScheduler
from transformers import get_scheduler

from selfdistill.config import OptimizerSettings
from selfdistill.imports import load_object


def make_optimizer(parameters: Iterable[torch.nn.Parameter], settings: OptimizerSettings) -> torch.optim.Optimizer:
    """Fused AdamW, or the user's class called with (parameters, lr=, weight_decay=)."""
    if settings.name != "adamw":
        if ":" not in settings.name:
            raise ValueError(f"optimizer.name = {settings.name!r} is neither 'adamw' nor an optimizer class as package.module:name")
        return load_object(settings.name)(parameters, lr=settings.lr, weight_decay=settings.weight_decay)
    return torch.optim.AdamW(parameters, lr=settings.lr, betas=settings.betas, weight_decay=settings.weight_decay, fused=True)


def make_schedule(optimizer: torch.optim.Optimizer, settings: OptimizerSettings, *, updates: int) -> LRScheduler:
    """Learning rate over `updates` optimizer steps, after `warmup_steps` of linear rise."""
    return get_scheduler(settings.schedule, optimizer, num_warmup_steps=settings.warmup_steps, num_training_steps=updates)
