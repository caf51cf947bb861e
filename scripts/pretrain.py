r"""Pretrain a GPT with Trainer on text files or a `datasets` data set.

A small model and tokenizer on your own text (CPU, a minute or two):

    python scripts/pretrain.py --train_file my_text.txt --vocab_size 1000 --block_size 64 \
        --config_overrides n_embd=128,n_layer=4,n_head=4 --num_train_epochs 10 --output_dir runs/mine

A recipe with overriding flags:

    python scripts/pretrain.py scripts/configs/the_verdict_124m.yaml --train_file the-verdict.txt --output_dir runs/verdict

Several GPUs, and resuming after an interruption:

    torchrun --nproc_per_node 8 scripts/pretrain.py scripts/configs/gpt2_124m_fineweb_edu_8gpu.yaml --output_dir runs/fineweb
    python scripts/pretrain.py ... --resume_from_checkpoint latest

Every flag of transformers' `TrainingArguments` works. The output directory is a Hub repository: safetensors, config, the model's
code, tokenizer, generation config and model card, with `metrics.json`, `trainer_state.json`, `samples.jsonl`, the loss curve, and
`reference_outputs.json` for scripts/verify_checkpoint.py.
"""

if __name__ == "__main__":
    try:
        import _flags
    except ModuleNotFoundError:  # this file was copied without _flags.py: startup is merely slower
        pass
    else:
        _flags.check(__file__, __doc__)  # --help and checks of flags, before torch and transformers are imported


import sys

from gpt_scratch.errors import run_script
from gpt_scratch.hub.cards import write_card
from gpt_scratch.hub.push_callback import take_over_push
from gpt_scratch.training.arguments import ScratchTrainingArguments, check_output_directory, parse_arguments
from gpt_scratch.training.language_model_trainer import LanguageModelTrainer
from gpt_scratch.training.losses import set_language_modeling_loss
from gpt_scratch.training.precision import use_fast_fp32_matmul
from gpt_scratch.training.pretraining import (
    PretrainingArguments,
    check_arguments,
    make_callbacks,
    make_trainer,
    measure,
    model_config,
    prepare_data,
)
from gpt_scratch.training.run import checkpoint_to_resume, save_trained, write_record


def main(script_args: PretrainingArguments, training_args: ScratchTrainingArguments) -> dict:
    """Pretrain and return the content of `metrics.json`. Invalid input raises `UserError` before training starts."""
    check_arguments(script_args, training_args)
    config = model_config(script_args)
    resume = checkpoint_to_resume(training_args.output_dir, training_args.resume_from_checkpoint)
    check_output_directory(training_args.output_dir, resume)
    push = take_over_push(training_args)
    use_fast_fp32_matmul()
    data, tokenizer = prepare_data(script_args, config, resume)
    callbacks = make_callbacks(script_args, data, tokenizer, title=training_args.run_name or "Pretraining")
    trainer = make_trainer(LanguageModelTrainer, script_args, training_args, config, data, tokenizer, [*callbacks, push])
    set_language_modeling_loss(trainer, script_args.loss_implementation)
    result = trainer.train(resume_from_checkpoint=resume)
    save_trained(trainer)
    metrics = measure(trainer, data, result.metrics.get("train_runtime"), script_args.eval_train_blocks)
    record = write_record(trainer, script_args, metrics)
    if trainer.is_world_process_zero():
        write_card(training_args.output_dir, record)
        before = f", from {metrics['curve'][0]['eval_loss']:.3f} before training" if training_args.eval_on_start else ""
        print(f"validation loss {metrics['validation_loss']:.3f}{before}; perplexity {metrics['validation_perplexity']:.1f}")
        print(f"everything is in {training_args.output_dir}: model, tokenizer, README.md, metrics.json, samples.jsonl, loss.png")
        push.finish()
    return record


if __name__ == "__main__":
    run_script(lambda: main(*parse_arguments((PretrainingArguments, ScratchTrainingArguments), sys.argv[1:], __doc__)))
