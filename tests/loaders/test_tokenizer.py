"""Tokenizers rebuilt from GGUF metadata against their algorithms, written out plainly here; stop tokens and bos."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from loaders.generation import Generation, Suggested, load_generation
from loaders.gguf.special import special_ids, tokenizer_config
from loaders.gguf.tokenizer import tokenizer_json
from loaders.settings import Settings
from loaders.tokenizer import load_tokenizer, special_tokens

TEXTS = st.text(alphabet="abcde  \n\t.,'sStT00119é́中🙂_-", max_size=30) | st.lists(
    st.sampled_from(["cab", "01", "0", " "])
).map("".join)
VISIBLE = [*range(33, 127), *range(161, 173), *range(174, 256)]  # bytes that byte-level BPE writes as themselves
LETTER_OF = {b: chr(b) for b in VISIBLE} | {
    b: chr(256 + n) for n, b in enumerate(b for b in range(256) if b not in VISIBLE)
}
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?[^\W\d_]+| ?\d+| ?(?:[^\s\w]|_)+|\s+(?!\S)|\s+"
GPT4 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|(?:[^\r\n\w]|_)?[^\W\d_]+|\d{1,N}| ?(?:[^\s\w]|_)+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
WORDS: dict[str, Callable[[str], list[str]]] = {
    "gpt-2": lambda text: re.findall(GPT2, text),
    "smollm": lambda text: [word for part in re.split(r"(\d)", text) for word in re.findall(GPT2, part)],
    "qwen2": lambda text: re.findall(GPT4.replace("N", "1"), unicodedata.normalize("NFC", text)),
    "llama-bpe": lambda text: re.findall(GPT4.replace("N", "3"), text),
    "deepseek-v3": lambda text: deepseek_words(text),
}


def deepseek_words(text: str) -> list[str]:
    """Cut three times, by the kinds of letters: d a number, c Chinese or Japanese, a one of ASCII and l another, m a
    mark, p punctuation or a symbol of ASCII and s another, n a line's end, a space, t other white space."""

    def kind(letter: str) -> str:
        category = unicodedata.category(letter)[0]
        if letter in "\r\n":
            return "n"
        if letter.isspace():
            return letter if letter == " " else "t"
        kinds = {"N": "d", "L": "al", "M": "mm", "P": "ps", "S": "ps"}.get(category, "oo")
        return kinds[0] if letter.isascii() or len(kinds) == 1 else kinds[1]

    parts = [text]
    for pattern in (r"d{1,3}", r"c+", r"pa+|[^nalps]?[alm]+| ?[ps]+n*|[ tn]*n+|[ tn]+(?![^ tn])|[ tn]+"):
        cut = []
        for part in parts:
            kinds = "".join("c" if pattern == "c+" and "一" <= letter <= "龥" else kind(letter) for letter in part)
            edges = sorted({0, len(part), *(edge for match in re.finditer(pattern, kinds) for edge in match.span())})
            cut += [part[start:stop] for start, stop in pairwise(edges)]
        parts = cut
    return parts


@dataclass
class Files:
    """A checkpoint that is nothing but texts."""

    texts: dict[str, Any]
    config: dict[str, Any] = field(default_factory=dict)
    path: Path = Path("some-model")

    def text(self, name: str) -> str | None:
        value = self.texts.get(name)
        return value if value is None or isinstance(value, str) else json.dumps(value)

    def texts_in(self, folder: str, suffix: str) -> list[str]:
        inside = [name.removeprefix(f"{folder}/") for name in self.texts if name.startswith(f"{folder}/")]
        return sorted(name.removesuffix(suffix) for name in inside if name.endswith(suffix))

    def names(self) -> list[str]:
        raise NotImplementedError

    def shape(self, name: str) -> tuple[int, ...]:
        raise NotImplementedError

    def tensor(self, name: str) -> np.ndarray:
        raise NotImplementedError

    def file_of(self, name: str) -> Path:
        raise NotImplementedError


def from_metadata(metadata: dict[str, Any]) -> Files:
    settings = Settings(metadata, "some.gguf")
    files = {
        "tokenizer.json": tokenizer_json(settings),
        "tokenizer_config.json": tokenizer_config(settings),
        "generation_config.json": special_ids(settings),
    }
    return Files(files)


def byte_level(pre: str, **changes: Any) -> dict[str, Any]:
    """256 bytes, three merges of digits and 146 random ones over the letters that TEXTS draws, a token that no merge
    makes, two control tokens, a user-defined one and two that pad."""
    rng = np.random.default_rng(1)
    tokens = [*(LETTER_OF[b] for b in range(256)), "cab", "01", "010", "0101"]
    merges = ["0 1", "01 0", "01 01"]
    parts = [LETTER_OF[b] for b in "abcdeé中 '\ns".encode()]
    while len(tokens) < 406:
        left, right = (parts[int(i)] for i in rng.integers(0, len(parts), 2))
        if left + right not in tokens:
            merges.append(f"{left} {right}")
            tokens.append(left + right)
            parts.append(left + right)
    types = [1] * len(tokens) + [3, 3, 4, 5, 5]
    tokens += ["<s>", "</s>", "<think>", "[PAD1]", "[PAD2]"]
    keys: dict[str, Any] = {
        "model": "gpt2",
        "pre": pre,
        "tokens": tokens,
        "token_type": types,
        "merges": merges,
        "bos_token_id": 406,
        "eos_token_id": 407,
    }
    return {f"tokenizer.ggml.{key}": value for key, value in (keys | changes).items()}


def bpe(symbols: list[str], ranks: dict[tuple[str, str], int]) -> list[str]:
    """Merge the leftmost pair of the lowest rank until no pair has one."""
    while pairs := [(ranks[pair], i) for i, pair in enumerate(pairwise(symbols)) if pair in ranks]:
        _, i = min(pairs)
        symbols = [*symbols[:i], symbols[i] + symbols[i + 1], *symbols[i + 2 :]]
    return symbols


@pytest.fixture(scope="module")
def tokenizers() -> dict[str, Tokenizer]:
    return {pre: load_tokenizer(from_metadata(byte_level(pre))) for pre in WORDS}


@pytest.mark.parametrize("pre", WORDS)
@given(text=TEXTS)
def test_byte_level_tokens_are_those_of_the_algorithm(tokenizers: dict[str, Tokenizer], pre: str, text: str) -> None:
    metadata = byte_level(pre)
    tokens = metadata["tokenizer.ggml.tokens"]
    ranks = {tuple(merge.split(" ")): rank for rank, merge in enumerate(metadata["tokenizer.ggml.merges"])}
    wanted = []
    for word in WORDS[pre](text):
        letters = [LETTER_OF[b] for b in word.encode()]
        whole = "".join(letters)
        wanted += [whole] if pre == "llama-bpe" and whole in tokens else bpe(letters, ranks)
    got = tokenizers[pre].encode(text, add_special_tokens=False).ids
    assert [tokens[i] for i in got] == wanted
    assert tokenizers[pre].decode(got) == (unicodedata.normalize("NFC", text) if pre == "qwen2" else text)


@pytest.mark.parametrize("pre", WORDS)
@given(text=TEXTS)
def test_words_are_cut_as_the_manner_says(tokenizers: dict[str, Tokenizer], pre: str, text: str) -> None:
    """Also where no merge shows it."""
    text = unicodedata.normalize("NFC", text) if pre == "qwen2" else text
    cutter: Any = tokenizers[pre].pre_tokenizer
    got = [word for word, _ in cutter.pre_tokenize_str(text)]
    assert got == ["".join(LETTER_OF[b] for b in word.encode()) for word in WORDS[pre](text)]


def test_special_tokens_are_found_in_text_and_padding_is_gone(tokenizers: dict[str, Tokenizer]) -> None:
    tokenizer = tokenizers["smollm"]
    encoded = tokenizer.encode("a</s>b<think> <s>", add_special_tokens=False)
    assert [i for i in encoded.ids if i >= 406] == [407, 408, 406]
    assert tokenizer.decode(encoded.ids) == "ab<think> "  # control tokens are not text, user-defined ones are
    assert tokenizer.decode(encoded.ids, skip_special_tokens=False) == "a</s>b<think> <s>"
    assert tokenizer.token_to_id("[PAD1]") is None
    assert tokenizer.get_vocab_size() == 409


@pytest.mark.parametrize(
    ("pre", "flag", "added"), [("smollm", None, False), ("smollm", True, True), ("llama-bpe", None, True)]
)
def test_bos_is_written_where_the_file_wants_it(pre: str, flag: bool | None, added: bool) -> None:
    files = from_metadata(byte_level(pre, add_bos_token=flag))
    tokenizer = load_tokenizer(files)
    assert (tokenizer.encode("ab").ids[0] == 406) is added
    assert 406 not in tokenizer.encode("ab", add_special_tokens=False).ids
    assert load_generation(files, tokenizer) == Generation((407,), 406, added, Suggested())
    assert special_tokens(files) == {"bos_token": "<s>", "eos_token": "</s>"}


SPACE = "\u2581"
PIECES = [SPACE, "a", "b", "c", "é", "ab", SPACE + "a", "abc", "bc", SPACE + "ab", "ca", "aa", SPACE * 2, "abca"]


def sentencepiece(**changes: Any) -> dict[str, Any]:
    """<unk>, <s>, </s>, the 256 bytes, and pieces of distinct scores in an order that has nothing to do with length."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *PIECES]
    scores = [0.0] * 259 + [float(-s) for s in np.random.default_rng(3).permutation(len(PIECES))]
    keys: dict[str, Any] = {
        "model": "llama",
        "tokens": tokens,
        "scores": scores,
        "token_type": [2, 3, 3] + [6] * 256 + [1] * len(PIECES),
        "unknown_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    return {f"tokenizer.ggml.{key}": value for key, value in (keys | changes).items()}


@pytest.mark.parametrize("prefix", [True, False])
@given(text=st.text(alphabet="abc  é中\n", min_size=1, max_size=20))
def test_sentencepiece_tokens_are_those_of_the_algorithm(prefix: bool, text: str) -> None:
    """The leftmost neighbours whose union has the highest score merge; letters without a piece are bytes."""
    metadata = sentencepiece(add_space_prefix=prefix)
    score = dict(zip(metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.scores"], strict=True))
    symbols = list((SPACE if prefix else "") + text.replace(" ", SPACE))
    while pairs := [(-score[a + b], i) for i, (a, b) in enumerate(pairwise(symbols)) if a + b in score]:
        _, i = min(pairs)
        symbols = [*symbols[:i], symbols[i] + symbols[i + 1], *symbols[i + 2 :]]
    wanted = [part for s in symbols for part in ([s] if s in score else [f"<0x{b:02X}>" for b in s.encode()])]
    tokenizer = load_tokenizer(from_metadata(metadata))
    encoded = tokenizer.encode(text, add_special_tokens=False)
    assert encoded.tokens == wanted
    assert tokenizer.decode(encoded.ids) == text
    assert tokenizer.encode(text).ids[0] == 1  # this kind starts with bos unless the file says otherwise


def test_user_defined_pieces_match_whole() -> None:
    tokens = [*sentencepiece()["tokenizer.ggml.tokens"], SPACE * 3, "\n\n"]
    types = [*sentencepiece()["tokenizer.ggml.token_type"], 4, 4]
    metadata = sentencepiece(tokens=tokens, token_type=types, scores=[0.0] * len(tokens), add_space_prefix=False)
    tokenizer = load_tokenizer(from_metadata(metadata))
    encoded = tokenizer.encode("a   b\n\nc", add_special_tokens=False)
    assert encoded.tokens == ["a", SPACE * 3, "b", "\n\n", "c"]
    assert tokenizer.decode(encoded.ids) == "a   b\n\nc"


@pytest.mark.parametrize(
    ("metadata", "line"),
    [
        (byte_level("tekken"), r"tokenizer.ggml.pre: got 'tekken', wanted one of gpt-2, smollm"),
        (byte_level("smollm", model="t5"), r"tokenizer.ggml.model: got 't5', wanted gpt2 or llama"),
        (byte_level("smollm", merges=["ab"]), r"merges: got 'ab', wanted two tokens with a space between"),
        (byte_level("smollm", bos_token_id=409), r"bos_token_id: got 409, wanted an id below 409"),
        (byte_level("smollm", token_type=[1]), r"token_type: got 1 entries, wanted one for each of 411 tokens"),
        (sentencepiece(scores=[0.0]), r"scores: got 1 entries, wanted one for each of 273 tokens"),
        (sentencepiece(tokens="abc"), r"tokens: got something else, wanted an array of str"),
    ],
)
def test_wrong_vocabularies_are_named(metadata: dict[str, Any], line: str) -> None:
    with pytest.raises(ValueError, match=rf"some.gguf: tokenizer.ggml.{line.removeprefix('tokenizer.ggml.')}"):
        from_metadata(metadata)


def test_unreadable_tokenizer_files_are_named() -> None:
    with pytest.raises(FileNotFoundError, match=r"some-model: got no tokenizer.json"):
        load_tokenizer(Files({}))
    with pytest.raises(ValueError, match=r"some-model: tokenizer.json: got one that does not load"):
        load_tokenizer(Files({"tokenizer.json": {"model": {"type": "BPE", "vocab": {}, "merges": [["a", "b"]]}}}))
    tokenizer = load_tokenizer(from_metadata(byte_level("smollm")))
    with pytest.raises(ValueError, match=r"some-model: generation_config.json: got text that is not JSON"):
        load_generation(Files({"generation_config.json": "{"}), tokenizer)
    with pytest.raises(ValueError, match=r"some-model: tokenizer_config.json: got a JSON list, wanted an object"):
        load_generation(Files({"tokenizer_config.json": []}), tokenizer)


@pytest.mark.parametrize(
    ("texts", "config", "stop_ids"),
    [
        ({"generation_config.json": {"eos_token_id": [5, 3]}}, {"eos_token_id": 9}, (5, 3)),
        ({"generation_config.json": {"eos_token_id": 5}}, {}, (5,)),
        ({"generation_config.json": {"eos_token_id": [5, -1]}}, {}, (5,)),
        ({"generation_config.json": {"eos_token_id": -1}}, {"eos_token_id": 9}, (9,)),
        ({"special_tokens_map.json": {"eos_token": "</s>"}}, {}, (407,)),
        ({"generation_config.json": {}}, {"eos_token_id": 9}, (9,)),
        ({"generation_config.json": {"eos_token_id": 0}}, {"eos_token_id": 9}, (0,)),
        ({"tokenizer_config.json": {"eos_token": "</s>"}}, {"eos_token_id": None}, (407,)),
        ({"tokenizer_config.json": {"eos_token": {"content": "</s>", "special": True}}}, {}, (407,)),
        ({"tokenizer_config.json": {"eos_token": "<unheard>"}}, {}, ()),
        ({}, {}, ()),
    ],
)
def test_stop_tokens_come_from_the_first_file_that_names_them(texts: dict, config: dict, stop_ids: tuple) -> None:
    tokenizer = load_tokenizer(from_metadata(byte_level("smollm")))
    assert load_generation(Files(texts, config), tokenizer).stop_ids == stop_ids


def test_bos_is_what_the_tokenizer_writes() -> None:
    """As in transformers: flags and names in the files beside tokenizer.json do not change it."""
    texts = from_metadata(byte_level("llama-bpe")).texts
    tokenizer = load_tokenizer(Files(texts))
    for config in ({"bos_token": "<s>"}, {"bos_token": "</s>"}, {"add_bos_token": False}, {}):
        found = load_generation(Files({"tokenizer_config.json": config}), tokenizer)
        assert (found.bos_id, found.add_bos) == (406, True)
    plain = load_tokenizer(from_metadata(byte_level("smollm")))
    found = load_generation(Files({"tokenizer_config.json": {"bos_token": "<s>", "add_bos_token": True}}), plain)
    assert (found.bos_id, found.add_bos) == (406, False)


@pytest.mark.parametrize(
    ("given", "suggested"),
    [
        ({}, Suggested()),
        ({"temperature": 0.7, "top_k": 5}, Suggested()),  # without do_sample they are not used
        ({"do_sample": True}, Suggested(1.0)),
        (
            {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95, "min_p": 0.05},
            Suggested(0.6, 20, 0.95, 0.05),
        ),
        ({"do_sample": True, "top_k": 50.0, "temperature": None, "top_p": None}, Suggested(1.0, 50)),
        ({"do_sample": True, "top_k": 0, "top_p": 1.0, "min_p": 0}, Suggested(1.0, None, 1.0, None)),
        ({"do_sample": True, "top_k": -1, "top_p": 0.0, "temperature": -1.0}, Suggested()),
        ({"do_sample": True, "top_k": "many", "top_p": 2, "temperature": "hot", "min_p": True}, Suggested()),
        ({"do_sample": True, "temperature": float("nan"), "top_k": float("inf")}, Suggested()),
        ({"do_sample": True, "top_k": 10**400}, Suggested(1.0)),
        ({"repetition_penalty": 1.1}, Suggested(repetition_penalty=1.1)),
        ({"repetition_penalty": 1.0}, Suggested()),
        ({"repetition_penalty": 0}, Suggested()),
        ({"do_sample": "yes", "temperature": 0.5}, Suggested()),
    ],
)
def test_suggested_sampling_is_the_authors_and_never_an_error(given: dict, suggested: Suggested) -> None:
    tokenizer = load_tokenizer(from_metadata(byte_level("smollm")))
    assert load_generation(Files({"generation_config.json": given}), tokenizer).suggested == suggested


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"eos_token_id": "two"}, "eos_token_id: got 'two', wanted a token id or a list of them"),
        ({"eos_token_id": [1, 2.5]}, r"eos_token_id: got \[1, 2.5\], wanted a token id"),
    ],
)
def test_wrong_generation_configs_are_named(given: dict, line: str) -> None:
    tokenizer = load_tokenizer(from_metadata(byte_level("smollm")))
    with pytest.raises(ValueError, match=f"some-model: generation_config.json: {line}"):
        load_generation(Files({"generation_config.json": given}), tokenizer)
