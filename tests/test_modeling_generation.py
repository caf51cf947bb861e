"""generate(): the token-by-token loop written out here is what greedy decoding must give, with every cache and helper."""

import pytest
import tiny_models
import torch
from tiny_models import assert_equal, randomize, tiny_config, token_ids
from transformers import CompileConfig, DynamicCache, GenerationConfig, StaticCache, set_seed

from gpt_scratch import GPTScratchForCausalLM

STYLES = pytest.mark.parametrize("style", ["gpt2", "llama"])


def tiny_model(style: str, **settings):
    """With an untied head: a tied one of random weights repeats its last token for ever."""
    return tiny_models.tiny_model(style, tie_word_embeddings=False, **settings)


def greedy_by_hand(model, ids: torch.Tensor, new_tokens: int) -> torch.Tensor:
    """The most likely token at each step, from whole forward passes without a cache."""
    with torch.no_grad():
        for _ in range(new_tokens):
            logits = model(ids, use_cache=False).logits[:, -1]
            ids = torch.cat((ids, logits.argmax(-1, keepdim=True)), dim=1)
    return ids


def greedy(model, ids: torch.Tensor, new_tokens: int = 8, **settings) -> torch.Tensor:
    return model.generate(ids, max_new_tokens=new_tokens, do_sample=False, **settings)


@STYLES
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("length", [1, 6])
def test_greedy_equals_the_loop_by_hand(style, attention, length):
    model, ids = tiny_model(style, attention=attention), token_ids(2, length)
    expected = greedy_by_hand(model, ids, 8)
    assert len(set(expected[0].tolist())) > 3  # not a single repeated token
    for settings in ({}, {"use_cache": False}, {"cache_implementation": "static"}):
        assert torch.equal(greedy(model, ids, **settings), expected), settings


@STYLES
@pytest.mark.parametrize("cache", [{}, {"use_cache": False}, {"cache_implementation": "static"}])
def test_prompts_padded_on_the_left_continue_as_if_alone(style, cache):
    model = tiny_model(style)
    rows = [token_ids(1, length, seed=length) for length in (7, 4, 1)]
    ids = torch.cat([torch.nn.functional.pad(row, (9 - row.shape[1], 0)) for row in rows])
    out = greedy(model, ids, attention_mask=(ids != 0).long(), **cache)
    for row, continued in zip(rows, out):
        assert continued[9:].tolist() == greedy_by_hand(model, row, 8)[0, row.shape[1] :].tolist()


@STYLES
def test_continuing_from_a_cache(style):
    """A chat's next turn: the cache of the first call, and all tokens so far with something appended."""
    model, ids = tiny_model(style), token_ids(2, 5)
    first = greedy(model, ids, 4, return_dict_in_generate=True)
    longer = torch.cat((first.sequences, token_ids(2, 3, seed=9)), dim=1)
    out = greedy(model, longer, 6, past_key_values=first.past_key_values)
    assert torch.equal(out, greedy_by_hand(model, longer, 6))
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(ids[:, :3], past_key_values=cache)
    assert torch.equal(greedy(model, ids, 6, past_key_values=cache), greedy_by_hand(model, ids, 6))


@STYLES
def test_generating_from_embeddings(style):
    model, ids = tiny_model(style), token_ids(2, 5)
    out = greedy(model, None, inputs_embeds=model.get_input_embeddings()(ids))
    assert torch.equal(out, greedy(model, ids)[:, 5:])


@STYLES
def test_scores_are_the_logits(style):
    model, ids = tiny_model(style, attention="eager"), token_ids(2, 5)
    out = greedy(
        model, ids, 4, return_dict_in_generate=True, output_logits=True, output_hidden_states=True, output_attentions=True
    )
    with torch.no_grad():
        expected = model(out.sequences).logits[:, 4:-1]
    assert_equal(torch.stack(out.logits, dim=1), expected)
    assert len(out.hidden_states) == len(out.attentions) == 4
    assert out.attentions[3][0].shape == (2, 4, 1, 8) and out.hidden_states[3][0].shape == (2, 1, 32)


@STYLES
def test_beam_search_as_wide_as_the_vocabulary_finds_the_best_of_all(style):
    """Two tokens: all 61 * 61 continuations can be looked at."""
    model, ids = tiny_model(style), token_ids(1, 5)
    with torch.no_grad():
        every = torch.cat((ids.expand(61, -1), torch.arange(61)[:, None]), dim=1)
        steps = model(every).logits.log_softmax(-1)
        scores = steps[0, 4, :, None] + steps[:, 5]  # (first token, second token)
    out = greedy(model, ids, 2, num_beams=61, num_return_sequences=3, return_dict_in_generate=True, output_scores=True)
    best = scores.flatten().topk(3)
    assert [row[5] * 61 + row[6] for row in out.sequences.tolist()] == best.indices.tolist()
    assert_equal(out.sequences_scores * 2, best.values)  # the score is the mean over the new tokens
    few = greedy(model, token_ids(3, 5), 8, num_beams=4)
    assert torch.equal(few, greedy(model, token_ids(3, 5), 8, num_beams=4, use_cache=False))


@STYLES
@pytest.mark.parametrize(
    "settings", [{"temperature": 0.7}, {"top_k": 5}, {"top_p": 0.8}, {"min_p": 0.1}, {"repetition_penalty": 1.3}], ids=str
)
def test_sampling_repeats_with_a_seed(style, settings):
    model, ids = tiny_model(style), token_ids(1, 5).expand(4, -1)

    def sample(seed: int) -> list:
        set_seed(seed)
        return model.generate(ids, max_new_tokens=8, do_sample=True, **settings).tolist()

    assert sample(1) == sample(1)
    assert sample(1) != sample(2)


@STYLES
def test_assisted_generation_equals_greedy(style):
    model, draft, ids = tiny_model(style), randomize(tiny_model(style, num_hidden_layers=1), seed=1), token_ids(1, 5)
    expected = greedy(model, ids, 12)
    assert torch.equal(greedy(model, ids, 12, assistant_model=draft), expected)
    assert torch.equal(greedy(model, ids, 12, assistant_model=tiny_model(style)), expected)  # a draft that is always right
    assert torch.equal(greedy(model, ids.repeat(1, 2), 12, prompt_lookup_num_tokens=3), greedy(model, ids.repeat(1, 2), 12))


@STYLES
def test_early_exit_leaves_the_model_as_it_was(style):
    model, ids = tiny_model(style), token_ids(1, 5)
    expected = greedy(model, ids)
    assert torch.equal(greedy(model, ids, assistant_early_exit=1), expected)
    assert model.config.num_hidden_layers == 2
    assert torch.equal(greedy(model, ids), expected)


@STYLES
def test_stops_at_the_end_token_and_pads_the_rest(style):
    model, ids = tiny_model(style), token_ids(3, 5)
    free = greedy(model, ids, 8)
    end = free[0, 7].item()
    stopped = greedy(model, ids, 8, eos_token_id=end, pad_token_id=0)
    for row, expected in zip(stopped[:, 5:].tolist(), free[:, 5:].tolist()):
        length = expected.index(end) + 1 if end in expected else len(expected)
        assert row[:length] == expected[:length] and not any(row[length:])


def test_generation_config_comes_from_the_model_config():
    model = GPTScratchForCausalLM(tiny_config("gpt2", eos_token_id=5, bos_token_id=6, pad_token_id=7))
    assert isinstance(model.generation_config, GenerationConfig)
    ids = (model.generation_config.eos_token_id, model.generation_config.bos_token_id, model.generation_config.pad_token_id)
    assert ids == (5, 6, 7)


@pytest.mark.slow
@STYLES
def test_compiled_decoding_with_a_static_cache(style):
    torch._dynamo.reset()
    model, ids = tiny_model(style), token_ids(2, 5)
    expected = greedy(model, ids, 10)
    compile_config = CompileConfig(fullgraph=True, mode="default")
    compile_config._compile_all_devices = True  # otherwise only on accelerators
    settings = {"cache_implementation": "static", "compile_config": compile_config}
    torch._dynamo.utils.counters.clear()
    assert torch.equal(greedy(model, ids, 10, **settings), expected)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1  # one, for all steps
    with torch._dynamo.config.patch(error_on_recompile=True):
        other = token_ids(2, 5, seed=3)
        assert torch.equal(greedy(model, other, 10, **settings), greedy(model, other, 10))


@pytest.mark.slow
def test_compiled_decoding_stops_at_the_last_learned_position():
    """Inside a compiled forward positions are not known, and past the end of their table lies anything."""
    torch._dynamo.reset()
    compile_config = CompileConfig(fullgraph=True, mode="default")
    compile_config._compile_all_devices = True
    with pytest.raises(ValueError, match=r"33 positions.* 32 \(max_position_embeddings\)"):
        greedy(tiny_model("gpt2"), token_ids(1, 28), cache_implementation="static", compile_config=compile_config)


@pytest.mark.thorough
@STYLES
def test_decoding_step_is_one_graph_and_compiled_once(style):
    torch._dynamo.reset()
    model, ids = tiny_model(style), token_ids(2, 12)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad():
        expected, cache = model(ids).logits, StaticCache(config=model.config, max_cache_len=16)
        model(ids[:, :4], past_key_values=cache)
        for t in range(4, 12):
            with torch._dynamo.config.patch(error_on_recompile=t > 4):
                logits = compiled(ids[:, t : t + 1], past_key_values=cache).logits
            assert_equal(logits[:, 0], expected[:, t])
