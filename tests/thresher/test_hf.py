"""transformers' models under our policies: equal to the engine's own pass, and dense to transformers' own attention."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="wanted the extra `transformers`")
transformers = pytest.importorskip("transformers", reason="wanted the extra `transformers`")

from examples.transformers_models import CHUNK, CONFIGS, SMALL, compare, random_model
from reference import H2O, Caote, KeyDiff, Policy, Quoka, SnapKV, Tova
from thresher.hf import Cache, wrap

POLICIES = {
    "dense": Policy(),
    "quoka": Policy(select=Quoka(budget=96)),
    "keydiff": Policy(evict=KeyDiff(budget=96)),
    "h2o": Policy(evict=H2O(budget=80)),
    "tova": Policy(evict=Tova(budget=80)),
    "snapkv": Policy(evict=SnapKV(budget=0.25)),
    "caote": Policy(evict=Caote(base="h2o", budget=100), overrides={2: Policy()}),
    "both": Policy(select=Quoka(budget=48), evict=KeyDiff(budget=128)),
}
IDS = np.random.default_rng(2).integers(0, 500, (2, 300))


@pytest.fixture(autouse=True)
def quiet() -> None:
    transformers.utils.logging.disable_progress_bar()


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_generate_is_equal_to_the_engines_own_pass(family: str, policy: Policy, tmp_path: Path) -> None:
    theirs, own, apart = compare(family, policy, tmp_path)
    assert theirs == own
    assert apart < 1e-5


@pytest.mark.parametrize("family", CONFIGS)
def test_without_a_method_it_is_transformers_own_attention(family: str) -> None:
    """A batch of two, with our cache in one pass, with theirs, and with none."""
    ids = torch.from_numpy(IDS)
    model = random_model(CONFIGS[family])
    model.set_attn_implementation("eager")
    with torch.no_grad():
        wanted = model(ids).logits
        model.set_attn_implementation("thresher")
        for named in ({"use_cache": False}, {}, {"past_key_values": Cache(model.config)}):
            torch.testing.assert_close(model(ids, **named).logits, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", [name for name in POLICIES if name != "snapkv"])
@pytest.mark.parametrize("parts", [[300], [192, 108], [64, 64, 172]])
def test_a_prompt_in_parts_is_read_like_one(name: str, parts: list[int]) -> None:
    """Parts that end where a chunk does. SnapKV's fraction would be another budget for each part."""
    policy = POLICIES[name]
    ids, model = torch.from_numpy(IDS), random_model(CONFIGS["Qwen"])
    model.set_attn_implementation("thresher")
    with torch.no_grad():
        whole = model(ids, past_key_values=Cache(model.config, policy, chunk=CHUNK)).logits
        cache = Cache(model.config, policy, chunk=CHUNK)
        rows = [model(part, past_key_values=cache).logits for part in ids.split(parts, dim=1)]
    torch.testing.assert_close(torch.cat(rows, dim=1), whole, rtol=1e-4, atol=1e-4)
    assert cache.get_seq_length() == 300
    for n in range(4):
        budget = policy.at(n).evict.budget if policy.at(n).evict else 300
        assert {state.cache.sizes[n] for state in cache.states} == {budget}
    assert cache.nbytes == sum(state.cache.nbytes for state in cache.states)


def test_prefill_chunks_of_transformers_own() -> None:
    ids, model = torch.from_numpy(IDS), wrap(random_model(CONFIGS["Gemma"]), POLICIES["keydiff"], chunk=CHUNK)
    one, many = (
        model.generate(ids, max_new_tokens=8, do_sample=False, eos_token_id=None, prefill_chunk_size=size)
        for size in (None, CHUNK)
    )
    assert one.tolist() == many.tolist()


def test_a_batch_is_its_sequences_one_by_one() -> None:
    ids, model = torch.from_numpy(IDS), wrap(random_model(CONFIGS["Llama"]), POLICIES["both"], chunk=CHUNK)
    options = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
    both = model.generate(ids, **options).tolist()
    assert both == [model.generate(row[None], **options)[0].tolist() for row in ids]


def test_a_cache_goes_on_where_it_was() -> None:
    ids, model = torch.from_numpy(IDS[:1]), random_model(CONFIGS["Llama"])
    model.set_attn_implementation("thresher")
    options = {"do_sample": False, "eos_token_id": None}
    whole = model.generate(ids, max_new_tokens=9, past_key_values=Cache(model.config, POLICIES["h2o"]), **options)
    cache = Cache(model.config, POLICIES["h2o"])
    first = model.generate(ids, max_new_tokens=4, past_key_values=cache, **options)
    assert model.generate(first, max_new_tokens=5, past_key_values=cache, **options).tolist() == whole.tolist()
    cache.reset()
    assert (cache.get_seq_length(), cache.nbytes) == (0, 0)
    assert model.generate(ids, max_new_tokens=9, past_key_values=cache, **options).tolist() == whole.tolist()


def test_bfloat16_is_stored_as_it_is() -> None:
    ids, model = torch.from_numpy(IDS), random_model(CONFIGS["Qwen"]).to(torch.bfloat16)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        wanted = model(ids).logits.float()
        cache = Cache(model.config)
        model.set_attn_implementation("thresher")
        out = model(ids, past_key_values=cache).logits
    assert out.dtype == torch.bfloat16
    assert float(torch.linalg.norm(out.float() - wanted) / torch.linalg.norm(wanted)) < 0.05
    assert cache.states[0].cache.layers[0].k.dtype.name == "bfloat16"


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ({"attention_mask": torch.tensor([[0] + [1] * 299] * 2)}, "attention_mask: got padding"),
        ({"attention_mask": torch.zeros(2, 1, 300, 300)}, "attention_mask: got a mask of four axes"),
    ],
)
def test_masks_are_refused(named: dict[str, Any], message: str) -> None:
    model = wrap(random_model(CONFIGS["Gemma"]))
    with torch.no_grad(), pytest.raises(ValueError, match=message):
        model(torch.from_numpy(IDS), **named)


def test_scores_are_capped_with_our_cache_and_without() -> None:
    ids, model = torch.from_numpy(IDS), random_model(transformers.Gemma2Config(**SMALL, attn_logit_softcapping=0.5))
    model.set_attn_implementation("eager")
    with torch.no_grad():
        wanted = model(ids).logits
        model.set_attn_implementation("thresher")
        for named in ({"use_cache": False}, {"past_key_values": Cache(model.config)}):
            torch.testing.assert_close(model(ids, **named).logits, wanted, rtol=1e-4, atol=1e-4)


def test_gradients_are_refused() -> None:
    with pytest.raises(ValueError, match="tensor: got one that requires a gradient"):
        wrap(random_model(CONFIGS["Llama"]))(torch.from_numpy(IDS))


def test_other_caches_and_policies_are_refused() -> None:
    ids, model = torch.from_numpy(IDS), random_model(CONFIGS["Llama"])
    with pytest.raises(ValueError, match="policy: got an ffn, wanted none: transformers runs the FFN"):
        wrap(model, Policy(ffn="fastforward:density=0.5,neurons=griffin"))
    with pytest.raises(ValueError, match="overrides: got layer 9"):
        wrap(model, Policy(overrides={9: Policy()}))
    wrap(model, POLICIES["h2o"])
    cache = transformers.DynamicCache(config=model.config)
    cache.update(torch.zeros(2, 2, 5, 16), torch.zeros(2, 2, 5, 16), 0)
    with torch.no_grad():
        with pytest.raises(ValueError, match=r"past_key_values: got a DynamicCache in use, wanted a thresher.hf.Cache"):
            model(ids, past_key_values=cache)
        ours = Cache(model.config)
        model(ids, past_key_values=ours)
        with pytest.raises(ValueError, match="past_key_values: got 1 sequences, wanted the 2 that it holds"):
            model(ids[:1], past_key_values=ours)
        with pytest.raises(ValueError, match="got beams to reorder"):
            model.generate(ids[:1], num_beams=2, max_new_tokens=4, do_sample=False, eos_token_id=None)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no NVIDIA GPU")
@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_on_a_gpu_it_says_what_it_says_on_the_processor(family: str, policy: Policy) -> None:
    ids, rows = torch.from_numpy(IDS), []
    for device in ("cpu", "cuda"):
        model = wrap(random_model(CONFIGS[family]).to(device), policy, chunk=CHUNK)
        out = model.generate(
            ids.to(device), max_new_tokens=6, do_sample=False, eos_token_id=None, output_logits=True,
            return_dict_in_generate=True,
        )  # fmt: skip
        rows.append(torch.stack(out.logits).cpu())
    assert torch.linalg.norm(rows[1] - rows[0]) <= 1e-3 * torch.linalg.norm(rows[0])
