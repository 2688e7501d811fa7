#!/usr/bin/env bash
# One would guess: decoding one token more adds to a text or completes its last character, so a stream of tokens can be shown as it comes;
# a byte that is no UTF-8 becomes one replacement character.
# True (tokenizers 0.23.3, tokenizers with byte fallback, as of Llama 2, Mistral and Gemma): neighbouring byte tokens are decoded as one run, and
# if the run is not valid as a whole, every byte in it becomes a replacement character, the good ones before the bad one too: "AB" turns into
# three of them when one bad byte follows. The text that was already given out is taken back, so `DecodeStream` raises "Invalid prefix" at the
# next token and at every later one: it does not recover.
# Why it matters: what an engine has decoded token by token (vLLM starts a new stream at the error) is another text than the decoded completion;
# whoever grades the one and trains on the other, or compares them to audit a run, finds differences that no sampling made.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check "tokenizers==0.23.3"
cd "$work"
"$work/venv/bin/python" - <<'PYTHON' | tee out.txt
from importlib.metadata import version

from tokenizers import Tokenizer, decoders, models
from tokenizers.decoders import DecodeStream

print("tokenizers", version("tokenizers"))
vocabulary = {"<unk>": 0, **{f"<0x{byte:02X}>": 1 + byte for byte in range(256)}, "▁the": 257, "▁is": 258}
tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
tokenizer.decoder = decoders.Sequence(
    [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
)
good, bad = [1 + ord("A"), 1 + ord("B")], 1 + 0xFF
print("before the bad byte:", ascii(tokenizer.decode([257, *good])))
print("after it:           ", ascii(tokenizer.decode([257, *good, bad, 258])))
stream, given = DecodeStream(skip_special_tokens=True), []
for token in [257, *good, bad, 258, 258, 257]:
    try:
        given.append(stream.step(tokenizer, token))
    except Exception as error:
        given.append(str(error).split(" while")[0])
print("token by token:     ", ascii(given))
PYTHON
grep -qF "before the bad byte: 'theAB'" out.txt || { echo "CHANGED: bytes"; exit 1; }
grep -qF "after it:            'the\ufffd\ufffd\ufffd is'" out.txt || { echo "CHANGED: good bytes stay"; exit 1; }
[ "$(grep -o "Invalid prefix encountered" out.txt | wc -l)" = 3 ] || { echo "CHANGED: the stream recovers"; exit 1; }
