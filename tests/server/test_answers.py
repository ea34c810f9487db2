"""No answer differs from the one given alone: not in company, not after a beginning that was known already."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import cycle
from typing import Any

import httpx
import pytest

import thresher
from reference import Policy, Sampling
from tests.server.alone import alone
from tests.server.conftest import SERVING, idle, metric, running, until

TEXT = "It was a dark and stormy night; the rain fell in torrents, except at occasional intervals. "
POLICIES: list[dict[str, str]] = [
    {},
    {"select": "quoka:budget=24"},
    {"evict": "keydiff:budget=40"},
    {"evict": "caote:base=h2o,budget=40"},
    {"evict": "snapkv:budget=0.5"},
    {"select": "quoka:budget=16", "evict": "keydiff:budget=48"},
]


def ask(client: httpx.Client, ids: list[int], count: int, **fields: Any) -> dict[str, Any]:
    body = {"prompt": ids, "max_tokens": count, "logprobs": 0, **fields}
    answer = client.post("/v1/completions", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def check(llm: thresher.LanguageModel, told: dict[str, Any], wanted: list[tuple[int, float]]) -> None:
    """The same tokens, and log-probabilities that are equal to the last bit."""
    logprobs = told["choices"][0]["logprobs"]
    assert logprobs["tokens"] == [llm.tokenizer.decode([token], skip_special_tokens=False) for token, _ in wanted]
    assert logprobs["token_logprobs"] == [logprob for _, logprob in wanted]


def test_thirty_two_clients_at_once(llm: thresher.LanguageModel, client: httpx.Client) -> None:
    """Long and short prompts, every policy, greedy and drawn; more clients than places, so that some wait."""
    policies = cycle(POLICIES)
    asks = [(llm.encode((TEXT * 4)[n : n + 9 * n + 3]), 5 + n % 17, next(policies), n) for n in range(32)]
    wanted = [
        alone(llm, ids, count, policy=Policy(**words), sampling=Sampling(n % 2 * 1.2, top_k=20), seed=n)
        for ids, count, words, n in asks
    ]
    with ThreadPoolExecutor(32) as pool:
        told = pool.map(
            lambda a: ask(client, a[0], a[1], thresher=a[2], temperature=a[3] % 2 * 1.2, top_k=20, seed=a[3]), asks
        )
        for answer, each in zip(list(told), wanted, strict=True):
            check(llm, answer, each)
    until(lambda: idle(client))


def test_many_places_share_passes_and_change_nothing(llm: thresher.LanguageModel) -> None:
    prompts = [llm.encode(TEXT[n:][:30]) for n in range(13)]  # each read in one pass, so that all are soon written
    with running(llm, places=13) as address, httpx.Client(base_url=address, timeout=60) as client:
        body = {"prompt": prompts, "max_tokens": 80, "logprobs": 0}
        choices = client.post("/v1/completions", json=body).json()["choices"]
    for choice, ids in zip(choices, prompts, strict=True):
        check(llm, {"choices": [choice]}, alone(llm, ids, 80))


@pytest.mark.parametrize("words", POLICIES, ids=lambda words: "+".join(words.values()) or "dense")
def test_a_known_beginning_is_not_read_again_and_changes_nothing(llm: thresher.LanguageModel, words: dict) -> None:
    """A document with two questions, then a conversation that goes on from the second."""
    document = llm.encode(TEXT * 3)[:250]
    first, second = document + llm.encode("Who?"), document + llm.encode("And when was that, at what time?")
    third = second + llm.encode(" At night. Where?" * 4)
    policy, reused = Policy(**words), []
    with running(llm) as address, httpx.Client(base_url=address, timeout=60) as client:
        for ids in (first, second, third, second):
            told = ask(client, ids, 12, thresher=words)
            check(llm, told, alone(llm, ids, 12, policy=policy))
            reused.append(told["usage"]["prompt_tokens_details"]["cached_tokens"])
            assert told["usage"]["prompt_tokens"] == len(ids)
        read = metric(client, 'thresher_prompt_tokens_total{how="read"}')
    budget_grows = "0.5" in str(words)  # a share of the prompt is another budget for a longer prompt
    last = (len(second) - 1) // 32 * 32
    assert reused == [0, 0 if budget_grows else 224, 0 if budget_grows else last, last]
    assert read == sum(map(len, (first, second, third, second))) - sum(reused)


def test_what_was_read_under_one_policy_serves_no_other(llm: thresher.LanguageModel) -> None:
    ids = llm.encode(TEXT * 3)
    with running(llm) as address, httpx.Client(base_url=address, timeout=60) as client:
        for wanted in (0, (len(ids) - 1) // 32 * 32):
            for words in POLICIES:
                told = ask(client, ids, 5, thresher=words)
                check(llm, told, alone(llm, ids, 5, policy=Policy(**words)))
                assert told["usage"]["prompt_tokens_details"]["cached_tokens"] == wanted


def test_beginnings_keep_to_their_budget(llm: thresher.LanguageModel) -> None:
    """Room for one of the two documents, what its buffers leave free counted: each pushes the other out, and one too
    large is never kept."""
    one, two, large = (llm.encode(text) for text in ("a" * 500, "b" * 500, "c" * 1500))
    most = 1000 * llm.config.cache_bytes_per_token(4)
    with running(llm, prefix_bytes=most) as address, httpx.Client(base_url=address, timeout=60) as client:
        for ids, wanted in (
            (one, 0),
            (one, 480),
            (two, 0),
            (two, 480),
            (one, 0),
            (large, 0),
            (one, 480),
        ):
            told = ask(client, ids, 2)
            assert told["usage"]["prompt_tokens_details"]["cached_tokens"] == wanted
            assert 480 * llm.config.cache_bytes_per_token(4) < metric(client, "thresher_prefix_cache_bytes") <= most


def test_the_servers_own_policy_counts_where_a_request_names_none(llm: thresher.LanguageModel) -> None:
    ids, words = llm.encode(TEXT * 2), {"evict": "keydiff:budget=40"}
    with running(llm, policy=Policy(**words)) as address, httpx.Client(base_url=address, timeout=60) as client:
        check(llm, ask(client, ids, 12), alone(llm, ids, 12, policy=Policy(**words)))
        check(llm, ask(client, ids, 12, thresher={}), alone(llm, ids, 12))


def test_an_answer_that_cannot_be_computed_hurts_no_other(
    llm: thresher.LanguageModel, client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids, draw = llm.encode(TEXT), Sampling.draw

    def fails(self: Sampling, logits: Any, rng: Any, seen: Any = None) -> int:
        if self.temperature == 0.123:
            raise RuntimeError("a bug")
        return draw(self, logits, rng, seen)

    monkeypatch.setattr(Sampling, "draw", fails)
    with ThreadPoolExecutor(2) as pool:
        good = pool.submit(ask, client, ids, 40)
        bad = client.post("/v1/completions", json={"prompt": ids, "temperature": 0.123})
        assert (bad.status_code, bad.json()["error"]["type"]) == (500, "server_error")
        assert "a bug" not in bad.text
        check(llm, good.result(), alone(llm, ids, 40))
    assert SERVING.places >= 2
