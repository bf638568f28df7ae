"""The final answer of a free-form completion, and whether it equals the gold one: mathematics by math-verify, words as strings."""

import logging
import re
from fractions import Fraction

BOXED = "\\boxed{"
HASHES = "####"
MARK = re.compile(r"####|\banswer\b(?:\s+(?:to|of|for)\s[^.:\n]{1,60}?)?(?:\s+is\b|\**\s*[:=])\**\s*:?", re.IGNORECASE)
LONGEST = 200
"""Characters; a longer answer is compared as text, since a parser may take minutes over it."""
TEXT = re.compile(r"\\(?:text\w*|mathrm|mathbf|mathit|mbox|operatorname)\s*\{([^{}]*)\}")
UNIT = re.compile(r"(?P<formula>.*[\d)}\]])(?:\s*(?P<short>[mck]?m|kg|m?g|ml|ft|in|hrs?|mph)|\s+(?P<long>[A-Za-z]{3,}(?:\s[A-Za-z]+){0,2}))(?:\^\{?[23]\}?)?")
COMMAND = re.compile(r"\\(?:begin|end)\{\w+\}|\\[A-Za-z]+")
EXPLOSIVE = re.compile(r"(\^|\*\*)[{(\s]*\d{5,}|\d[)}\s]*(\^|\*\*)[{(\s]*\d+[)}\s]*(\^|\*\*)|\d{5,}[)}\s]*!|![\s)]*!")
"""Powers of powers, powers to enormous exponents and factorials of factorials, which sympy writes out in full."""
SPELLINGS = (
    (re.compile(r"\\[dt]frac"), r"\\frac"),
    (re.compile(r"\\(left|right)(?![A-Za-z])"), ""),
    (re.compile(r"\\\$|\$|(?<!\\)\\[!,;: ]"), " "),
    (re.compile(r"\{,\}"), ","),
    (re.compile(r"(?<![A-Za-z\\]),?\s*\b(?:and|or)\b(?![A-Za-z])"), ","),
    (re.compile(r"\s+"), " "),
)
DIGITS = r"(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+"
NUMBER = rf"(?:\\[dt]?frac\{{-?[\d.]{{1,12}}\}}\{{-?[\d.]{{1,12}}\}}|(?<![\w.])(?:(?<!\))[-\u2212])?(?:{DIGITS})(?:/\d+)?(?!\w|\.\d))"
"""A number in digits, as a pattern: 7, -7, 7.0, 1,000, 1/2, .5 or \\frac{1}{2}; not the 7 of x7, 3.7 or 7.5."""
FRACTION = re.compile(r"\\[dt]?frac\{(.*)\}\{(.*)\}")
UNITS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen"),
    *("sixteen", "seventeen", "eighteen", "nineteen"),
)
TENS = ("", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")


def final_answer(completion: str, *, multiline: bool = False) -> str | None:
    """The last \\boxed{...}, or what follows the last `####`, `Answer:` or `answer is`, whichever is later; None where there is none.

    What follows a mark ends with its line, unless the answer itself may have several lines.
    """
    text = completion.rsplit("</think>", 1)[-1]
    marks = list(MARK.finditer(text))
    boxed = text.rfind(BOXED)
    if boxed >= 0 and (not marks or boxed > marks[-1].start()):
        return _braced(text[boxed + len(BOXED) :])
    if not marks:
        return None
    following = text[marks[-1].end() :].strip()
    return (following if multiline else following.split("\n", 1)[0].strip().strip("*").rstrip(".").strip()) or None


def gold_answer(text: str) -> str | None:
    """The final answer that a dataset marks in a worked solution by \\boxed{...} or `####`; None where it marks none."""
    return final_answer(text) if BOXED in text or HASHES in text else None


def equal(answer: str, gold: str) -> bool:
    """Whether two final answers say the same: equal text, else equal formulas under the same unit (or one of them without).

    Only formulas reach math-verify, which calls anagrams and hexadecimal numbers of the same digits equal.
    """
    answer, gold = _normal(answer), _normal(gold)
    if answer == gold:
        return bool(gold)
    (answer, unit), (gold, gold_unit) = _measure(answer), _measure(gold)
    if unit and gold_unit and unit != gold_unit:
        return False
    if not (_is_formula(answer) and _is_formula(gold)):
        return answer.casefold() == gold.casefold()
    return _same_formula(answer, gold)


def score(completion: str, gold: str) -> float:
    """1 where the completion's final answer equals the gold one, else 0."""
    answer = final_answer(completion)
    return float(answer is not None and equal(answer, gold))


def number(text: str) -> Fraction | None:
    """The value of a text that is one number in digits, with or without a sign of percent or money; None of any other."""
    bare = text.strip().strip("$%\\ ") if "frac" not in text else text.strip()
    if len(bare) > LONGEST or not re.fullmatch(NUMBER, bare):
        return None
    above, below = found.groups() if (found := FRACTION.fullmatch(bare)) else (bare, "1")
    try:
        return Fraction(above.replace(",", "").replace("\u2212", "-")) / Fraction(below)
    except (ValueError, ZeroDivisionError):
        return None


def in_words(value: int) -> list[str]:
    """A whole number below a million as English words; none of a larger one."""
    if value < 0:
        return ["minus", *words] if (words := in_words(-value)) else []
    if value < 20:
        return [UNITS[value]]
    if value < 100:
        return [TENS[value // 10], *(in_words(value % 10) if value % 10 else [])]
    size, name = (100, "hundred") if value < 1000 else (1000, "thousand")
    rest = in_words(value % size) if value % size else []
    return [*in_words(value // size), name, *rest] if value < 1_000_000 else []


def _same_formula(answer: str, gold: str) -> bool:
    import math_verify

    # it warns that its timeouts are off: they need signals of the main thread, and whoever calls this kills its process instead
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    parsed_gold, parsed_answer = (math_verify.parse(f"${text}$", parsing_timeout=0) for text in (gold, answer))
    return bool(math_verify.verify(parsed_gold, parsed_answer, timeout_seconds=0))


def _braced(text: str) -> str | None:
    """The text up to the brace that closes; None where none does."""
    depth = 1
    for i, character in enumerate(text):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return text[:i].strip()
    return None


def _normal(text: str) -> str:
    """One spelling of what differs only in TeX: \\text unwrapped, spaces, delimiters and final stops removed."""
    text = TEXT.sub(r" \1 ", text)
    for pattern, replacement in SPELLINGS:
        text = pattern.sub(replacement, text)
    text = text.strip().rstrip(".").strip()
    return text[1:-1] if re.fullmatch(r"\([A-Za-z]\)", text) else text


def _measure(text: str) -> tuple[str, str]:
    """A formula and the unit behind it, singular and in lower case; the unit may be empty."""
    found = UNIT.fullmatch(text)
    if found is None:
        return text, ""
    unit = found["short"] or found["long"].lower()
    return found["formula"], unit.removesuffix("s")


def _is_formula(text: str) -> bool:
    """Text a parser of mathematics understands: short, no words, no identifiers like F1, nothing that explodes."""
    bare = COMMAND.sub(" ", text)
    product = bool(re.search(r"[\^+=\\]", text))
    if re.search(r"[A-Za-z]{3,}" if product else r"[A-Za-z]{2,}", bare) or re.search(r"[A-Za-z]\d", bare):
        return False
    return 0 < len(text) <= LONGEST and not EXPLOSIVE.search(text)
