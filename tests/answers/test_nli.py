"""A tiny random classifier of transformers: which probability is read, and which way round."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from thresher.answers.nli import Entailment  # noqa: E402

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "rain", "falls", "?", "yes", "no", "maybe"]


def write_model(directory: Path, labels: list[str]) -> Path:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=24,
        initializer_range=2.0,
        id2label=dict(enumerate(labels)),
        label2id={label: n for n, label in enumerate(labels)},
    )
    transformers.BertForSequenceClassification(config).save_pretrained(directory)
    tokenizer = transformers.BertTokenizer(vocab={word: n for n, word in enumerate(WORDS)}, model_max_length=24)
    tokenizer.save_pretrained(directory)
    return directory


def test_entailment_is_read_from_its_label_in_the_order_given(tmp_path: Path) -> None:
    path = write_model(tmp_path, ["contradiction", "ENTAILMENT", "neutral"])
    nli = Entailment(path)
    model = transformers.BertForSequenceClassification.from_pretrained(path).eval()
    ids = [[2, 5, 6, 3, 5, 7, 8, 3]]  # [CLS] rain falls [SEP] rain ? yes [SEP]
    with torch.inference_mode():
        out = model(input_ids=torch.tensor(ids), token_type_ids=torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1]])).logits[0]
    wanted = (out.exp() / out.exp().sum())[1].item()
    assert nli.support(["rain falls"], "rain ?", "yes") == pytest.approx(wanted, rel=1e-5)
    assert nli.entails("rain", "falls") != pytest.approx(nli.entails("falls", "rain"), rel=1e-3)
    assert 0 <= nli.entails("rain falls " * 50, "rain ?") <= 1  # longer than the model's positions


def test_the_same_is_what_follows_both_ways(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nli = Entailment(write_model(tmp_path, ["entailment", "not_entailment"]))
    follows = {("q a", "q b"), ("q b", "q a"), ("q a", "q c")}
    monkeypatch.setattr(nli, "entails", lambda x, y: float((x, y) in follows))
    assert nli.same("q", "a", "b")
    assert not nli.same("q", "a", "c")
    assert nli.same("q", "Rain.", "rain")


def test_a_model_of_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="with labels bad, good, wanted one of entailment"):
        Entailment(write_model(tmp_path, ["bad", "good"]))
