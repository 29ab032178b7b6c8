"""A decoder that says yes or no to a query and a document: how they are written, and which tokens are compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from bundle.errors import UnsupportedConfigError
from export.checkpoint import Checkpoint
from export.embedding import EmbeddingOptions, StateVectors, read_template
from export.vocabulary import Vocabulary

_PARTS = (
    "{% for part in message.content %}{% if part.type == 'image' %}{{ image }}{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}"
)


@dataclass(frozen=True)
class Ranking:
    """How a model that ranks was trained to be asked.

    Attributes:
        template: A chat template's source: the first message that is no system's is the query, the second the document.
        yes: The token that says that they fit.
        no: The token that says that they do not.
    """

    template: str
    yes: str = "yes"
    no: str = "no"


RANKINGS: Mapping[str, Ranking] = {
    "qwen3-reranker": Ranking(
        "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
        'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n<Instruct>: '
        "{% if messages[0].role == 'system' %}{% for part in messages[0].content %}{{ part.text }}{% endfor %}"
        "{% else %}Given a search query, retrieve relevant candidates that answer the query.{% endif %}"
        "{% for message in messages if message.role != 'system' %}"
        "{% if loop.first %}<Query>:{% else %}{{ '\\n' }}<Document>:{% endif %}" + _PARTS + "{% endfor %}"
        "<|im_end|>\n<|im_start|>assistant{{ '\\n' }}"
    ),
    "lamra": Ranking(
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
        "I will provide you with a query and a candidate. Please evaluate whether the candidate"
        + 24
        * " "
        + "meets the requirements of the query. If it does, respond with 'Yes'; if it doesn't, responed with 'No'."
        "{% for message in messages if message.role != 'system' %}"
        "{% if loop.first %}Query:{% else %}Candidate:{% endif %}" + _PARTS + "{% endfor %}"
        "<|im_end|>\n<|im_start|>assistant{{ '\\n' }}",
        "Yes",
        "No",
    ),
}
"""By the name that `--template` takes: Qwen3-VL-Reranker's and LamRA-Rank's (arXiv 2412.01720), each as its
published code writes a pair, blanks and misspelling included. A file's template is asked for yes and no."""
_DEFAULT = "qwen3-reranker"


def found_ranking(source: Checkpoint, options: EmbeddingOptions) -> StateVectors:
    """Return how a checkpoint that answers is made to rank.

    Raises:
        UnsupportedConfigError: A template that is neither name nor file, or a vocabulary without the two words.
    """
    if options.pooling is not None:
        raise UnsupportedConfigError(
            f"--pooling {options.pooling} is of vectors; with --task rank the last token's state decides. Leave it out"
        )
    name = options.template or _DEFAULT
    how = RANKINGS[name] if name in RANKINGS else Ranking(read_template(name, RANKINGS))
    ids, words = Vocabulary.read(source.folder, lower_cases=False).ids, (how.yes, how.no)
    if lacking := [word for word in words if word not in ids]:
        raise UnsupportedConfigError(
            f"--task rank compares the tokens {' and '.join(words)}, and {source.folder}/tokenizer.json has no "
            f"{' nor '.join(lacking)}"
        )
    return StateVectors("last", template=how.template, choice=(ids[how.yes], ids[how.no]))
