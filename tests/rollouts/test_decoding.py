"""One batch decode of a question's completions, beside vLLM's own decoding, token by token."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from east_ray.rollouts.decoding import decode_completions

TEXT = [
    "Start with 7. Then 7 + 5 = 12, so the answer is \\boxed{12}.",
    "两个数的和是 12。Größe, naïve café: 3 × 4 = 12 😀👩‍🚀",
]


def byte_level(tiny_model: Path) -> Tokenizer:
    """As in Llama 3, Qwen and SmolLM2: a character of several bytes may take several tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(TEXT, trainers.BpeTrainer(vocab_size=320, initial_alphabet=alphabet))
    return tokenizer


def sentencepiece(tiny_model: Path) -> Tokenizer:
    """As in Llama 2, Mistral and Phi-3: the first word's space is dropped, and unknown characters fall back to bytes."""
    vocabulary = {"<unk>": 0, **{f"<0x{byte:02X}>": 1 + byte for byte in range(256)}}
    for piece in ("▁", "▁the", "▁answer", "▁is", "12", ".", "▁▁", "é", "▁+", "so"):
        vocabulary[piece] = len(vocabulary)
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)  # type: ignore[arg-type]
    return tokenizer


def characters(tiny_model: Path) -> Tokenizer:
    return Tokenizer.from_file(str(tiny_model / "tokenizer.json"))


def token_by_token(tokenizer: PreTrainedTokenizerFast, prompt: Sequence[int], ids: Sequence[int]) -> str:
    from vllm.v1.engine.detokenizer import FastIncrementalDetokenizer

    params = SimpleNamespace(
        stop=None,
        min_tokens=0,
        include_stop_str_in_output=False,
        skip_special_tokens=True,
        spaces_between_special_tokens=True,
    )
    request: Any = SimpleNamespace(request_id="", prompt_token_ids=list(prompt), sampling_params=params)
    detokenizer = FastIncrementalDetokenizer(tokenizer, request)
    for token in ids:
        detokenizer.update([token], False)
    return detokenizer.output_text


@pytest.mark.parametrize("make", [byte_level, sentencepiece, characters])
def test_batch_decode_gives_the_text_that_vllm_puts_together_token_by_token(make: Any, tiny_model: Path) -> None:
    """Of texts cut anywhere, within a character too."""
    tokenizer = make(tiny_model)
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    completions = [tokenizer.encode(text).ids[:stop] for text in TEXT for stop in range(80)]
    for prompt in (tokenizer.encode("the answer").ids, tokenizer.encode("so 12 ").ids):
        expected = [token_by_token(wrapped, prompt, ids) for ids in completions]
        assert decode_completions(tokenizer, prompt, completions) == expected


def test_special_tokens_are_no_part_of_the_text_and_the_prompts_last_space_is_not_dropped(tiny_model: Path) -> None:
    tokenizer = sentencepiece(tiny_model)
    tokenizer.add_special_tokens([AddedToken("<end>", special=True)])
    the, answer, end = (tokenizer.token_to_id(token) for token in ("▁the", "▁answer", "<end>"))
    assert decode_completions(tokenizer, [the], [[the, answer, end], [end], []]) == [" the answer", "", ""]
    assert decode_completions(tokenizer, [the, end], [[answer]]) == [" answer"]
