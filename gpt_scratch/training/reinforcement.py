"""GRPO with computed rewards: questions with references, rewards in TRL's interface, and the initial success rate of the model.

If no reply of a group is rewarded, or every reply, the advantages of the group are zero and nothing is learned. Therefore the share of
rewarded replies is measured before training.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..data.instruction import (
    Conversations,
    prompt_ids,
    prompt_messages,
    reply_text,
    shared_prompts,
    split_conversations,
)
from ..data.opening import Reading
from ..data.records import question, read_records
from ..evaluation.replies import generate_replies
from ..evaluation.rewards import Reward, check_references, total

USEFUL = (0.1, 0.6)  # useful share of rewarded replies before training: outside, the rewards of most groups are equal


@dataclass
class QuestionData:
    """Training and validation questions with their references: rows of `prompt` (messages) and `reference`."""

    rows: dict[str, datasets.Dataset]
    questions: dict[str, Conversations]
    shared: int  # number of validation questions that are also in train

    def description(self) -> dict[str, Any]:
        """Statistics of the data, for `metrics.json`."""
        counts = {split: {"questions": len(rows)} for split, rows in self.rows.items()}
        counts["validation"]["questions_also_in_train"] = self.shared
        return counts


def read_questions(args: Any, rewards: Sequence[Reward]) -> QuestionData:
    """Read the records of `--train_file`, with the last reply as reference, and of `--validation_file` or the last part.

    Raises:
        UserError: records that cannot be read, or a reference that a reward cannot compare.
    """
    reading, ignored = Reading.of(args), args.ignore_keys or ()
    train = read_records(args.train_file, question, "train", reading, ignored)
    if args.validation_file is not None:
        splits = {"train": train, "validation": read_records(args.validation_file, question, "validation", reading, ignored)}
    else:
        splits = split_conversations(train, args.split_fractions)
        del splits["test"]
    rows = {}
    for split, part in splits.items():
        references = [reply_text(record, args.prompt_style) for record in part.records]
        check_references(rewards, references, part.places)
        prompts = [prompt_messages(record, args.prompt_style) for record in part.records]
        # JSON, as in data/preference.py: a struct would add the keys of all messages to each.
        features = datasets.Features({"prompt": datasets.Json(), "reference": datasets.Value("string")})
        rows[split] = datasets.Dataset.from_dict({"prompt": prompts, "reference": references}, features)
    data = QuestionData(rows, splits, len(shared_prompts(splits["validation"], splits["train"])))
    print(f"train: {len(rows['train']):,} questions")
    print(f"validation: {len(rows['validation']):,} questions, {data.shared:,} of them also in train")
    return data


def reward_functions(rewards: Sequence[Reward], end: int) -> list[Callable[..., list[float]]]:
    """The rewards as functions for TRL.

    Args:
        end: id of the end-of-text token.
    """

    def in_trl_form(reward: Reward) -> Callable[..., list[float]]:
        def compute(prompts: Any, completions: Any, completion_ids: Any, reference: Any, **_: Any) -> list[float]:
            return [
                reward(prompt, completion[-1]["content"], expected, end in list(ids))
                for prompt, completion, ids, expected in zip(prompts, completions, completion_ids, reference)
            ]

        compute.__name__ = reward.name  # in TRL's logs
        return compute

    return [in_trl_form(reward) for reward in rewards]


def measure_success(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    data: Conversations,
    style: str,
    rewards: Sequence[Reward],
    weights: Sequence[float] | None,
    training_args: Any,
    max_questions: int,
) -> dict[str, Any]:
    """Rewards of replies to the first `max_questions` questions: a greedy reply, and a group of sampled replies for each.

    The random state is preserved.

    Returns `{"questions", "greedy", "sampled"}`, the last two each with `success`, the share of replies with the full first reward, the
    mean `reward` and the mean of each in `rewards`; and `replies` of the first questions, with their references.
    """
    records = data.records[:max_questions]
    prompts = [prompt_ids(record, tokenizer, style) for record in records]
    messages = [prompt_messages(record, style) for record in records]
    references = [reply_text(record, style) for record in records]
    found: dict[str, Any] = {"questions": len(records)}
    was_training = model.training
    model.eval()
    for name, repeated, temperature in (
        ("greedy", 1, 0.0),
        ("sampled", training_args.num_generations, training_args.temperature),
    ):
        with torch.random.fork_rng():
            torch.manual_seed(training_args.seed)
            replies = generate_replies(
                model,
                tokenizer,
                [prompt for prompt in prompts for _ in range(repeated)],
                training_args.max_completion_length,
                64,
                False,
                temperature,
            )
        values = [
            {r.name: r(messages[i // repeated], reply.text, references[i // repeated], reply.ended) for r in rewards}
            for i, reply in enumerate(replies)
        ]
        found[name] = {
            "success": sum(value[rewards[0].name] >= 1 for value in values) / len(values),
            "reward": sum(total(value, weights) for value in values) / len(values),
            "rewards": {r.name: sum(value[r.name] for value in values) / len(values) for r in rewards},
        }
        if repeated == 1:
            found["replies"] = [
                {"question": message[-1]["content"], "reply": reply.text, "reference": reference}
                for message, reply, reference in zip(messages[:5], replies, references)
            ]
    model.train(was_training)
    return found


def describe_success(success: dict[str, Any], rewards: Sequence[Reward], temperature: float) -> str:
    """Describe the success rate before training, with a warning if it is not useful for GRPO."""
    sampled, low, high = success["sampled"]["success"], *USEFUL
    line = (
        f"the model to start from: {success['greedy']['success']:.1%} of its likeliest replies and {sampled:.1%} of those drawn at "
        f"temperature {temperature:g} get all of {rewards[0].name} ({success['questions']} validation questions)"
    )
    if low <= sampled <= high:
        return line
    if sampled < low:
        return (
            f"{line}\nwarning: below {low:.0%}, most groups have no rewarded reply, and nothing is learned from them: finetune longer "
            "first, use easier questions, or sample more replies (--num_generations)"
        )
    return f"{line}\nwarning: above {high:.0%}, all replies of most groups are rewarded, and nothing is learned: use harder questions"
