"""Text that comes token by token is the text of all tokens, as Python decodes it; for two kinds of tokenizer."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from tests.checkpoints import byte_tokenizer
from thresher.text import StopTexts, TextStream, check_text

BYTES = byte_tokenizer()
TEXTS = st.text(st.sampled_from("ab é字🦙\ufffd"), max_size=12)


def sentencepiece() -> Tokenizer:
    """One token per character, bytes for what is not in the vocabulary, "▁" for a space, none before the first word."""
    words = ["<unk>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), "\u2581", "\u2581a", "a", "b"]
    tokenizer = Tokenizer(models.BPE({w: i for i, w in enumerate(words)}, [("\u2581", "a")], byte_fallback=True))
    tokenizer.add_special_tokens(["</s>"])
    parts = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(parts)
    return tokenizer


SENTENCEPIECE = sentencepiece()


def byte_ids(data: bytes) -> list[int]:
    """The byte tokenizer's ids of any bytes: its vocabulary lists the byte-level alphabet in code point order."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    order = printable[:94] + printable[94:] + others  # chr(256 + n) stands for the nth of the others
    return [order.index(b) for b in data]


def test_the_byte_ids_of_these_tests_are_the_tokenizers() -> None:
    text = "naïve 🦙\n字 \x00"
    assert byte_ids(text.encode()) == BYTES.encode(text, add_special_tokens=False).ids


def piece_ids(text: str) -> list[int]:
    """The SentencePiece tokenizer's ids: "▁a" where it can, a byte each for letters that it does not know."""
    ids, n = [], 0
    while n < len(text):
        if text[n : n + 2] == " a":
            ids.append(SENTENCEPIECE.token_to_id("\u2581a"))
            n += 2
        elif text[n] in " ab":
            ids.append(SENTENCEPIECE.token_to_id(text[n].replace(" ", "\u2581")))
            n += 1
        else:
            ids += [SENTENCEPIECE.token_to_id(f"<0x{b:02X}>") for b in text[n].encode()]
            n += 1
    return ids


def told(tokenizer: Tokenizer, prompt: list[int], answer: list[int], parts: list[int]) -> str:
    """What streams tell of an answer that is cut into parts, each a stream that goes on from the sequence so far."""
    text, tail, left = "", None, list(answer)
    for length in [*parts, len(answer)]:
        stream = TextStream(tokenizer, prompt, tail)
        for token in left[:length]:
            text += stream.step(token)
        left, tail = left[length:], stream.tail
    return text + stream.finish()


PARTS = st.lists(st.integers(0, 5), max_size=5)


@given(TEXTS, st.integers(0, 3), st.binary(max_size=8) | TEXTS.map(str.encode), PARTS)
def test_bytes_in_any_parts(before: str, cut: int, answer: bytes, parts: list[int]) -> None:
    prompt = before.encode()
    prompt = prompt[: max(len(prompt) - cut, 0)]  # it may end inside a character
    first, whole = prompt.decode(errors="replace"), (prompt + answer).decode(errors="replace")
    right = whole[len(first) :] if whole.startswith(first) else whole[len(first) - 1 :]
    assert told(BYTES, byte_ids(prompt), byte_ids(answer), parts) == right


@given(TEXTS, TEXTS, PARTS, st.booleans())
def test_sentencepiece_in_any_parts(before: str, answer: str, parts: list[int], special: bool) -> None:
    prompt = piece_ids(before) + [1] * special
    right = (before + answer).removeprefix(" ")[len(before.removeprefix(" ")) :]
    assert told(SENTENCEPIECE, prompt, piece_ids(answer), parts) == right


@given(TEXTS.filter(lambda text: not text.endswith("\ufffd")), PARTS)
def test_a_long_text_costs_no_character(text: str, parts: list[int]) -> None:
    whole = (text + "字" * 15 + " a🦙") * 3  # far longer than what is decoded at a time, as is each run of bytes
    assert told(BYTES, byte_ids(b"b"), byte_ids(whole.encode()), parts) == whole
    assert told(SENTENCEPIECE, piece_ids("b"), piece_ids(whole), parts) == whole


@pytest.mark.parametrize(("before", "answer", "right"), [("é", "\xffa", "�a"), ("a", "é\xffb\xff", "é�b�")])
def test_a_broken_byte_costs_no_more_than_itself(before: str, answer: str, right: str) -> None:
    byte = SENTENCEPIECE.token_to_id("<0xFF>")
    ids = [byte if c == "\xff" else token for c in answer for token in ([0] if c == "\xff" else piece_ids(c))]
    assert told(SENTENCEPIECE, piece_ids(before), ids, []) == right


def test_a_token_may_end_inside_a_character() -> None:
    names = {name: i for name, i in BYTES.get_vocab().items() if i < 256}
    tokenizer = Tokenizer(models.BPE(names | {"a\xf0": 256}, [("a", "\xf0")]))  # the emoji's first byte is \xf0
    tokenizer.decoder = decoders.ByteLevel()
    stream = TextStream(tokenizer, byte_ids(b"b"))
    assert [stream.step(token) for token in (256, *byte_ids("🦙".encode()[1:]))] == ["a", "", "", "🦙"]
    assert [stream.step(token) for token in (256, *byte_ids(b"b"))] == ["a", "\ufffdb"]
    stream = TextStream(tokenizer, byte_ids(b"b"), ([*byte_ids(b"b"), 256], "ba"))
    assert stream.step(256) == "\ufffda"


def test_what_is_complete_is_told_at_once() -> None:
    stream = TextStream(BYTES, byte_ids(b"I like "))
    assert [stream.step(token) for token in byte_ids("é🦙!".encode())] == ["", "é", "", "", "", "🦙", "!"]
    assert stream.finish() == ""


@given(
    st.lists(st.tuples(st.text("ab<>", max_size=4), st.booleans()), max_size=8),
    st.lists(st.text("ab<>", min_size=1, max_size=3), max_size=3),
)
def test_stop_texts_cut_where_the_whole_text_has_them(pieces: list[tuple[str, bool]], stops: list[str]) -> None:
    whole = "".join(piece for piece, _ in pieces)
    visible = [shown for piece, shown in pieces for _ in piece]
    # The first stop text that is complete ends the answer, so that what follows its piece does not count.
    ends = [0]
    for piece, _ in pieces:
        ends.append(ends[-1] + len(piece))
    read = next((end for end in ends if any(stop in whole[:end] for stop in stops)), len(whole))
    cut = min((at for at in (whole[:read].find(stop) for stop in stops) if at >= 0), default=len(whole))
    right = "".join(c for c, shown in zip(whole[:cut], visible, strict=False) if shown)
    held, text = StopTexts(stops), ""
    for piece, shown in pieces:
        text += held.feed(piece, shown)
        if held.found:
            break
    assert (text if held.found else text + held.rest()) == right


@pytest.mark.parametrize("text", ["half \ud83d", "caf\udce9"])
def test_text_that_is_no_unicode_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"prompt: got '.ud.*wanted text that is valid Unicode"):
        check_text("prompt", text)
    with pytest.raises(ValueError, match="stop: got "):
        StopTexts([text])
