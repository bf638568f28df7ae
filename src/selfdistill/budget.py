"""What a micro-batch takes of `tokens_per_batch`."""

from collections.abc import Sequence

from selfdistill.layouts import SAVED_SHARE

GONE_ON_FROM = 1 / 6
"""What a prompt's token that is read once takes for every row behind it: beside the row's own, its keys and values are held until backward."""


class Load:
    """The tokens of one pass, a row more at a time; padding is counted, and prompts once each where they are read once."""

    def __init__(self, *, reads_once: bool) -> None:
        self.reads_once = reads_once
        self.prompts: set[tuple[int, ...]] = set()
        """Those that differ."""
        self.rows = self.tokens = self.read_once = 0
        self.longest = self.longest_prompt = self.longest_completion = 0

    def add(self, prompt: Sequence[int], completion: Sequence[int]) -> None:
        """A row."""
        n, m, known = len(prompt), len(completion), len(self.prompts)
        self.prompts.add(tuple(prompt))
        self.rows, self.tokens = self.rows + 1, self.tokens + n + m
        self.read_once += m + (n if len(self.prompts) > known else 0)
        self.longest, self.longest_prompt = max(self.longest, n + m), max(self.longest_prompt, n)
        self.longest_completion = max(self.longest_completion, m)

    @property
    def size(self) -> float:
        """In tokens that are read and kept."""
        if not self.reads_once or self.tokens - self.read_once < SAVED_SHARE * self.tokens:
            return self.rows * self.longest
        prompts = (len(self.prompts) + GONE_ON_FROM * self.rows) * self.longest_prompt
        return prompts + self.rows * self.longest_completion
