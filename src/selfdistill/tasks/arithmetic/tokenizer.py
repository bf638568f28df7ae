"""The tiny base's tokenizer: one token a word, with a chat template; its vocabulary is the testbed's."""

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from selfdistill.tasks.arithmetic.programs import NAMES

SPECIAL = ("<pad>", "<unk>", "<end>", "<system>", "<user>", "<assistant>")
WORDS = (
    *("+ - * = ; ? answer oops key solution end peer demonstration feedback rubric skill mistake review check careless wrong right".split()),
    *NAMES,
)
TEMPLATE = (
    "{% for m in messages %}{{ '<' + m['role'] + '> ' + m['content'] + ' <end> ' }}{% endfor %}{% if add_generation_prompt %}{{ '<assistant> ' }}{% endif %}"
)


def make_tokenizer(modulus: int) -> PreTrainedTokenizerFast:
    """Every number below the modulus, every name, operator and keyword is one token; any other word is <unk>."""
    vocabulary = {word: i for i, word in enumerate((*SPECIAL, *WORDS, *map(str, range(modulus))))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", eos_token="<end>", additional_special_tokens=["<system>", "<user>", "<assistant>"]
    )
    fast.chat_template = TEMPLATE
    return fast
