"""
Train a segmenter, which finds the class of each pixel, on a pre-trained encoder, and evaluate it on validation images.

    accelerate launch examples/run_semantic_segmentation.py --model_name_or_path outputs/run_mae \\
        --train_dir images --train_mask_dir masks --train_val_split 0.2
    ... --protocol finetune                              all weights (default)
    ... --protocol linear                                one layer on frozen features
    ... --protocol partial --num_trainable_blocks 4      the last four blocks and the head
    ... --from_scratch                                   random weights: the baseline
    python examples/run_semantic_segmentation.py --help

A mask has the name of its image and one class number per pixel, 255 for pixels that do not count. Or pass
--dataset_name with a column of images and one of masks. --id2label names the classes.

Images are cropped to the model's size in training, and evaluated whole in overlapping windows. Flags that you do not
set default to the values for ADE20K (Appendix A.4). Run the same command again to resume. Exit codes: 0 finished; 1
the run failed; 2 invalid arguments, nothing was written; 75 interrupted, a checkpoint was saved. Launchers may replace
the code.
"""

from pathlib import Path

from mae.arguments.segmentation import SegmentationArguments, SegmentationFlags
from mae.cli.parser import parse_arguments
from mae.cli.script import run_script
from mae.utils.errors import UserError


HERE = Path(__file__).resolve().parent


def main() -> None:
    flags, arguments = parse_arguments(
        SegmentationFlags, SegmentationArguments, description=__doc__, recipes=HERE / "recipes"
    )
    # Imported after parsing, so that --help and a mistake on the command line need not wait for them.
    from mae.cli.data import data_name
    from mae.cli.model import choose_statistics, find_bands, read_checkpoint
    from mae.cli.preview import preview_augmentation
    from mae.cli.report import SegmentationReport
    from mae.cli.run import run_training
    from mae.cli.segmentation import build_segmenter, open_masked_splits
    from mae.data.loader import choose_num_workers
    from mae.evaluation.segmentation import SegmentationEvaluator
    from mae.training.accelerator import make_accelerator
    from mae.training.schedule import fit_to_small_data
    from mae.training.segmentation import Segmentation
    from mae.training.setup import Training

    accelerator = make_accelerator(arguments, arguments.output_dir, arguments.trackers)
    if accelerator.is_fsdp2:
        raise UserError("Segmentation does not work with FSDP, because ranks evaluate images of other sizes. Use DDP.")
    minutes = arguments.data_retry_minutes
    weights = read_checkpoint(flags, minutes)
    bands = find_bands(flags, weights)
    data = open_masked_splits(flags, flags, bands, minutes, flags.max_train_samples, arguments.max_eval_samples)
    model, found, recipe = build_segmenter(flags, weights, data)
    source, masks = data.train
    notes = fit_to_small_data(recipe, arguments, len(source), accelerator.num_processes)
    measured = choose_statistics(model, source, recipe, arguments)

    task = Segmentation(model, source, masks, data.coding, recipe, arguments)
    if arguments.preview_augmentation is not None:
        return preview_augmentation(task, recipe.seed, arguments)
    evaluator = SegmentationEvaluator(
        *data.validation,
        data.coding,
        arguments.eval_steps,
        arguments.per_device_train_batch_size,
        choose_num_workers(arguments.dataloader_num_workers, accelerator.device),
        minutes,
        arguments.eval_overlap,
        arguments.save_predictions,
    )
    training = Training(task, recipe, arguments, accelerator, [evaluator])
    report = SegmentationReport(training, len(data.coding.names), len(data.validation[0]))
    run_training(training, report, data_name(recipe, source.revision), [found, measured, *data.notes, *notes])


if __name__ == "__main__":
    run_script(main)
