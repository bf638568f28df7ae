"""The tiny base's tokenizer: one token a word, with a chat template; its vocabulary is the testbed's."""

from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from selfdistill.tasks.arithmetic.programs import NAMES

ROLES = ("<system>", "<user>", "<assistant>")
KEYWORDS = "answer oops key solution end peer demonstration feedback rubric skill mistake review check careless wrong right"
WORDS = (*"+-*=;?", *KEYWORDS.split(" "), *NAMES)
TEMPLATE = (
    "{% for m in messages %}{{ '<' + m['role'] + '> ' + m['content'] + ' <end> ' }}{% endfor %}{% if add_generation_prompt %}{{ '<assistant> ' }}{% endif %}"
)


def make_tokenizer(modulus: int) -> PreTrainedTokenizerFast:
    """Every number below the modulus, every name, operator and keyword is one token; any other word is <unk>."""
    vocabulary = {word: i for i, word in enumerate(("<unk>", *WORDS, *map(str, range(modulus))))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    # words and single signs, with or without spaces between them
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\w+|[^\w\s]"), behavior="removed", invert=True)
    # roles are added tokens, not words: written inside a text and split, they are unknown
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>", eos_token="<end>", additional_special_tokens=list(ROLES))
    fast.chat_template = TEMPLATE
    return fast
