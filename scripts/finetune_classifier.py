r"""Finetune a classifier with Trainer: SMS spam, or any labelled texts.

The book's spam classifier, from a converted checkpoint, on the published split:

    python scripts/finetune_classifier.py --train_file SMSSpamCollection.zip --split published --model_name_or_path gpt2-124m \
        --trainable last_blocks --train_last_blocks 1 --num_train_epochs 5 --learning_rate 5e-5 --weight_decay 0.1 \
        --output_dir runs/spam

From random weights, on the deduplicated split:

    python scripts/finetune_classifier.py scripts/configs/spam/random.yaml --train_file SMSSpamCollection.tsv \
        --output_dir runs/spam-small

Any csv with a text and a label column, 80/10/10:

    python scripts/finetune_classifier.py --train_file reviews.csv --text_column review --label_column stars \
        --split_fractions 0.8 0.1 0.1 --model_name_or_path runs/mine --trainable all --output_dir runs/reviews

Then `pipeline("text-classification", model=...)` or scripts/classify.py. The output directory holds the model (or the adapter and the
merged model, with --trainable lora), tokenizer, card, metrics.json, the plots and mistakes.tsv.
"""

if __name__ == "__main__":
    try:
        import _flags
    except ModuleNotFoundError:  # this file was copied without _flags.py: startup is merely slower
        pass
    else:
        _flags.check(__file__, __doc__)  # --help and checks of flags, before torch and transformers are imported


import sys
from pathlib import Path

from transformers import DataCollatorWithPadding, EarlyStoppingCallback

from gpt_scratch.conflicts import check_classification
from gpt_scratch.data.padding import padding_share
from gpt_scratch.errors import run_script
from gpt_scratch.evaluation.classification import class_report, figures_by_class
from gpt_scratch.hub.cards import write_classifier_card
from gpt_scratch.hub.push_callback import take_over_push
from gpt_scratch.plots import plot_or_warn
from gpt_scratch.training.arguments import (
    ScratchTrainingArguments,
    check_output_directory,
    keep_best_checkpoint,
    parse_arguments,
)
from gpt_scratch.training.classification import (
    ClassificationArguments,
    ClassifierTrainer,
    choose_trainable,
    encode_splits,
    figures_of_run,
    make_compute_metrics,
    make_loss,
    make_model,
    measure,
    plot_confusion,
    plot_curves,
    read_splits,
    trainable_scope,
    warn_of_missed_classes,
    write_mistakes,
)
from gpt_scratch.training.finetuning import describe_trainable
from gpt_scratch.training.optimizers import set_default_learning_rate
from gpt_scratch.training.precision import use_fast_fp32_matmul
from gpt_scratch.training.run import checkpoint_to_resume, save_adapter, save_trained, write_record


def main(script_args: ClassificationArguments, training_args: ScratchTrainingArguments) -> dict:
    """Finetune and return the content of `metrics.json`. Invalid input raises `UserError` before training starts."""
    check_classification(script_args, training_args)
    splits = read_splits(script_args)
    resume = checkpoint_to_resume(training_args.output_dir, training_args.resume_from_checkpoint)
    check_output_directory(training_args.output_dir, resume)
    push = take_over_push(training_args)
    use_fast_fp32_matmul()
    model, tokenizer = make_model(script_args, splits.ids, splits.texts["train"], training_args.seed, resume)
    data = encode_splits(script_args, splits, model, tokenizer)
    model = choose_trainable(model, script_args)
    trainable = describe_trainable(model)
    set_default_learning_rate(training_args, trainable[1], trainable_scope(script_args))
    grouped = training_args.train_sampling_strategy == "group_by_length"
    share = padding_share(data.rows["train"]["length"], training_args.per_device_train_batch_size, grouped)
    print(f"padding: {share:.1%} of the tokens in training batches{' grouped by length' if grouped else ''}")
    if training_args.load_best_model_at_end or script_args.early_stopping_patience is not None:
        keep_best_checkpoint(training_args, "eval_accuracy", greater_is_better=True)
    patience = script_args.early_stopping_patience
    trainer = ClassifierTrainer(
        model=model,
        args=training_args,
        train_dataset=data.rows["train"],
        eval_dataset=data.rows["validation"],
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=make_compute_metrics(),
        callbacks=[push, *([EarlyStoppingCallback(patience)] if patience is not None else [])],
        **make_loss(script_args, training_args, data),
    )
    trainer.script_args = script_args
    result = trainer.train(resume_from_checkpoint=resume)
    if script_args.trainable == "lora":
        save_adapter(trainer)
        trainer.model = trainer.model.merge_and_unload()
    save_trained(trainer)
    measured, predictions = measure(trainer, data)
    metrics = figures_of_run(trainer, data, measured, trainable, result.metrics["train_runtime"])
    record = write_record(trainer, script_args, metrics | {"padding_share": share})
    if trainer.is_world_process_zero():
        output = Path(training_args.output_dir)
        write_mistakes(output / "mistakes.tsv", predictions, splits.names)
        plot_or_warn(plot_confusion, measured["test_confusion_matrix"], splits.names, output / "confusion_matrix")
        plot_or_warn(plot_curves, trainer.state.log_history, len(data.rows["train"]), output)
        write_classifier_card(training_args.output_dir, record)
        confusion = measured["test_confusion_matrix"]
        print(class_report(figures_by_class(confusion, splits.names)))
        if warning := warn_of_missed_classes(confusion, splits.names, script_args):
            print(warning)
        print(
            f"test: accuracy {metrics['test_accuracy']:.2%}, macro F1 {metrics['test_macro_f1']:.4f} on {len(splits.texts['test'])} texts"
        )
        print(f"everything is in {training_args.output_dir}")
        push.finish()
    return record


if __name__ == "__main__":
    run_script(lambda: main(*parse_arguments((ClassificationArguments, ScratchTrainingArguments), sys.argv[1:], __doc__)))
