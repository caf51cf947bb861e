r"""Preference training of a finetuned model with TRL: DPO, or a reward model and GRPO.

The published DPO, on another model:

    python scripts/finetune_preferences.py dpo scripts/configs/preferences/dpo.yaml --train_file instruction-data-with-preference.json \
        --model_name_or_path runs/instruct --output_dir runs/dpo

RLHF with a reward model:

    python scripts/finetune_preferences.py reward scripts/configs/preferences/reward.yaml \
        --train_file instruction-data-with-preference.json --model_name_or_path runs/instruct --output_dir runs/reward
    python scripts/finetune_preferences.py grpo scripts/configs/preferences/grpo.yaml \
        --train_file instruction-data-with-preference.json --model_name_or_path runs/instruct --reward_model runs/reward \
        --output_dir runs/grpo

GRPO with a computed reward, without a reward model:

    python scripts/finetune_preferences.py grpo scripts/configs/preferences/grpo_exact_match.yaml --reward exact_match \
        --train_file gpt_scratch/data/samples/dialogues_reinforcement.jsonl \
        --validation_file gpt_scratch/data/samples/dialogues_validation.jsonl --model_name_or_path runs/chat --output_dir runs/grpo

The first argument is the method; every flag of TRL's DPOConfig, RewardConfig or GRPOConfig works. A margin is TRL's: beta times
the difference of the log-probability ratios, summed over the tokens of a reply.
"""

if __name__ == "__main__":
    try:
        import _flags
    except ModuleNotFoundError:  # this file was copied without _flags.py: startup is merely slower
        pass
    else:
        _flags.check(__file__, __doc__)  # --help and checks of flags, before torch and transformers are imported


import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gpt_scratch.conflicts import check_preferences
from gpt_scratch.errors import UserError, run_script
from gpt_scratch.evaluation.rewards import load_rewards
from gpt_scratch.hub.cards import write_preference_card
from gpt_scratch.hub.push_callback import take_over_push
from gpt_scratch.plots import plot_or_warn
from gpt_scratch.training.arguments import check_output_directory, parse_arguments
from gpt_scratch.training.precision import use_fast_fp32_matmul
from gpt_scratch.training.preferences import (
    METHODS,
    PreferenceArguments,
    configuration_class,
    figures_of_run,
    make_trainer,
    plot_curves,
    read_data,
)
from gpt_scratch.training.reinforcement import describe_success, measure_success
from gpt_scratch.training.run import checkpoint_to_resume, save_trained, write_record


def main(method: str, script_args: PreferenceArguments, training_args: Any) -> dict:
    """Train and return the content of `metrics.json`. Invalid input raises `UserError` before training starts."""
    check_preferences(method, script_args, training_args)
    data = read_data(script_args)
    resume = checkpoint_to_resume(training_args.output_dir, training_args.resume_from_checkpoint)
    check_output_directory(training_args.output_dir, resume)
    push = take_over_push(training_args)
    use_fast_fp32_matmul()
    trainer = make_trainer(method, script_args, training_args, data)
    trainer.script_args = script_args
    trainer.allow_non_finite = script_args.allow_non_finite
    trainer.add_callback(push)
    before = success_of(trainer, script_args, data)
    if before and script_args.reward:
        print(describe_success(before, load_rewards(script_args.reward), training_args.temperature))
    result = trainer.train(resume_from_checkpoint=resume)
    save_trained(trainer)
    figures = figures_of_run(trainer, data, result.metrics["train_runtime"])
    if after := success_of(trainer, script_args, data):
        print(f"likeliest replies rewarded: {before['greedy']['success']:.1%} before, {after['greedy']['success']:.1%} after")
        figures |= {"success_before": before, "success": after}
    record = write_record(trainer, script_args, figures)
    if trainer.is_world_process_zero():
        plot_or_warn(plot_curves, method, trainer.state.log_history, Path(training_args.output_dir))
        write_preference_card(training_args.output_dir, method, record)
        print(f"everything is in {training_args.output_dir}")
        push.finish()
    return record


def success_of(trainer: Any, args: PreferenceArguments, data: Any) -> dict:
    """Success rate of the trainer's model; empty without computed rewards."""
    if not args.reward:
        return {}
    return measure_success(
        trainer.model,
        trainer.processing_class,
        data.questions["validation"],
        args.prompt_style,
        load_rewards(args.reward),
        trainer.args.reward_weights,
        trainer.args,
        args.success_questions,
    )


def parse(argv: Sequence[str]) -> tuple[str, PreferenceArguments, Any]:
    """Parse the method, this script's flags and TRL's.

    Raises:
        UserError: an unknown method or flag.
    """
    if not argv or argv[0] not in METHODS:
        raise UserError(f"the first argument must be the method ({', '.join(METHODS)})" + (f", not {argv[0]!r}" if argv else ""))
    return argv[0], *parse_arguments((PreferenceArguments, configuration_class(argv[0])), argv[1:], __doc__)


if __name__ == "__main__":
    if sys.argv[1:] in (["-h"], ["--help"]):
        print(__doc__)
    else:
        run_script(lambda: main(*parse(sys.argv[1:])))
