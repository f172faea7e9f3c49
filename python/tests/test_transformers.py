# SPDX-License-Identifier: Apache-2.0
"""attn_implementation="macattn" on tiny random models: the text sdpa gives, and caches put through everything."""
import copy
import gc
import io
import pickle
import random
import threading

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from transformers import (BartConfig, BartForConditionalGeneration, DeepseekV3Config, DeepseekV3ForCausalLM, DynamicCache,
                          Gemma2Config, Gemma2ForCausalLM, GPT2Config, GPT2LMHeadModel, GptOssConfig, GptOssForCausalLM,
                          LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM, Phi3Config, Phi3ForCausalLM, Qwen3Config,
                          Qwen3ForCausalLM, StaticCache)

import macattn.transformers
from macattn.engines.transformers import ENGINES, GrowingLayer, Tokens, is_attention

SIZES = dict(vocab_size=300, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
             num_key_value_heads=2, max_position_embeddings=1024, bos_token_id=1, eos_token_id=2, pad_token_id=0,
             initializer_range=0.2)
# Reuse in sequences this short.
REUSE = dict(policy="paper", tau=0.0, min_tokens=0, band=8)


def make(config, model, seed=0, **more):
    torch.manual_seed(seed)
    values = {**SIZES, "head_dim": 16, **more}
    return model(config(**{name: v for name, v in values.items() if v is not None})).eval()


@pytest.fixture
def llama():
    return make(LlamaConfig, LlamaForCausalLM)


def some_ids(batch, n, seed=1):
    return torch.randint(3, 300, (batch, n), generator=torch.Generator().manual_seed(seed))


def use(model, name, **settings):
    model.set_attn_implementation(name)
    if name == "macattn":
        macattn.transformers.settings(model, **{"policy": "exact", "n_threads": 2, **settings})
    return model


def text(model, ids, **options):
    options = {"max_new_tokens": 24, "do_sample": False, "eos_token_id": None, "return_dict_in_generate": True,
               "output_logits": True, **options}
    return model.generate(ids, **options)


def assert_same_text(got, expected):
    """Token by token, but where the expected logits are near a tie, which ends the comparison of a row."""
    assert got.sequences.shape == expected.sequences.shape
    prompt = got.sequences.shape[1] - len(expected.logits)
    same = 0
    for row in range(len(got.sequences)):
        for i, logits in enumerate(expected.logits):
            if got.sequences[row, prompt + i] != expected.sequences[row, prompt + i]:
                best = logits[row].topk(2).values
                assert best[0] - best[1] < 1e-3, f"row {row} differs at {i}, where nothing is near a tie"
                break
            torch.testing.assert_close(got.logits[i][row], logits[row], rtol=1e-3, atol=1e-3)
            same += 1
    assert same > 10


def calls(model):
    return macattn.transformers.stats(model)["calls"]


# -------------------------------------------------------------------------------------------------------- same text


MODELS = [(LlamaConfig, LlamaForCausalLM, {}), (Qwen3Config, Qwen3ForCausalLM, {}),
          (Phi3Config, Phi3ForCausalLM, {"head_dim": None})]


@pytest.mark.parametrize("config, model, more", MODELS, ids=lambda p: getattr(p, "__name__", ""))
def test_greedy_text(config, model, more):
    model, ids = make(config, model, **more), some_ids(2, 50)
    expected = text(use(model, "sdpa"), ids)
    assert_same_text(text(use(model, "macattn"), ids), expected)
    assert calls(model) == {"macattn": 3 * 24}


@pytest.mark.parametrize("config, model, more", MODELS, ids=lambda p: getattr(p, "__name__", ""))
def test_queries_before_rope_are_found_and_reused(config, model, more):
    model = use(make(config, model, **more), "macattn", **REUSE)
    text(model, some_ids(2, 50))
    stats = macattn.transformers.stats(model)
    assert stats["calls"] == {"macattn": 3 * 24}
    assert stats["steps"] == 23 * 3 * 2 * 4 and stats["hits"] > 0.3 * stats["steps"]
    assert stats["tokens_skipped"] > 0.2 * stats["tokens_total"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(llama, dtype):
    llama, ids = llama.to(dtype), some_ids(2, 50)
    with torch.no_grad():
        expected = use(llama, "sdpa")(ids).logits.float()
        got = use(llama, "macattn")(ids).logits.float()
    assert (got - expected).norm() < 0.02 * expected.norm()
    assert calls(llama) == {"macattn": 3}


def padded(batch, n):
    ids, mask = some_ids(batch, n), torch.ones(batch, n, dtype=torch.long)
    for row in range(batch):
        mask[row, :13 * row] = 0
    return ids, mask


def test_left_padding(llama):
    ids, mask = padded(3, 50)
    expected = text(use(llama, "sdpa"), ids, attention_mask=mask)
    got = text(use(llama, "macattn"), ids, attention_mask=mask)
    assert_same_text(got, expected)
    assert calls(llama) == {"macattn": 3 * 24}
    use(llama, "macattn", **REUSE)
    text(llama, ids, attention_mask=mask)
    stats = macattn.transformers.stats(llama)
    assert stats["hits"] > 0.3 * stats["steps"] > 0
    assert stats["tokens_total"] == 3 * 4 * sum(50 - 13 * row + 1 + i for row in range(3) for i in range(23))


def test_a_padded_row_reuses_what_it_would_without(llama):
    use(llama, "macattn", max_slots=2, **REUSE)
    ids, mask = some_ids(1, 70), torch.ones(1, 70, dtype=torch.long)
    mask[:, :13] = 0
    places = (mask.cumsum(-1) - 1).clamp(min=0)
    padded, plain = DynamicCache(), DynamicCache()
    for end in range(50, 71):
        now = slice(0 if end == 50 else end - 1, end)
        a = step(llama, ids[:, now], padded, attention_mask=mask[:, :end], position_ids=places[:, now])
        b = step(llama, ids[:, max(now.start, 13):end], plain)
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    assert macattn.transformers.stats(llama)["hits"] > 100


def test_beam_search(llama):
    ids = some_ids(2, 40)
    options = dict(num_beams=3, num_return_sequences=2, output_logits=False)
    expected = text(use(llama, "sdpa"), ids, **options)
    got = text(use(llama, "macattn", **REUSE), ids, **options)
    assert torch.equal(got.sequences, expected.sequences)
    assert set(calls(llama)) == {"macattn"}


@pytest.mark.parametrize("settings", [{}, {"policy": "paper", "tau": 0.995, "min_tokens": 0, "band": 8}], ids=str)
def test_assisted_generation(llama, settings):
    assistant = make(LlamaConfig, LlamaForCausalLM, seed=0, num_hidden_layers=1)
    ids = some_ids(1, 40)
    expected = text(use(llama, "sdpa"), ids, max_new_tokens=30)
    got = text(use(llama, "macattn", **settings), ids, max_new_tokens=30, assistant_model=use(assistant, "macattn"))
    assert_same_text(got, expected)
    assert set(calls(llama)) == set(calls(assistant)) == {"macattn"}


def test_prompt_lookup(llama):
    ids = some_ids(1, 12).repeat(1, 4)
    expected = text(use(llama, "sdpa"), ids)
    assert_same_text(text(use(llama, "macattn"), ids, prompt_lookup_num_tokens=4), expected)


def gemma2(**more):
    return make(Gemma2Config, Gemma2ForCausalLM, query_pre_attn_scalar=16, attn_logit_softcapping=5.0, sliding_window=16,
                **more)


def gpt_oss(**more):
    return make(GptOssConfig, GptOssForCausalLM, num_local_experts=2, num_experts_per_tok=1, sliding_window=16,
                rope_parameters={"rope_type": "default", "rope_theta": 1e4}, **more)


@pytest.mark.parametrize("model", [gemma2, gpt_oss])
def test_soft_cap_and_sinks(model):
    model, (ids, mask) = model(layer_types=["full_attention"] * 3), padded(2, 30)
    expected = text(use(model, "eager"), ids, attention_mask=mask)
    assert_same_text(text(use(model, "macattn"), ids, attention_mask=mask), expected)
    assert calls(model) == {"macattn": 3 * 24}


OTHERS = [  # whose queries are not found, and where the heads of K and V differ
    (GPT2Config, GPT2LMHeadModel, dict(n_embd=64, n_layer=3, n_head=4, n_positions=200, vocab_size=300, initializer_range=0.2)),
    (DeepseekV3Config, DeepseekV3ForCausalLM, dict(
        vocab_size=300, hidden_size=64, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=4, intermediate_size=96,
        max_position_embeddings=200, q_lora_rank=32, kv_lora_rank=32, qk_rope_head_dim=8, qk_nope_head_dim=16, v_head_dim=16,
        n_routed_experts=4, num_experts_per_tok=2, n_group=1, topk_group=1, moe_intermediate_size=32, initializer_range=0.2)),
]


@pytest.mark.parametrize("config, model, values", OTHERS, ids=lambda p: getattr(p, "__name__", ""))
def test_models_whose_queries_are_not_found_are_exact(config, model, values):
    torch.manual_seed(0)
    model, (ids, mask) = model(config(bos_token_id=1, eos_token_id=2, pad_token_id=0, **values)).eval(), padded(2, 30)
    expected = text(use(model, "sdpa"), ids, attention_mask=mask)
    assert_same_text(text(use(model, "macattn", **REUSE), ids, attention_mask=mask), expected)
    assert calls(model) == {"macattn": 3 * 24} and macattn.transformers.stats(model)["hits"] == 0


def test_an_encoder_and_its_decoder():
    torch.manual_seed(0)
    model = BartForConditionalGeneration(BartConfig(
        vocab_size=300, d_model=64, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4,
        encoder_ffn_dim=64, decoder_ffn_dim=64, max_position_embeddings=100, init_std=0.2, forced_eos_token_id=None)).eval()
    ids, mask = padded(2, 30)
    expected = text(use(model, "sdpa"), ids, attention_mask=mask)
    assert_same_text(text(use(model, "macattn", **REUSE), ids, attention_mask=mask), expected)
    assert calls(model)["macattn"] == 2 * 24 and calls(model)["sdpa: not causal"] >= 2 * 24


# ------------------------------------------------------------------------------------------- what is left to sdpa


def test_sliding_windows_are_left_to_sdpa():
    mistral, ids = make(MistralConfig, MistralForCausalLM, sliding_window=16), some_ids(1, 40)
    expected = text(use(mistral, "sdpa"), ids)
    assert_same_text(text(use(mistral, "macattn"), ids), expected)
    assert calls(mistral) == {"sdpa: sliding window": 3 * 24}


@pytest.mark.parametrize("model", [gemma2, gpt_oss])
def test_what_is_beyond_sdpa_is_left_to_eager(model):
    model, ids = model(), some_ids(2, 30)
    full = sum(kind == "full_attention" for kind in model.config.layer_types)
    assert 0 < full < 3
    expected = text(use(model, "eager"), ids)
    assert_same_text(text(use(model, "macattn"), ids), expected)
    assert calls(model) == {"macattn": full * 24, "eager: sliding window": (3 - full) * 24}
    weight, found = model.model.layers[0].self_attn.q_proj.weight, []
    for name in ("eager", "macattn"):
        use(model, name).zero_grad()
        model(ids, labels=ids).loss.backward()
        found.append(weight.grad.clone())
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("lengths", [[9, 1], [2, 1], [9, 2], [9, 8], [1, 1]], ids=str)
def test_right_padding(llama, lengths):
    n = max(2, *lengths)
    ids, mask = some_ids(2, n), torch.zeros(2, n, dtype=torch.long)
    for row, length in enumerate(lengths):
        mask[row, :length] = 1
    with torch.no_grad():
        expected = use(llama, "sdpa")(ids, attention_mask=mask).logits
        got = use(llama, "macattn")(ids, attention_mask=mask).logits
    torch.testing.assert_close(got[mask.bool()], expected[mask.bool()], rtol=1e-3, atol=1e-3)


def test_a_mask_that_its_caller_writes_into_is_read_again(llama):
    ids, mask = some_ids(1, 12), torch.zeros(1, 1, 1, 16, dtype=torch.bool)

    def logits(name):
        cache = StaticCache(config=llama.config, max_cache_len=16)
        use(llama, name)
        mask.zero_()
        found = []
        for i in range(12):
            mask[..., i] = True
            with torch.no_grad():
                found.append(llama(ids[:, i:i + 1], past_key_values=cache, attention_mask=mask,
                                   position_ids=torch.tensor([[i]])).logits)
        return torch.cat(found)
    torch.testing.assert_close(logits("macattn"), logits("sdpa"), rtol=1e-3, atol=1e-3)


def test_attention_weights_are_refused_loudly(llama, monkeypatch):
    said = []
    monkeypatch.setattr("macattn.engines.transformers.logger.warning_once", said.append)
    with torch.no_grad():
        use(llama, "macattn")(some_ids(1, 10), output_attentions=True)
    assert said and "output_attentions=True" in said[0]


def test_gradients_of_any_one_projection(llama):
    """The first layer's queries need none where only its keys are trained."""
    use(llama, "macattn").requires_grad_(False)
    for name in ("q_proj", "k_proj", "v_proj"):
        weight = getattr(llama.model.layers[0].self_attn, name).weight.requires_grad_(True)
        llama(ids := some_ids(2, 20), labels=ids).loss.backward()
        assert weight.grad.abs().sum() > 0
        weight.requires_grad_(False)
    assert calls(llama) == {"sdpa: gradients": 9}


def test_training_and_back(llama):
    llama.config.attention_dropout = 0.1
    for layer in llama.model.layers:
        layer.self_attn.attention_dropout = 0.1
    use(llama, "macattn").train()
    with torch.no_grad():
        llama(some_ids(1, 10))
        llama.eval()(some_ids(1, 10))
    assert calls(llama) == {"sdpa: dropout": 3, "macattn": 3}


def test_gradients_are_left_to_sdpa(llama):
    use(llama, "macattn")
    ids = some_ids(2, 20)
    llama(ids, labels=ids).loss.backward()
    assert calls(llama) == {"sdpa: gradients": 3}
    assert llama.model.layers[0].self_attn.q_proj.weight.grad.abs().sum() > 0


def test_other_masks_are_left_to_sdpa(llama):
    ids = some_ids(1, 20)
    mask = torch.ones(1, 1, 20, 20, dtype=torch.bool).tril()
    mask[..., 10:, 3:6] = False  # a hole
    with torch.no_grad():
        expected = use(llama, "sdpa")(ids, attention_mask=mask).logits
        got = use(llama, "macattn")(ids, attention_mask=mask).logits
        torch.testing.assert_close(got, expected)
        assert calls(llama) == {"sdpa: mask": 3}
        right = torch.ones(1, 20, dtype=torch.long)
        right[:, 15:] = 0  # padding on the right
        expected = use(llama, "sdpa")(ids, attention_mask=right).logits[:, :15]
        torch.testing.assert_close(use(llama, "macattn")(ids, attention_mask=right).logits[:, :15], expected,
                                   rtol=1e-3, atol=1e-3)


def test_shapes_without_a_kernel_are_left_to_sdpa():
    odd, ids = make(LlamaConfig, LlamaForCausalLM, head_dim=12), some_ids(1, 20)
    with torch.no_grad():
        torch.testing.assert_close(use(odd, "macattn")(ids).logits, use(odd, "sdpa")(ids).logits)
    use(odd, "macattn")
    (reason, n), = calls(odd).items()
    assert reason.startswith("sdpa: head_dim 12 is not supported") and n == 3


def test_without_causality_nothing_is_computed_here(llama):
    ids = some_ids(1, 20)
    for module in filter(is_attention, llama.modules()):
        module.is_causal = False
    with torch.no_grad():
        expected = use(llama, "sdpa")(ids).logits
        torch.testing.assert_close(use(llama, "macattn")(ids).logits, expected)
    assert calls(llama) == {"sdpa: not causal": 3}


# ------------------------------------------------------------------------------------------------------------ caches


def step(model, ids, cache, **more):
    with torch.no_grad():
        return model(ids, past_key_values=cache, **more).logits[:, -1]


def run(model, ids, cache):
    """Logits after each token of ids, decoded one at a time."""
    return torch.stack([step(model, ids[:, i:i + 1], cache) for i in range(ids.shape[1])])


def test_caches_grow_in_blocks(llama):
    use(llama, "macattn")
    for cache in (DynamicCache(), DynamicCache(config=llama.config)):
        step(llama, some_ids(1, 40), cache)
        assert [type(layer) for layer in cache.layers] == [GrowingLayer] * 3
        places = [layer.keys.data_ptr() for layer in cache.layers]
        run(llama, some_ids(1, 100), cache)
        assert [layer.keys.data_ptr() for layer in cache.layers] == places
        assert cache.get_seq_length() == 140


def test_a_layer_holds_what_concatenation_would():
    pick = random.Random(5)
    layer, whole = GrowingLayer(), None
    for _ in range(200):
        new = torch.randn(2, 2, pick.choice([1, 1, 3, 300]), 4)
        keys, values = layer.update(new, -new)
        whole = new if whole is None else torch.cat([whole, new], 2)
        assert torch.equal(keys, whole) and torch.equal(values, -whole) and layer.get_seq_length() == whole.shape[2]
        what = pick.random()
        if what < 0.2:
            n = pick.randint(1, min(5, whole.shape[2] - 1))
            layer.crop(-n)
            whole = whole[:, :, :-n]
        elif what < 0.3:
            order = torch.tensor([pick.randint(0, 1), pick.randint(0, 1)])
            layer.reorder_cache(order)
            whole = whole[order]


def test_other_caches(llama):
    ids, more = some_ids(1, 40), some_ids(1, 10, seed=2)
    reference = DynamicCache()
    expected = [step(use(llama, "sdpa"), ids, reference), run(llama, more, reference)]
    use(llama, "macattn", **REUSE)
    static = StaticCache(config=llama.config, max_cache_len=64)
    torch.testing.assert_close(step(llama, ids, static), expected[0], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(run(llama, more, static), expected[1], rtol=1e-3, atol=1e-3)
    assert macattn.transformers.stats(llama)["hits"] == 0  # a cache of another kind is computed exactly
    filled = DynamicCache()
    step(use(llama, "sdpa"), ids, filled)
    got = run(use(llama, "macattn"), more, filled)
    torch.testing.assert_close(got, expected[1], rtol=1e-3, atol=1e-3)


def test_crop_is_as_if_the_tokens_had_never_been(llama):
    use(llama, "macattn", **REUSE)
    ids, wrong, right = some_ids(2, 60), some_ids(2, 7, seed=2), some_ids(2, 12, seed=3)
    straight, back = DynamicCache(), DynamicCache()
    step(llama, ids, straight)
    expected = run(llama, right, straight)
    step(llama, ids, back)
    run(llama, wrong, back)
    back.crop(-7)
    assert torch.equal(run(llama, right, back), expected)
    assert macattn.transformers.stats(llama)["hits"] > 0
    # Rolled back and overwritten by sdpa meanwhile, to the same length.
    back.crop(-5)
    with torch.no_grad():
        use(llama, "sdpa")(right[:, 7:], past_key_values=back)
        use(straight_model := llama, "macattn", **REUSE)
        after = run(straight_model, wrong, back)
    straight2 = DynamicCache()
    step(llama, ids, straight2)
    run(llama, right[:, :7], straight2)
    with torch.no_grad():
        use(llama, "sdpa")(right[:, 7:], past_key_values=straight2)
        use(llama, "macattn", **REUSE)
    torch.testing.assert_close(after, run(llama, wrong, straight2), rtol=1e-4, atol=1e-4)


def hits_of_next(model, cache, rows=1):
    before = macattn.transformers.stats(model)["hits"]
    step(model, some_ids(1, 1, seed=9).expand(rows, 1), cache)
    return macattn.transformers.stats(model)["hits"] - before


@pytest.mark.parametrize("change", [
    lambda cache: cache.reorder_cache(torch.tensor([1, 0])), lambda cache: cache.batch_select_indices(torch.tensor([1, 0])),
    lambda cache: cache.batch_repeat_interleave(2), lambda cache: cache.reset(),
], ids=["reorder", "select", "repeat", "reset"])
def test_changed_caches_begin_anew(llama, change):
    use(llama, "macattn", max_slots=4, **REUSE)
    cache = DynamicCache()
    step(llama, some_ids(2, 60), cache)
    assert hits_of_next(llama, cache, 2) > 0
    change(cache)
    if not cache.get_seq_length():
        step(llama, some_ids(2, 60, seed=8), cache)
        cache.crop(-10)
        assert hits_of_next(llama, cache, 2) > 0  # of the new prompt
        return
    assert hits_of_next(llama, cache, cache.layers[0].keys.shape[0]) == 0


def test_a_copy_begins_with_what_the_original_remembers(llama):
    use(llama, "macattn", max_slots=3, **REUSE)
    cache, more = DynamicCache(), some_ids(1, 12, seed=4)
    step(llama, some_ids(1, 60), cache)
    copies = [copy.deepcopy(cache) for _ in range(2)]
    expected = run(llama, more, cache)
    assert torch.equal(run(llama, more, copies[0]), expected)
    run(llama, some_ids(1, 5, seed=5), copies[1])
    assert torch.equal(run(llama, more[:, :1], copies[0]), run(llama, more[:, :1], cache))


def shallow(cache):
    new = copy.copy(cache)
    new.layers = [copy.copy(layer) for layer in cache.layers]
    return new


def anew(cache):
    new = DynamicCache()
    new.layers = [copy.copy(layer) for layer in cache.layers]
    return new


@pytest.mark.parametrize("make", [shallow, anew, copy.copy])
@pytest.mark.parametrize("settings", [{}, dict(REUSE, tau=0.995)], ids=["exact", "reuse"])
def test_shallow_copies_go_their_own_ways(llama, make, settings):
    """Layers that share K and V do not share what is written behind them, nor what is remembered."""
    use(llama, "macattn", **{"max_slots": 3, **settings})
    cache, ids, a, b = DynamicCache(), some_ids(1, 40), some_ids(1, 8, seed=4), some_ids(1, 8, seed=5)
    step(llama, ids, cache)
    other = make(cache)
    if make is copy.copy:  # the very same layers
        run(llama, a, other)
        cache.crop(40)
        found = [run(llama, b, cache)]
        expected = [b]
    else:
        pairs = [(step(llama, a[:, i:i + 1], cache), step(llama, b[:, i:i + 1], other)) for i in range(8)]
        found, expected = [torch.stack(logits) for logits in zip(*pairs)], [a, b]
    for got, then in zip(found, expected):
        alone = DynamicCache()
        step(use(llama, "sdpa"), ids, alone)
        torch.testing.assert_close(got, run(llama, then, alone), rtol=1e-3, atol=1e-3)


def test_slots_are_freed_with_the_cache(llama):
    use(llama, "macattn", max_slots=2, **REUSE)
    for seed in range(6):
        cache = DynamicCache()
        step(llama, some_ids(2, 40, seed=seed), cache)
        assert hits_of_next(llama, cache, 2) > 0
        del cache
    (runner, _), = ENGINES[llama].runners.values()
    assert len(runner.sequences) == 0 and not runner.rows and not runner.lengths


def replay(model, steps):
    """The last logits of a cache of its own that goes through the same steps."""
    cache = DynamicCache()
    return [step(model, ids, cache) for ids in steps][-1]


def test_many_caches_at_random_never_meet_each_others_memory():
    """Caches in turns, rolled back, copied and thrown away, give what each would give alone."""
    model = make(LlamaConfig, LlamaForCausalLM, num_hidden_layers=2)
    alone = copy.deepcopy(model)
    for m in (model, alone):
        use(m, "macattn", policy="paper", tau=0.3, min_tokens=0, band=8, ring=32, max_slots=6)
    pick = random.Random(7)
    caches, compared = [], 0  # of [cache, steps]
    for _ in range(500):
        what = pick.random()
        if not caches or what < 0.06 and len(caches) < 6:
            caches.append([DynamicCache(), []])
            new = some_ids(1, pick.randint(20, 40), seed=pick.randint(0, 3))
        else:
            new = some_ids(1, pick.choice([1, 1, 1, 1, 1, 4]), seed=pick.randint(0, 12))
        mine = pick.choice(caches[-1:] if not caches[-1][1] else caches)
        if what < 0.1 and mine[1]:
            caches.remove(mine)
        elif what < 0.2 and len(mine[1]) > 3:
            gone = [mine[1].pop() for _ in range(pick.randint(1, 3))]
            mine[0].crop(-sum(ids.shape[1] for ids in gone))
        elif what < 0.26 and len(caches) < 6 and mine[1]:
            caches.append([copy.deepcopy(mine[0]), list(mine[1])])
        else:
            mine[1].append(new if mine[1] else some_ids(1, 30, seed=pick.randint(0, 3)))
            logits = step(model, mine[1][-1], mine[0])
            if pick.random() < 0.08:
                torch.testing.assert_close(logits, replay(alone, mine[1]), rtol=1e-3, atol=1e-3)
                compared += 1
    stats = macattn.transformers.stats(model)
    assert compared > 15 and stats["hits"] > 200


def test_the_same_prompt_again_meets_nothing_of_the_first(llama):
    use(llama, "macattn", **REUSE)
    first = text(llama, some_ids(2, 40)).sequences
    text(llama, some_ids(2, 40, seed=5))
    assert torch.equal(text(llama, some_ids(2, 40)).sequences, first)
    assert macattn.transformers.stats(llama)["hits"] > 100


def test_what_shares_a_cache_among_layers_and_chunks(llama):
    """Drafts by the model's own first layers; prompts in chunks."""
    ids = some_ids(1, 40)
    expected = text(use(llama, "sdpa"), ids)
    use(llama, "macattn", policy="paper", tau=0.995, min_tokens=0, band=8)
    assert_same_text(text(llama, ids, assistant_early_exit=1), expected)
    in_one = text(use(llama, "macattn", **REUSE), ids)
    assert_same_text(text(llama, ids, prefill_chunk_size=7), in_one)
    assert set(calls(llama)) == {"macattn"}


# ---------------------------------------------------------------------------------------------------------- interface


def test_a_budget_of_zero_is_exact(llama):
    ids = some_ids(1, 60)
    expected = text(use(llama, "macattn"), ids)
    got = text(use(llama, "macattn", policy="budget", budget=0.0, min_tokens=0, band=8), ids)
    assert torch.equal(got.sequences, expected.sequences)
    assert macattn.transformers.stats(llama)["hits"] == 0


def test_settings_and_stats(llama):
    with pytest.raises(ValueError, match='attn_implementation="macattn"'):
        macattn.transformers.stats(use(llama, "sdpa"))
    use(llama, "macattn")
    with pytest.raises(TypeError, match="no setting 'polcy'"):
        macattn.transformers.settings(llama, polcy="exact")
    with pytest.raises(macattn.ArgumentError, match="policy other is none of"):
        macattn.transformers.settings(policy="other")
    with pytest.raises(TypeError, match="n_heads is the model's"):
        macattn.transformers.settings(llama, n_heads=2)
    assert macattn.transformers.settings(llama, budget=0.01)["budget"] == 0.01
    assert macattn.transformers.settings()["policy"] == "exact"
    step(llama, some_ids(1, 10), DynamicCache())
    macattn.transformers.settings(llama, ring=64)
    step(llama, some_ids(1, 10), DynamicCache())
    (runner, _), = ENGINES[llama].runners.values()
    assert runner.attention.settings["ring"] == 64


def test_the_cpu_runs_on_torchs_threads(llama):
    use(llama, "macattn")
    step(llama, some_ids(1, 10), DynamicCache())
    (runner, _), = ENGINES[llama].runners.values()
    assert runner.attention.openmp and runner.attention.settings["n_threads"] == 2


def test_a_larger_batch_gets_slots(llama):
    use(llama, "macattn", **REUSE)
    for batch in (1, 4, 2):
        cache = DynamicCache()
        step(llama, some_ids(batch, 40), cache)
        assert hits_of_next(llama, cache, batch) > 0


def test_two_models_and_a_copy(llama):
    other = use(make(Qwen3Config, Qwen3ForCausalLM, seed=3), "macattn", **REUSE)
    use(llama, "macattn")
    twin = copy.deepcopy(llama)
    for model in (llama, other, twin):
        text(model, some_ids(1, 30))
    assert calls(llama) == calls(other) == {"macattn": 3 * 24}
    assert ENGINES[llama] is not ENGINES[twin] and calls(twin) == {"macattn": 3 * 24}
    assert macattn.transformers.stats(other)["hits"] > 0


def hooks(model):
    attention = model.model.layers[0].self_attn
    return len(attention._forward_pre_hooks), len(attention.q_proj._forward_hooks)


def saved_and_loaded(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("again", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), saved_and_loaded],
                         ids=["deepcopy", "pickle", "torch.save"])
def test_copies_of_a_model(llama, again):
    """They take the settings along, and each has hooks of its own."""
    expected = text(use(llama, "macattn", **REUSE), some_ids(1, 40)).sequences
    twin = again(again(llama))
    assert torch.equal(text(twin, some_ids(1, 40)).sequences, expected)
    assert macattn.transformers.stats(twin) | {n: 0 for n in TIMES} == macattn.transformers.stats(llama) | {n: 0 for n in TIMES}
    assert hooks(twin) == hooks(llama) == (1, 1)
    macattn.transformers.settings(twin, tau=0.5)
    assert macattn.transformers.settings(llama)["tau"] == 0.0


TIMES = ("match_ns", "attend_ns", "merge_ns", "judge_ns")


def test_a_model_that_went_back_to_sdpa_keeps_no_cache_alive(llama):
    def alive():
        gc.collect()
        return sum(type(o) in (GrowingLayer, Tokens) for o in gc.get_objects())
    before = alive()
    text(use(llama, "macattn"), some_ids(1, 10))
    text(use(llama, "sdpa"), some_ids(1, 10))
    assert alive() == before


def test_threads_take_turns(llama):
    use(llama, "macattn", max_slots=4, **REUSE)
    prompts = [some_ids(1, 30 + i, seed=i) for i in range(4)]
    expected = [text(llama, ids).sequences for ids in prompts]
    found = [[] for _ in prompts]
    threads = [threading.Thread(target=lambda ids, f: f.extend(text(llama, ids).sequences for _ in range(2)), args=a)
               for a in zip(prompts, found)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    for got, sequences in zip(found, expected):
        assert len(got) == 2 and all(torch.equal(g, sequences) for g in got)


def test_settings_of_no_model():
    with pytest.raises(TypeError, match="'x' is no model"):
        macattn.transformers.settings("x", policy="exact")
    with pytest.raises(TypeError, match="budget is None"):
        macattn.transformers.settings(budget=None)
