"""The evaluators of pre-training, from flags."""

from accelerate import Accelerator

from mae.arguments.recipes import PreTrainingRecipe
from mae.arguments.run import PreTrainingArguments
from mae.data.bands import bands_of
from mae.data.loader import choose_num_workers
from mae.data.sources import Source
from mae.evaluation.evaluator import Evaluator
from mae.evaluation.reconstruction import ReconstructionEvaluator, load_images
from modeling_mae import MAEForPreTraining


def make_evaluators(
    model: MAEForPreTraining,
    source: Source,
    validation: Source | None,
    recipe: PreTrainingRecipe,
    arguments: PreTrainingArguments,
    accelerator: Accelerator,
) -> tuple[ReconstructionEvaluator, list[Evaluator]]:
    """
    The evaluator of reconstructions, and those that flags ask for. Imports of the latter are late: a run need not wait
    for them.

    Raises:
        UserError: if the data has no labels or masks for them, or a package is missing.
    """
    minutes, batch_size = arguments.data_retry_minutes, arguments.per_device_train_batch_size
    num_workers = choose_num_workers(arguments.dataloader_num_workers, accelerator.device)
    reconstruction = ReconstructionEvaluator(
        lambda: load_images(validation or source, model.config, arguments.max_eval_samples, retry_minutes=minutes),
        arguments.eval_steps,
        batch_size,
        "Validation images" if validation else "Training images",
        max_nodata_share=recipe.max_nodata_share,
    )
    others: list[Evaluator] = []
    if arguments.knn_epochs is not None or arguments.probe_epochs is not None:
        from mae.evaluation.logistic import check_scikit_learn
        from mae.evaluation.neighbours import NeighboursEvaluator
        from mae.evaluation.probe import ProbeEvaluator
        from mae.evaluation.sampled import sample_labelled

        if arguments.probe_epochs is not None:
            check_scikit_learn("leave out --probe_epochs")
        flag = "--probe_epochs" if arguments.knn_epochs is None else "--knn_epochs"
        loading = recipe.seed, batch_size, num_workers, minutes
        sample = sample_labelled(source, validation, flag, *loading, arguments.label_column_name)
        if arguments.knn_epochs is not None:
            others.append(NeighboursEvaluator(sample, arguments.knn_epochs))
        if arguments.probe_epochs is not None:
            others.append(ProbeEvaluator(sample, arguments.probe_epochs))
    if arguments.rank_epochs is not None:
        from mae.evaluation.spectrum import SpectrumEvaluator, sample_images

        images = sample_images(validation or source, recipe.seed)
        others.append(SpectrumEvaluator(images, arguments.rank_epochs, batch_size, num_workers, minutes))
    if arguments.dense_epochs is not None:
        from mae.cli.dense import make_dense_evaluator

        others.append(make_dense_evaluator(recipe, arguments, bands_of(model.config), accelerator))
    return reconstruction, others
