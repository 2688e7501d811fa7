"""The text of sampled token ids: a batch at a time, equal to what vLLM's token by token decoding gives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

INCOMPLETE = "\ufffd"  # what a tokenizer makes of the first bytes of a character


def decode_completions(tokenizer: Any, prompt: Sequence[int], completions: Sequence[Sequence[int]]) -> list[str]:
    """Texts of one prompt's completions, without special tokens; `tokenizer` is one of the `tokenizers` library.

    A completion that was cut within a character ends before it.
    """
    context = _context(tokenizer, prompt)
    start = len(tokenizer.decode(context))
    texts = tokenizer.decode_batch([[*context, *ids] for ids in completions])
    return [
        (text if not text.endswith(INCOMPLETE) else _complete(tokenizer, context, ids))[start:]
        for text, ids in zip(texts, completions, strict=True)
    ]


def _context(tokenizer: Any, prompt: Sequence[int]) -> list[int]:
    """The end of the prompt, long enough to have a text: some tokenizers drop the space before the first word they see."""
    for count in (1, 4, 16):
        text = tokenizer.decode(list(prompt[-count:]))
        if text and INCOMPLETE not in text:
            return list(prompt[-count:])
    return list(prompt)


def _complete(tokenizer: Any, context: Sequence[int], ids: Sequence[int]) -> str:
    """The longest text of a start of `ids` that ends with a whole character."""
    for count in range(len(ids) - 1, 0, -1):
        text = tokenizer.decode([*context, *ids[:count]])
        if not text.endswith(INCOMPLETE):
            return text
    return ""
