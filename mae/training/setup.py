"""A training run before it starts: what it is made of, and whether that fits together."""

import logging
import math
from collections.abc import Sequence
from typing import Any

from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader

from mae.arguments.recipes import Recipe
from mae.arguments.run import RunArguments
from mae.data.dataset import FeatureDataset, SampleDataset
from mae.data.loader import choose_num_workers, make_loader
from mae.data.mixture import make_order
from mae.data.pixel_cache import CachedRows, PixelCache
from mae.data.stream import SampleStream
from mae.evaluation.evaluator import Evaluator
from mae.training.average import AveragedWeights
from mae.training.checkpointing import TrainState
from mae.training.identity import resolved_recipe, run_identity
from mae.training.optimization import GuardedStep
from mae.training.pixels import describe, open_pixel_cache
from mae.training.schedule import Schedule
from mae.training.task import Task
from mae.utils.errors import UserError
from mae.utils.hashing import hash_weights


logger = logging.getLogger(__name__)


class Training:
    """
    The parts of a training run, for [`train`].

    Model and optimizer are prepared by Accelerate, the DataLoader never is: the sample stream already yields this
    rank's part of each batch, and a prepared DataLoader would take every other batch of it.

    Args:
        task: Model, data and loss.
        recipe: Flags that change results.
        arguments: Flags that do not.
        evaluators: Run at their own intervals, and after the last step.

    Raises:
        UserError: if recipe, data, model and number of ranks do not fit together.
    """

    def __init__(
        self,
        task: Task,
        recipe: Recipe,
        arguments: RunArguments,
        accelerator: Accelerator,
        evaluators: Sequence[Evaluator] = (),
    ):
        self.task = task
        self.recipe = recipe
        self.arguments = arguments
        self.accelerator = accelerator
        self.evaluators = tuple(evaluators)
        # The contents, before training changes them, because a folder can have any name.
        self.initial_weights = hash_weights(task.model) if recipe.model_name_or_path is not None else None
        self.num_workers = choose_num_workers(arguments.dataloader_num_workers, accelerator.device)
        self.order = make_order(task.source, recipe.seed, recipe.lanes, recipe.shuffle_buffer_size)
        self.schedule = Schedule.of(recipe, self._batch_size(), self.order.epoch_length, task.min_learning_rate)
        self.cache: PixelCache | None = None
        self.stream(after_step=0)  # checks lanes and ranks
        self._note_limits()

    def _batch_size(self) -> int:
        arguments, num_processes = self.arguments, self.accelerator.num_processes
        per_device, accumulation = arguments.per_device_train_batch_size, arguments.gradient_accumulation_steps
        batch_size = per_device * accumulation * num_processes
        if batch_size > self.order.epoch_length:
            raise UserError(
                f"A batch of {batch_size} images (--per_device_train_batch_size {per_device} x "
                f"--gradient_accumulation_steps {accumulation} x {num_processes} processes) is larger than an epoch "
                f"of {self.order.epoch_length} images. Lower one of them."
            )
        views = self.recipe.views_per_image
        if per_device % views:
            raise UserError(
                f"--per_device_train_batch_size {per_device} must be a multiple of --views_per_image {views}, because "
                f"all views of an image are in one batch. Use {-(-per_device // views) * views}."
            )
        return batch_size

    def _note_limits(self) -> None:
        schedule, recipe = self.schedule, self.recipe
        if schedule.only_warms_up:
            logger.info(
                f"Note: the warm-up of {schedule.warmup_epochs:g} epochs is not shorter than the run of "
                f"{schedule.num_epochs:.3g} epochs. The learning rate only rises, and does not reach its peak."
            )
        if self.order.is_coarse:
            logger.info(
                f"Note: the data has few row groups ({len(self.task.source.group_sizes)}), which each epoch permutes. "
                f"Within them rows are only shuffled over --shuffle_buffer_size {recipe.shuffle_buffer_size}. A "
                "larger buffer mixes better and takes more memory; or write the data in smaller row groups."
            )

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that changes the run's results, as JSON values."""
        return run_identity(
            self.recipe,
            self.arguments,
            self.accelerator,
            self.task.source,
            self.task.model.config,
            self.schedule.batch_size,
            self.initial_weights,
            self.task.identity(),
        )

    @property
    def resolved_recipe(self) -> dict[str, Any]:
        """The flags that repeat the run, with what was found out filled in."""
        source, config = self.task.source, self.task.model.config
        return resolved_recipe(self.recipe, self.arguments, self.accelerator, source, config)

    def open_cache(self, dataset: SampleDataset | FeatureDataset, after_step: int) -> None:
        """Keep decoded images from now on, if any image is needed twice after a step. A collective."""
        num_left = self.schedule.num_steps - after_step
        if isinstance(dataset, SampleDataset) and num_left > self._steps_per_pass:
            self.cache = dataset.cache = open_pixel_cache(len(self.task.source), self.arguments.cache_memory)

    def log_cache(self, num_steps: int) -> None:
        """Log what the cache holds, once each image has been needed."""
        if self.cache is not None and num_steps == math.ceil(self._steps_per_pass):
            logger.info(describe(self.cache, self.arguments.cache_memory))

    @property
    def _steps_per_pass(self) -> float:
        """Steps over which each image is needed once, in all its views."""
        return self.schedule.steps_per_epoch * self.recipe.views_per_image

    def origins(self, step: int) -> list[tuple[str, int]]:
        """File and row of the samples of a step, over all ranks."""
        batch_size, views = self.schedule.batch_size, self.recipe.views_per_image
        positions = range((step - 1) * batch_size, step * batch_size)
        return [self.task.source.origin(*self.order.locate(position // views)) for position in positions]

    def stream(self, after_step: int) -> SampleStream:
        """This rank's samples after a step."""
        batch_size, source = self.schedule.batch_size, self.task.source
        return SampleStream(
            source if self.cache is None else CachedRows(source, self.cache),
            self.order,
            self.arguments.per_device_train_batch_size,
            self.accelerator.process_index,
            self.accelerator.num_processes,
            start=after_step * batch_size,
            stop=self.schedule.num_steps * batch_size,
            views=self.recipe.views_per_image,
            retry_minutes=self.arguments.data_retry_minutes,
        )

    def loader(self, dataset: SampleDataset | FeatureDataset, after_step: int) -> DataLoader:
        """This rank's batches after a step."""
        return make_loader(self.stream(after_step), dataset, self.num_workers)

    def prepare(self) -> tuple[TrainState, nn.Module]:
        """Model and optimizer on this rank's device, and the model as Accelerate has prepared it. A collective."""
        accelerator, arguments, recipe, model = self.accelerator, self.arguments, self.recipe, self.task.model
        if arguments.gradient_checkpointing:
            # The first name came with transformers 5.2x, which deprecates the second.
            enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
            enable()
        if arguments.torch_compile:
            # In place, so that parameters keep their names; blocks, because they are all alike and one is compiled.
            for module in model.modules():
                if type(module).__name__ in model._no_split_modules:
                    module.compile()
        optimizer = self.task.optimizer()
        forward, _ = accelerator.prepare(model, optimizer)
        forward.train()
        average = AveragedWeights(model, recipe.ema_decay) if recipe.ema_decay else None
        guard = GuardedStep(optimizer, arguments.max_nonfinite_steps, recipe.max_grad_norm, accelerator.scaler)
        return TrainState(model, optimizer, guard, average), forward
