"""Replies and their scores: batches equal single prompts, ROUGE-L by hand, endings counted."""

import pytest
import torch
from tiny_models import tiny_model

from gpt_scratch.errors import UserError
from gpt_scratch.evaluation.replies import exact_match, generate_replies, rouge_l, score_replies
from gpt_scratch.tokenization.byte_pair import train_byte_level_bpe


@pytest.mark.parametrize(
    ("reply", "reference", "expected"),
    [
        ("the cat sat", "The cat, it sat.", 6 / 7),
        ("a b c d", "d c b a", 1 / 4),
        ("police killed the gunman", "police kill the gunman", 3 / 4),
        ("the gunman kill police", "police kill the gunman", 2 / 4),
        ("", "a", 0.0),
        ("...", "a", 0.0),
        ("same words here", "same words here", 1.0),
    ],
)
def test_rouge_l_by_hand(reply, reference, expected):
    assert rouge_l(reply, reference) == pytest.approx(expected)


def test_rouge_l_is_googles():
    scorer = pytest.importorskip("rouge_score.rouge_scorer").RougeScorer(["rougeL"])
    words = ["the", "a", "cat", "dog", "sat", "on", "it's", "3", "mats,", "quickly"]
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        one, other = (" ".join(words[i] for i in torch.randint(0, len(words), (9,), generator=generator)) for _ in range(2))
        assert rouge_l(one, other) == pytest.approx(scorer.score(other, one)["rougeL"].fmeasure)


def test_scores_count_every_reply():
    assert exact_match(" The Cat. ", "the cat.") and not exact_match("the cat", "the cat.")
    scores = score_replies(["a b", "", "c"], ["a b", "x", "c d"])
    assert scores == {"exact_matches": 1, "rouge_l": pytest.approx((1 + 0 + 2 / 3) / 3), "empty_replies": 1}


def test_batches_give_the_replies_of_single_prompts_and_endings_are_reported():
    tokenizer = train_byte_level_bpe(["a"], vocab_size=258)
    model = tiny_model(vocab_size=258, max_position_embeddings=64)
    prompts = [tokenizer(text)["input_ids"] for text in ("Hello", "a", "The quick brown fox", "zz")]
    alone = [generate_replies(model, tokenizer, [prompt], 20, progress=False)[0] for prompt in prompts]
    assert generate_replies(model, tokenizer, prompts, 20, batch_size=3, progress=False) == alone
    assert all(reply.tokens == 20 and not reply.ended for reply in alone)
    with torch.no_grad():  # the end of text, whatever came before
        model.lm_head.weight[tokenizer.eos_token_id] = 0
        model.model.norm.bias[:] = 0
        model.model.norm.weight[:] = 0
        model.model.norm.bias[0] = 1
        model.lm_head.weight[tokenizer.eos_token_id, 0] = 9
    ended = generate_replies(model, tokenizer, prompts, 20, progress=False)
    assert all(reply.ended and reply.tokens == 0 and reply.text == "" for reply in ended)
    with pytest.raises(UserError, match="prompt 1 has 70 tokens"):
        generate_replies(model, tokenizer, [tokenizer(text)["input_ids"] for text in ("a", "b" * 70)], progress=False)
