r"""Knowledge distillation: train a smaller model on text and on the predictions of a larger one, with Trainer.

    python scripts/distill.py --teacher runs/chat-small/pretrained --train_file gpt_scratch/data/samples/stories.jsonl --block_size 128 \
        --config_overrides n_embd=64,n_layer=2,n_head=2 --max_steps 300 --output_dir runs/student

For comparison, the same student without a teacher:

    python scripts/distill.py --hard_loss 1 ... --output_dir runs/student-alone

Flags are those of scripts/pretrain.py, and --teacher, --teacher_temperature and --hard_loss. The tokenizer is the teacher's. The validation
loss is that of the text only, so it is comparable with that of other models.
"""

if __name__ == "__main__":
    import _flags

    _flags.check(__file__, __doc__)  # --help and checks of flags, before torch and transformers are imported


import sys

from gpt_scratch.errors import run_script
from gpt_scratch.hub.cards import write_card
from gpt_scratch.hub.push_callback import take_over_push
from gpt_scratch.inference.loading import load_language_model
from gpt_scratch.training.arguments import ScratchTrainingArguments, check_output_directory, parse_arguments
from gpt_scratch.training.distillation import (
    DistillationArguments,
    DistillationTrainer,
    check_arguments_of_teacher,
    check_teacher,
)
from gpt_scratch.training.precision import use_fast_fp32_matmul
from gpt_scratch.training.pretraining import (
    check_arguments,
    make_callbacks,
    make_trainer,
    measure,
    model_config,
    prepare_data,
)
from gpt_scratch.training.run import checkpoint_to_resume, save_trained, write_record


def main(script_args: DistillationArguments, training_args: ScratchTrainingArguments) -> dict:
    """Train the student and return the content of `metrics.json`. Invalid input raises `UserError` before training starts."""
    check_arguments_of_teacher(script_args)
    check_arguments(script_args, training_args)
    config = model_config(script_args)
    resume = checkpoint_to_resume(training_args.output_dir, training_args.resume_from_checkpoint)
    check_output_directory(training_args.output_dir, resume)
    push = take_over_push(training_args)
    use_fast_fp32_matmul()
    assert script_args.teacher is not None  # check_arguments_of_teacher
    teacher, teachers_tokenizer = load_language_model(script_args.teacher, "float32")
    script_args.tokenizer_name = script_args.tokenizer_name or script_args.teacher
    data, tokenizer = prepare_data(script_args, config, resume)
    check_teacher(teacher, teachers_tokenizer, tokenizer, data.validation.block_size)
    print(f"teacher: {teacher.num_parameters():,} parameters")
    callbacks = make_callbacks(script_args, data, tokenizer, title=training_args.run_name or "Distillation")
    trainer = make_trainer(DistillationTrainer, script_args, training_args, config, data, tokenizer, [*callbacks, push])
    assert isinstance(trainer, DistillationTrainer)
    trainer.teacher = teacher.to(training_args.device).eval().requires_grad_(False)
    trainer.teacher_temperature, trainer.hard_loss = script_args.teacher_temperature, script_args.hard_loss
    result = trainer.train(resume_from_checkpoint=resume)
    save_trained(trainer)
    metrics = measure(trainer, data, result.metrics.get("train_runtime"), script_args.eval_train_blocks)
    metrics["teacher_parameters"] = teacher.num_parameters()
    record = write_record(trainer, script_args, metrics)
    if trainer.is_world_process_zero():
        write_card(training_args.output_dir, record)
        print(f"validation loss {metrics['validation_loss']:.3f}; perplexity {metrics['validation_perplexity']:.1f}")
        print(f"everything is in {training_args.output_dir}")
        push.finish()
    return record


if __name__ == "__main__":
    run_script(lambda: main(*parse_arguments((DistillationArguments, ScratchTrainingArguments), sys.argv[1:], __doc__)))
