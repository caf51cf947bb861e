r"""Finetune a language model to follow instructions, with Trainer.

The published recipe on another model: 85/10/5 in the order of the file, batch 8, 2 epochs, AdamW 5e-5:

    python scripts/finetune_instructions.py scripts/configs/instructions/smollm2_135m.yaml --train_file instruction-data.json \
        --model_name_or_path smollm2-135m --output_dir runs/instruct

LoRA, packed rows, chat messages in jsonl:

    python scripts/finetune_instructions.py --train_file chats.jsonl --split random --model_name_or_path gpt2-124m --prompt_style chatml \
        --mask_prompt --packing --pack_length 512 --trainable lora --lora_rank 16 --learning_rate 2e-4 --output_dir runs/chat

Then scripts/chat.py, scripts/serve.py, `pipeline("text-generation")` with messages, or scripts/evaluate_instructions.py with the test.json
that is written. With --trainable lora the adapter is in OUTPUT/adapter and the merged model in OUTPUT. --neftune_noise_alpha 5 adds
NEFTune's noise; every other flag of `TrainingArguments` works, too.
"""

if __name__ == "__main__":
    try:
        import _flags
    except ModuleNotFoundError:  # this file was copied without _flags.py: startup is merely slower
        pass
    else:
        _flags.check(__file__, __doc__)  # --help and checks of flags, before torch and transformers are imported


import sys

from transformers import set_seed

from gpt_scratch.conflicts import check_instructions
from gpt_scratch.data.instruction import InstructionCollator
from gpt_scratch.data.padding import by_length
from gpt_scratch.errors import run_script
from gpt_scratch.hub.cards import write_instruction_card
from gpt_scratch.hub.push_callback import take_over_push
from gpt_scratch.training.arguments import (
    ScratchTrainingArguments,
    check_output_directory,
    keep_best_checkpoint,
    parse_arguments,
)
from gpt_scratch.training.finetuning import describe_trainable, load_language_model
from gpt_scratch.training.instructions import (
    InstructionArguments,
    choose_trainable,
    figures_of_run,
    held_out_losses,
    make_callbacks,
    prepare_data,
    read_splits,
    save_test_records,
)
from gpt_scratch.training.language_model_trainer import LanguageModelTrainer
from gpt_scratch.training.losses import set_language_modeling_loss
from gpt_scratch.training.optimizers import make_optimizers, set_default_learning_rate
from gpt_scratch.training.precision import use_fast_fp32_matmul
from gpt_scratch.training.run import checkpoint_to_resume, save_adapter, save_trained, write_record


def main(script_args: InstructionArguments, training_args: ScratchTrainingArguments) -> dict:
    """Finetune and return the content of `metrics.json`. Invalid input raises `UserError` before training starts."""
    check_instructions(script_args, training_args)
    splits = read_splits(script_args)
    resume = checkpoint_to_resume(training_args.output_dir, training_args.resume_from_checkpoint)
    check_output_directory(training_args.output_dir, resume)
    push = take_over_push(training_args)
    use_fast_fp32_matmul()
    set_seed(training_args.seed)
    model, tokenizer = load_language_model(
        script_args.model_name_or_path, script_args.tokenizer_name, script_args.config_overrides
    )
    data = prepare_data(script_args, splits, model, tokenizer, training_args)
    model = choose_trainable(model, script_args)
    trainable = describe_trainable(model)
    set_default_learning_rate(training_args, trainable[1], "all" if script_args.trainable == "all" else "some")
    if training_args.load_best_model_at_end or script_args.early_stopping_patience is not None:
        keep_best_checkpoint(training_args)
    collator = InstructionCollator(tokenizer.pad_token_id)
    trainer = LanguageModelTrainer(
        model=model,
        args=training_args,
        train_dataset=data.train,
        eval_dataset=by_length(data.encoded["validation"].rows),
        processing_class=tokenizer,
        data_collator=collator,
        callbacks=[
            *make_callbacks(script_args, data, tokenizer, title=training_args.run_name or "Instruction finetuning"),
            push,
        ],
        **make_optimizers(script_args, training_args, model),
    )
    trainer.script_args = script_args
    set_language_modeling_loss(trainer, script_args.loss_implementation)
    batch_size = training_args.per_device_eval_batch_size
    before = held_out_losses(trainer.model, data, collator, batch_size, "before")
    result = trainer.train(resume_from_checkpoint=resume)
    if script_args.trainable == "lora":
        save_adapter(trainer)
        trainer.model = trainer.model.merge_and_unload()
    save_trained(trainer)
    if trainer.is_world_process_zero():
        save_test_records(training_args.output_dir, splits.records["test"])
    after = held_out_losses(trainer.model, data, collator, batch_size, "after")
    metrics = figures_of_run(trainer, data, trainable, before, after, result.metrics["train_runtime"])
    record = write_record(trainer, script_args, metrics)
    if trainer.is_world_process_zero():
        write_instruction_card(training_args.output_dir, record)
        for name, label in {"validation_response_loss": "replies", "validation_loss_all_tokens": "all tokens"}.items():
            print(f"validation loss, {label}: {before[name]:.3f} before, {after[name]:.3f} after")
        print(f"everything is in {training_args.output_dir}")
        push.finish()
    return record


if __name__ == "__main__":
    run_script(lambda: main(*parse_arguments((InstructionArguments, ScratchTrainingArguments), sys.argv[1:], __doc__)))
