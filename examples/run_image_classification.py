"""
Train an image classifier on a pre-trained encoder, and evaluate it on validation images.

    accelerate launch examples/run_image_classification.py --model_name_or_path outputs/run_mae --train_dir my_images
    ... --protocol finetune                              all weights (default)
    ... --protocol linear                                a linear probe: a classifier on frozen features
    ... --protocol partial --num_trainable_blocks 4      the last four blocks and the classifier
    ... --from_scratch                                   random weights: the baseline
    python examples/run_image_classification.py --help

my_images has one folder of images per class; or pass --dataset_name with a column of labels. Validation images come
from --validation_dir, from the data set's own split, or from --train_val_split 0.1.

Flags that you do not set default to the paper's values for the model size (Tables 9 to 11). Run the same command again
to resume. Exit codes: 0 finished; 1 the run failed; 2 invalid arguments, nothing was written; 75 interrupted, a
checkpoint was saved. Launchers may replace the code.
"""

from pathlib import Path

from mae.arguments.classification import ClassificationFlags
from mae.arguments.run import ClassificationArguments
from mae.cli.parser import parse_arguments
from mae.cli.script import quick_imports, run_script


HERE = Path(__file__).resolve().parent


def main() -> None:
    flags, arguments = parse_arguments(
        ClassificationFlags, ClassificationArguments, description=__doc__, recipes=HERE / "recipes"
    )
    # Imported after parsing, so that --help and a mistake on the command line need not wait for them.
    with quick_imports():
        from mae.cli.data import data_name, open_labelled_splits
        from mae.cli.model import build_classifier, choose_statistics, find_bands, read_checkpoint
        from mae.cli.preview import preview_augmentation
        from mae.cli.report import ClassificationReport
        from mae.cli.run import run_training
        from mae.data.loader import choose_num_workers
        from mae.evaluation.accuracy import AccuracyEvaluator
        from mae.evaluation.features_cache import FrozenFeatures
        from mae.training.accelerator import make_accelerator
        from mae.training.classification import Classification, uses_frozen_features
        from mae.training.schedule import fit_to_small_data
        from mae.training.setup import Training

    accelerator = make_accelerator(arguments, arguments.output_dir, arguments.trackers)

    minutes = arguments.data_retry_minutes
    weights = read_checkpoint(flags, minutes)
    bands = find_bands(flags, weights)
    (source, labels), (validation, validation_labels) = open_labelled_splits(
        flags, bands, minutes, arguments.max_eval_samples
    )
    model, found, recipe = build_classifier(flags, weights, labels)
    num_images, num_processes = len(source), accelerator.num_processes
    notes = fit_to_small_data(recipe, arguments, num_images, num_processes)
    measured = choose_statistics(model, source, recipe, arguments)

    loading = (
        arguments.per_device_train_batch_size,
        choose_num_workers(arguments.dataloader_num_workers, accelerator.device),
        minutes,
    )
    features, validation_features = None, None
    if uses_frozen_features(recipe):
        features = FrozenFeatures(model, source, accelerator, "training", *loading, arguments.tf32)
        validation_features = FrozenFeatures(model, validation, accelerator, "validation", *loading, arguments.tf32)
    task = Classification(model, source, labels, recipe, arguments, features)
    if arguments.preview_augmentation is not None:
        return preview_augmentation(task, recipe.seed, arguments)
    accuracy = AccuracyEvaluator(validation, validation_labels, arguments.eval_steps, *loading, validation_features)
    training = Training(task, recipe, arguments, accelerator, [accuracy])
    report = ClassificationReport(training, len(labels.names), len(validation_labels.values))
    run_training(training, report, data_name(recipe, source.revision), [found, measured, *notes])


if __name__ == "__main__":
    run_script(main)
