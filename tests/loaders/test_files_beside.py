"""The files beside tokenizer.json count as they do in transformers, which is asked where it is installed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

import thresher
from loaders.generation import Suggested, load_generation
from loaders.tokenizer import load_tokenizer, special_tokens
from tests.loaders.files import LLAMA, llama_tensors, write_checkpoint
from tests.loaders.test_tokenizer import Files, byte_level, from_metadata

CLASS = {"tokenizer_class": "PreTrainedTokenizerFast"}
NAMES = {**CLASS, "bos_token": "<s>", "eos_token": "</s>"}
PLAIN = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False, "special": True}
NEW = 409  # the first id that tokenizer.json does not use


def tokenizer_json(pre: str = "smollm", **changes: Any) -> dict[str, Any]:
    made = from_metadata(byte_level(pre)).texts["tokenizer.json"]
    return {**json.loads(json.dumps(made)), **changes}


def decoder(**tokens: Any) -> dict[str, Any]:
    """added_tokens_decoder of tokens by content: an id, or an id and what differs from PLAIN."""
    pairs = {name: value if isinstance(value, tuple) else (value, {}) for name, value in tokens.items()}
    return {str(i): {"content": f"<{name}>", **PLAIN, **more} for name, (i, more) in pairs.items()}


def written(bos: str) -> dict[str, Any]:
    """A post-processor that writes this token first."""
    first, text = {"SpecialToken": {"id": bos, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    number = {"<s>": 406, "<think>": 408}[bos]
    special = {bos: {"id": bos, "ids": [number], "tokens": [bos]}}
    pair = [first, text, {"Sequence": {"id": "B", "type_id": 1}}]
    return {"type": "TemplateProcessing", "single": [first, text], "pair": pair, "special_tokens": special}


TRUNCATION = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
PADDING = {
    "strategy": {"Fixed": 16},
    "direction": "Right",
    "pad_to_multiple_of": None,
    "pad_id": 407,
    "pad_type_id": 0,
    "pad_token": "</s>",
}
TEXT = "ab <new> cab<more>  b</s> <think> ab"
BOTH = {"new": NEW, "more": NEW + 1}
# Files, and the ids above those of plain text that TEXT then has.
CASES: dict[str, tuple[dict[str, Any], list[int]]] = {
    "nothing beside": ({}, [407, 408]),
    "truncation": ({"tokenizer.json": tokenizer_json(truncation=TRUNCATION)}, [407, 408]),
    "padding": ({"tokenizer.json": tokenizer_json(padding=PADDING)}, [407, 408]),
    "listed": ({"tokenizer_config.json": {**NAMES, "added_tokens_decoder": decoder(**BOTH)}}, [NEW, NEW + 1, 407, 408]),
    "listed with other ids": (
        {"tokenizer_config.json": {**NAMES, "added_tokens_decoder": decoder(new=900, more=500)}},
        [NEW + 1, NEW, 407, 408],
    ),
    "listed with other traits": (
        {
            "tokenizer_config.json": {
                **NAMES,
                "added_tokens_decoder": decoder(think=(408, {"lstrip": True, "rstrip": True})),
            }
        },
        [407, 408],
    ),
    "added_tokens.json": (
        {"tokenizer_config.json": NAMES, "added_tokens.json": {"<more>": NEW, "<new>": NEW + 1}},
        [NEW + 1, NEW, 407, 408],
    ),
    "added_tokens.json beside a list": (
        {
            "tokenizer_config.json": {**NAMES, "added_tokens_decoder": decoder(new=NEW)},
            "added_tokens.json": {"<more>": NEW},
        },
        [NEW, 407, 408],
    ),
    "named only": ({"tokenizer_config.json": {**NAMES, "pad_token": "<new>"}}, [NEW, 407, 408]),
    "additional": ({"tokenizer_config.json": {**NAMES, "additional_special_tokens": ["<more>"]}}, [NEW, 407, 408]),
    "extra": ({"tokenizer_config.json": {**NAMES, "extra_special_tokens": {"image_token": "<new>"}}}, [NEW, 407, 408]),
    "map": ({"tokenizer_config.json": CLASS, "special_tokens_map.json": {"sep_token": "<new>"}}, [NEW, 407, 408]),
    "map beside a list": (
        {
            "tokenizer_config.json": {**NAMES, "added_tokens_decoder": decoder(more=NEW)},
            "special_tokens_map.json": {"sep_token": "<new>"},
        },
        [NEW, 407, 408],
    ),
}
SPECIALS: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
    "config": ({"tokenizer_config.json": NAMES}, {"bos_token": "<s>", "eos_token": "</s>"}),
    "map alone": (
        {"tokenizer_config.json": CLASS, "special_tokens_map.json": {"eos_token": {"content": "</s>"}}},
        {"eos_token": "</s>"},
    ),
    "map wins": (
        {"tokenizer_config.json": {**CLASS, "eos_token": "<s>"}, "special_tokens_map.json": {"eos_token": "</s>"}},
        {"eos_token": "</s>"},
    ),
    "map loses against a list": (
        {
            "tokenizer_config.json": {**CLASS, "eos_token": "<s>", "added_tokens_decoder": decoder(s=406)},
            "special_tokens_map.json": {"eos_token": "</s>"},
        },
        {"eos_token": "<s>"},
    ),
}


def files(texts: dict[str, Any]) -> Files:
    return Files({"tokenizer.json": tokenizer_json(), "tokenizer_config.json": NAMES, **texts})


def live(texts: dict[str, Any], folder: Path) -> Any:
    """What transformers makes of the files."""
    transformers = pytest.importorskip("transformers")
    for name, content in files(texts).texts.items():
        (folder / name).write_text(json.dumps(content))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    return transformers.AutoTokenizer.from_pretrained(folder)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", CASES)
def test_tokens_are_those_of_transformers(case: str, tmp_path: Path) -> None:
    texts, above = CASES[case]
    tokenizer = load_tokenizer(files(texts))
    got = tokenizer.encode(TEXT, add_special_tokens=False).ids
    assert [i for i in got if i >= 406] == above
    assert len(tokenizer.encode("cab " * 40, add_special_tokens=False).ids) > 80
    assert len(tokenizer.encode("b").ids) == 1
    theirs = live(texts, tmp_path)
    for text in (TEXT, "cab " * 40, "  <think>  </s>", "<new>"):
        ids = load_tokenizer(files(texts)).encode(text, add_special_tokens=False).ids
        assert ids == theirs(text, add_special_tokens=False)["input_ids"], text
        assert tokenizer.decode(ids) == theirs.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", SPECIALS)
def test_special_tokens_are_those_of_transformers(case: str, tmp_path: Path) -> None:
    texts, wanted = SPECIALS[case]
    assert special_tokens(files(texts)) == wanted
    assert live(texts, tmp_path).special_tokens_map == wanted


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("add_bos", [None, True, False])
@pytest.mark.parametrize(("bos", "number"), [(None, None), ("<s>", 406), ("<think>", 408)])
def test_the_bos_that_is_written(bos: str | None, number: int | None, add_bos: bool | None, tmp_path: Path) -> None:
    """Only tokenizer.json decides: neither the flag beside it nor the token called bos."""
    config = NAMES if add_bos is None else {**NAMES, "add_bos_token": add_bos}
    texts = {"tokenizer.json": tokenizer_json(post_processor=bos and written(bos)), "tokenizer_config.json": config}
    found = load_generation(files(texts), load_tokenizer(files(texts)))
    assert (found.bos_id, found.add_bos) == (number or 406, bos is not None)
    theirs = live(texts, tmp_path)("b")["input_ids"]
    assert theirs[:-1] == ([number] if number else [])


@pytest.mark.parametrize(
    ("texts", "line"),
    [
        ({"tokenizer_config.json": {"added_tokens_decoder": [1]}}, "added_tokens_decoder: got .1., wanted an object"),
        (
            {"tokenizer_config.json": {"added_tokens_decoder": {"x": {"content": "a"}}}},
            "decoder: x: got .*, wanted an id",
        ),
        (
            {"tokenizer_config.json": {"added_tokens_decoder": {"4": {}}}},
            "decoder: 4: got {}, wanted an id with a token",
        ),
        ({"added_tokens.json": {"<x>": "4"}}, "added_tokens.json: <x>: got '4', wanted a token id"),
        ({"special_tokens_map.json": "[]"}, "special_tokens_map.json: got a JSON list, wanted an object"),
    ],
)
def test_files_that_make_no_sense_are_named(texts: dict[str, Any], line: str) -> None:
    with pytest.raises(ValueError, match=f"some-model: .*{line}"):
        load_tokenizer(
            files(texts) if "tokenizer_config.json" in texts else Files({"tokenizer.json": tokenizer_json(), **texts})
        )


def test_the_package_itself_reads_the_file_that_the_cases_change() -> None:
    """So that a case fails for its change and not for the file."""
    assert Tokenizer.from_str(json.dumps(tokenizer_json())).get_vocab_size() == NEW


def test_the_authors_sampling_is_the_models(tmp_path: Path) -> None:
    """Values that nobody uses stop nothing; those that can be used are there to be taken."""
    write_checkpoint(tmp_path, {**LLAMA, "vocab_size": 420}, llama_tensors({**LLAMA, "vocab_size": 420}))
    given = {"do_sample": True, "temperature": 0.6, "top_k": -1, "top_p": 0.9, "repetition_penalty": 1.1}
    for name, content in files({"generation_config.json": given}).texts.items():
        (tmp_path / name).write_text(json.dumps(content))
    llm = thresher.load(tmp_path, backend="reference")
    assert llm.suggested_sampling == Suggested(temperature=0.6, top_p=0.9, repetition_penalty=1.1)
    assert isinstance("".join(llm.generate("cab", max_new_tokens=1)), str)
