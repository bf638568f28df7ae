"""The final answer of a free-form completion, and whether it equals the gold one: mathematics by math-verify, words as strings."""

import re

BOXED = "\\boxed{"
MARKED = re.compile(r"(?:####|answer\s*(?:is)?\s*[:=])\s*(.+)", re.IGNORECASE)
WORDS = re.compile(r"[A-Za-z]{2,}")
LONGEST = 400
"""Characters; a longer answer is never right and may take a parser minutes."""


def final_answer(completion: str) -> str | None:
    """The last \\boxed{...}, else what follows the last `####` or `answer:` on its line; None where there is neither."""
    text = completion.rsplit("</think>", 1)[-1]
    if BOXED in text:
        return _braced(text[text.rindex(BOXED) + len(BOXED) :])
    found = MARKED.findall(text)
    return found[-1].strip().strip("*$. ") if found else None


def equal(answer: str, gold: str) -> bool:
    """Whether two final answers say the same. Runs math-verify only on mathematics: it calls anagrams and hex values equal."""
    answer, gold = _normal(answer), _normal(gold)
    if answer == gold:
        return True
    if len(answer) > LONGEST or _is_words(gold) or _is_words(answer) or _towers(answer):
        return answer.casefold() == gold.casefold()
    from math_verify import parse, verify

    # its own timeout needs signals of the main thread; the caller's process is killed instead
    return bool(verify(parse(f"${gold}$", parsing_timeout=None), parse(f"${answer}$", parsing_timeout=None), timeout_seconds=None))


def score(completion: str, gold: str) -> float:
    """1 where the completion's final answer equals the gold one, else 0."""
    answer = final_answer(completion)
    return float(answer is not None and equal(answer, gold))


def _braced(text: str) -> str | None:
    """The text up to the brace that closes; None where none does."""
    depth = 1
    for i, character in enumerate(text):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return text[:i].strip()
    return None


def _normal(text: str) -> str:
    text = text.strip().strip("$").strip()
    return re.sub(r"\s+", " ", text.replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac").replace("\\left", "").replace("\\right", "")).rstrip(".")


def _is_words(text: str) -> bool:
    """Text that is no formula: a word outside of TeX commands, or a hexadecimal number."""
    bare = re.sub(r"\\text\{[^}]*\}|\\[A-Za-z]+", " ", text)
    return bool(WORDS.search(bare)) or text.lower().startswith("0x")


def _towers(text: str) -> bool:
    """Powers of powers, which parsers try to write out."""
    return len(re.findall(r"\^|\*\*", text)) > 1 and bool(re.search(r"\d{2,}|\d\s*(\^|\*\*)\s*\{?\d+\s*(\^|\*\*)", text))
