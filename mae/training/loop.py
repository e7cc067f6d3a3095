"""
The one training loop, on Accelerate: a step at a time over a sample stream, logged, saved and resumed.

Model and optimizer are prepared by Accelerate, the data never is: the stream already yields this process's part of
each global batch, and a prepared DataLoader would take every other batch of it.
"""

import logging
import multiprocessing
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch.distributed.fsdp import FSDPModule
from torch.utils.data import DataLoader
from tqdm import tqdm

from configuration_mae import MAEConfig
from mae.arguments.recipes import Recipe
from mae.arguments.run import RunArguments
from mae.data.batch import Batch, samples_digest
from mae.data.loader import default_num_workers, is_worker_failure, make_loader, worker_failure
from mae.data.order import SampleOrder
from mae.data.sources import Source
from mae.data.stream import SampleStream
from mae.data.transforms import SampleDataset
from mae.evaluation.evaluator import EvaluationContext, Evaluator
from mae.training.accelerator import process_timeout
from mae.training.average import AveragedWeights
from mae.training.checkpointing import NONFINITE
from mae.training.flops import peak_flops
from mae.training.interruption import Interruption, StoppedWaiting
from mae.training.optimization import GuardedStep
from mae.training.run_directory import RunDirectory
from mae.training.schedule import learning_rate_at
from mae.training.tracking import start_trackers, track
from mae.utils.distributed import on_main_process
from mae.utils.errors import DataError, Interrupted, RunError, UserError, first_line
from mae.utils.files import EVALUATIONS_FILE, SKIPPED_FILE
from mae.utils.hashing import hash_weights
from modeling_mae import MAEPreTrainedModel


logger = logging.getLogger(__name__)


class Training:
    """
    A training run. What it trains for is said by what a task overrides: [`Training.make_examples`],
    [`Training.make_optimizer`], [`Training.compute_loss`].

    Args:
        model: What to train.
        source: Its images.
        recipe: What changes results.
        arguments: What does not.
        evaluators: What looks at the model meanwhile.

    Raises:
        UserError: where recipe, data, model and processes do not fit together.
    """

    task = "training"  # beside the bar
    min_learning_rate = 0.0  # at the end of the schedule

    def __init__(
        self,
        model: MAEPreTrainedModel,
        source: Source,
        recipe: Recipe,
        arguments: RunArguments,
        accelerator: Accelerator,
        evaluators: Sequence[Evaluator] = (),
    ):
        self.evaluators = evaluators
        self.model = model
        self.source = source
        self.recipe = recipe
        self.arguments = arguments
        self.accelerator = accelerator
        # Before training changes them, and whatever their folder is called.
        self.initial_weights = hash_weights(model) if recipe.model_name_or_path is not None else None
        self.order = SampleOrder(source.group_sizes, recipe.seed, recipe.lanes, recipe.shuffle_buffer_size)

        self.num_workers = arguments.dataloader_num_workers
        if self.num_workers is None:
            self.num_workers = default_num_workers(accelerator.device)
        self.accumulation = arguments.gradient_accumulation_steps
        self.batch_size = arguments.per_device_train_batch_size * self.accumulation * accelerator.num_processes
        if self.batch_size > self.order.epoch_length:
            raise UserError(
                f"A batch of {self.batch_size} images (--per_device_train_batch_size "
                f"{arguments.per_device_train_batch_size} x --gradient_accumulation_steps {self.accumulation} x "
                f"{accelerator.num_processes} processes) is larger than the data, {self.order.epoch_length} images an "
                "epoch: lower one of them."
            )
        self.steps_per_epoch = self.order.epoch_length / self.batch_size
        self.num_steps = recipe.max_steps
        if recipe.max_steps <= 0:
            self.num_steps = int(recipe.num_train_epochs * self.order.epoch_length / self.batch_size)
            if not self.num_steps:
                raise UserError(
                    f"--num_train_epochs {recipe.num_train_epochs:g} of {self.order.epoch_length} images make no "
                    f"batch of {self.batch_size}: lower the batch size or train for longer."
                )
        self.num_epochs = self.num_steps / self.steps_per_epoch
        self.learning_rate = recipe.learning_rate or recipe.base_learning_rate * self.batch_size / 256
        self.warmup_epochs = recipe.warmup_epochs
        if recipe.warmup_ratio is not None:
            self.warmup_epochs = recipe.warmup_ratio * self.num_epochs
        if self.warmup_epochs and self.warmup_epochs >= self.num_epochs:
            logger.info(
                f"Note: the warm-up of {self.warmup_epochs:g} epochs is no shorter than the run of "
                f"{self.num_epochs:.3g} epochs: the learning rate only rises, and does not reach its peak."
            )
        if self.order.is_coarse:
            logger.info(
                f"Note: the data has few row groups ({len(source.group_sizes)}), which are what is permuted in each "
                f"epoch; within them rows are only shuffled over --shuffle_buffer_size {recipe.shuffle_buffer_size}. "
                "A larger one mixes better, and takes more memory; or write the data in smaller row groups."
            )
        self._make_loader(first_step=0)  # for its checks, before anything is written
        self.batches: Iterator[Batch] | None = None  # from the first step's on

    # What a task says

    def make_examples(self) -> SampleDataset:
        """What it makes of samples."""
        raise NotImplementedError

    def make_optimizer(self) -> torch.optim.Optimizer:
        """Of the model's trainable parameters; a fused one, see [`GuardedStep`]. Its rate is set at every step."""
        raise NotImplementedError

    def compute_loss(self, batch: Batch) -> torch.Tensor:
        """The mean loss over a micro-batch's images, a scalar, through `self.prepared`."""
        raise NotImplementedError

    @property
    def flops(self) -> float | None:
        """Of training on one image, where they are known."""
        return None

    def prepare_data(self, run: RunDirectory, is_stopped: Callable[[], bool]) -> bool:
        """Called by every process before the first step; False where it was stopped on its way."""
        return True

    def make_stream(self, first_step: int, source: Source) -> SampleStream:
        """This process's samples from a step on."""
        return SampleStream(
            source,
            self.order,
            self.arguments.per_device_train_batch_size,
            self.accelerator.process_index,
            self.accelerator.num_processes,
            start=first_step * self.batch_size,
            stop=self.num_steps * self.batch_size,
            retry_minutes=self.arguments.data_retry_minutes,
        )

    def _make_loader(self, first_step: int) -> DataLoader:
        return make_loader(self.make_stream(first_step, self.source), self.make_examples(), self.num_workers)

    @property
    def identity(self) -> dict:
        """Everything that changes the run's results; not how the batch is divided, nor where files lie."""
        # In the place of names and flags, what they led to: fingerprint, initial weights and configuration.
        replaced = {"dataset_name", "dataset_config_name", "dataset_revision", "image_column_name", "streaming"}
        replaced |= {"train_dir", "validation_dir", "label_column_name"}
        replaced |= {"model_name_or_path", "model_revision", "allow_pickle", "model_size", "inflate_channels"}
        replaced |= {"image_mean", "image_std"}
        replaced |= {"image_size", "patch_size", "mask_ratio", "norm_pix_loss", "config_overrides"}
        if self.recipe.max_steps > 0:
            replaced.add("num_train_epochs")
        recipe = {name: value for name, value in asdict(self.recipe).items() if name not in replaced}
        config = {name: getattr(self.model.config, name) for name in MAEConfig.__annotations__}
        return {
            "recipe": recipe,
            "effective_batch_size": self.batch_size,
            "mixed_precision": self.accelerator.mixed_precision,
            "tf32": self.arguments.tf32,
            "initial_weights": self.initial_weights,
            "data": {"fingerprint": self.source.fingerprint, "images": self.order.num_rows},
            "model": config,
        }

    @property
    def resolved_recipe(self) -> dict[str, Any]:
        """The flags of this run with what was found out: revision of the data, mean and std of its images."""
        flags = asdict(self.recipe) | asdict(self.arguments)
        # Or the launcher's.
        flags |= {precision: self.accelerator.mixed_precision == precision for precision in ("bf16", "fp16")}
        where = {"output_dir", "overwrite_output_dir", "resume_from_checkpoint"}
        for name in [name for name in flags if name in where or name.startswith(("hub_", "push_to_hub"))]:
            del flags[name]
        if self.recipe.train_dir is None:
            flags["dataset_revision"] = self.source.revision
        if self.recipe.image_mean is not None:
            flags |= {name: list(getattr(self.model.config, name)) for name in ("image_mean", "image_std")}
        return {name: value for name, value in flags.items() if value is not None}

    def _stop_nonfinite(self, run: RunDirectory) -> NoReturn:
        """Names the step and its samples, and leaves the weights before it for whoever looks for the cause."""
        step = self.guard.fatal_step
        positions = range((step - 1) * self.batch_size, step * self.batch_size)
        samples = [self.source.origin(*self.order.locate(position)) for position in positions]
        # Without the average, which has gone on towards weights that did not.
        path = run.save(self.model, self.optimizer, self._state(step - 1) | {"samples": samples}, prefix=NONFINITE)
        shown = ", ".join(f"{file} row {row}" for file, row in samples[:3])
        raise RunError(
            f"The gradient of step {step} is not finite, more often than --max_nonfinite_steps "
            f"{self.guard.max_nonfinite_steps} allows. Its samples: {shown}{', …' if len(samples) > 3 else ''}. "
            f"Weights and optimizer before it, and all samples, are in {path}. Lower the learning rate, or raise "
            "--max_nonfinite_steps; the run goes on from its last checkpoint."
        )

    @staticmethod
    def _leave(interruption: Interruption, step: int) -> NoReturn:
        """Ends the run after a step that is saved."""
        cause = interruption.signal.name if interruption.signal is not None else "a signal to another process"
        if not step:
            raise Interrupted(f"Stopped by {cause} before the first step was done: the same command starts again.")
        raise Interrupted(
            f"Stopped by {cause} after step {step}, which is saved: the same command goes on from there."
        )

    def _state(self, step: int) -> dict[str, Any]:
        """What a checkpoint holds beside tensors."""
        return self.guard.state_dict() | {"step": step, "num_bad": self.num_bad, "loss": self.loss}

    def _count_bad(self, run: RunDirectory) -> None:
        """Names the images that could not be read since the last time; every process must call."""
        found = torch.tensor(len(self.skipped), device=self.accelerator.device)
        num_new = int(self.accelerator.reduce(found, "sum"))
        if num_new:
            self.num_bad += num_new
            run.log_skipped(gather_object(self.skipped))
            self.skipped = []

    def _check_bad(self, step: int, run: RunDirectory) -> None:
        """Stops where too many images cannot be read; not before there are enough of them to say so."""
        seen = step * self.batch_size
        reason = f"see {run.path / SKIPPED_FILE}"
        if self.num_bad == seen:
            raise DataError(f"None of the first {seen} images can be read ({reason}): nothing was trained.")
        limit = self.arguments.max_bad_fraction
        if self.num_bad > limit * seen and (seen >= min(1000, self.order.epoch_length) or step == self.num_steps):
            raise DataError(
                f"{self.num_bad} of {seen} images cannot be read ({reason}), more than --max_bad_fraction {limit}: "
                "mend or remove them, or raise that, and the run goes on from its last checkpoint."
            )

    def train(self, run: RunDirectory, after_save: Callable[[int], None] | None = None) -> dict:
        """
        Trains to the end, from a checkpoint if there is one, and writes the model.

        Args:
            after_save: Called by every process with the step of a checkpoint, once evaluators have had their turn.

        Returns:
            Steps, epochs, loss of the last logged step, what the evaluators found last, and speed.

        Raises:
            RunError: where the data breaks off, none of it can be read, a gradient is not finite, or something cannot
                be written.
            Interrupted: where a signal asked for it, after saving.
        """
        with Interruption(process_timeout(self.arguments)) as interruption:
            try:
                try:
                    return self._train(run, interruption, after_save)
                finally:
                    self._end_loading()
            except RuntimeError as error:
                if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                    raise RunError(
                        f"--torch_compile does not work here ({first_line(error)}): it needs a C++ compiler on a CPU "
                        "and Triton on a GPU. Without the flag the run gives the same."
                    ) from error
                if not is_worker_failure(error):
                    raise
                raise worker_failure(error) from error

    def _end_loading(self) -> None:
        """Ends decoding processes and reading threads, also where a traceback keeps everything else."""
        # Torch's handler raises wherever this process is when a decoding one has failed: in here, in the middle of it.
        handler = None
        if hasattr(signal, "SIGCHLD"):
            try:
                handler = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            except RuntimeError:  # it had its turn before it was replaced
                handler = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        batches, self.batches = self.batches, None
        for process in multiprocessing.active_children():
            process.kill()  # the request to stop, which they ignore, would be waited for without end
        if hasattr(batches, "_shutdown_workers"):
            batches._shutdown_workers()  # or the handler knows of the failed one when it is collected
        if handler is not None:
            signal.signal(signal.SIGCHLD, handler)

    def _start(self, run: RunDirectory) -> int:
        """Model, optimizer and what follows them on this process's device; the step that they are of."""
        accelerator, arguments, recipe, model = self.accelerator, self.arguments, self.recipe, self.model
        if arguments.gradient_checkpointing:
            # The first name came with transformers 5.2x, which deprecates the second.
            enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
            enable()
        if arguments.torch_compile:
            # Blocks, in place: all alike, so that one is compiled, and parameters keep their names.
            for module in model.modules():
                if type(module).__name__ in model._no_split_modules:
                    module.compile()
        self.optimizer = self.make_optimizer()
        self.prepared, _ = accelerator.prepare(model, self.optimizer)
        self.prepared.train()
        self.average = None if not recipe.ema_decay else AveragedWeights(model, recipe.ema_decay)
        self.guard = GuardedStep(
            self.optimizer, arguments.max_nonfinite_steps, recipe.max_grad_norm, accelerator.scaler
        )
        state = run.load(model, self.optimizer, self.average, arguments.resume_from_checkpoint)
        self.num_bad = 0  # images that could not be read, over all processes
        self.skipped: list[tuple[tuple[str, int], str]] = []  # those of this process since the last logged step
        self.loss = None  # of the last logged step
        if state is None:
            return 0
        self.num_bad, self.loss = state["num_bad"], state["loss"]
        self.guard.load_state_dict(state)
        logger.info(f"Going on after step {state['step']}.")
        return state["step"]

    def _save(self, step: int, run: RunDirectory) -> None:
        """Every process must call."""
        if not step:  # a start is a start anew
            return
        if self.guard.fatal_step:  # the weights are those before it, and not of this step
            self._stop_nonfinite(run)
        self._count_bad(run)
        run.save(self.model, self.optimizer, self._state(step), self.average, self.arguments.save_total_limit)

    def _next_batch(self, step: int, run: RunDirectory, interruption: Interruption) -> Batch:
        """
        A micro-batch of a step, once every process has one.

        Raises:
            Interrupted: where a request to stop comes while one does not. What the step has not changed is saved.
        """
        try:
            with interruption.wait():
                if self.batches is None:
                    self.batches = iter(self._make_loader(step - 1))  # reads what the first batches need
                batch = next(self.batches)
        except StoppedWaiting:
            batch = None
        except (OSError, EOFError) as error:
            if not self.num_workers:
                raise
            raise worker_failure(error) from error  # half of a batch was sent
        # Before anything of the step that processes do together.
        (is_stalled,) = interruption.agree(batch is None)
        if is_stalled:
            self._save(step - 1, run)
            self._leave(interruption, step - 1)
        return batch

    def _backward(self, batch: Batch, synchronised: bool) -> torch.Tensor:
        """Adds a micro-batch's gradient; its share of the step's loss."""
        accelerator = self.accelerator
        with nullcontext() if synchronised else accelerator.no_sync(self.prepared):
            # Unreadable images count with a loss of 0: the step's loss is the sum over the good ones divided by the
            # batch size, however the batch is divided.
            with accelerator.autocast():  # which DDP enters by itself, and FSDP2 does not
                loss = self.compute_loss(batch)
            loss = loss * (batch.weight / self.accumulation)
            accelerator.backward(loss)
        return loss.detach()

    @staticmethod
    def _asker(interruption: Interruption) -> Callable[[], bool]:
        """Whether any process was asked to stop; every one must ask."""
        return lambda: interruption.agree(interruption.signal is not None)[0]

    def _is_due(self, evaluator: Evaluator, step: int) -> bool:
        every = evaluator.every_steps
        if evaluator.every_epochs is not None:
            every = max(round(evaluator.every_epochs * self.steps_per_epoch), 1)
        return every is not None and step % every == 0

    @torch.no_grad()
    def _evaluate(self, step: int, run: RunDirectory, interruption: Interruption) -> None:
        """
        Logs what the evaluators find whose turn it is.

        Raises:
            Interrupted: on a request to stop. They look again when the run goes on.
        """

        is_stopped = self._asker(interruption)
        due = [evaluator for evaluator in self.evaluators if step == self.num_steps or self._is_due(evaluator, step)]
        if not due:
            return
        context = EvaluationContext(step, step / self.steps_per_epoch, run.path, is_stopped)
        found: dict[str, Any] = {}
        self.model.eval()
        # To compile for other shapes would take longer than all that is computed.
        stance = torch.compiler.set_stance("force_eager") if self.arguments.torch_compile else nullcontext()
        average = nullcontext() if self.average is None else self.average.applied()
        with stance, average, self.accelerator.autocast():
            for evaluator in due:
                evaluation = evaluator(self.model, context)
                if evaluation is not None:
                    found |= evaluation.values
                    if evaluation.skipped:
                        run.log_skipped(evaluation.skipped)
            stopped = is_stopped()
            for module in self.model.modules():
                if isinstance(module, FSDPModule):
                    # A forward pass alone leaves some weights gathered, and training would go on with them.
                    module.reshard()
        self.model.train()
        if stopped:
            self._save(step, run)
            self._leave(interruption, step)
        line = {"step": step, "epoch": context.epoch}
        for name, value in found.items():
            line[name] = value.relative_to(run.path).as_posix() if isinstance(value, Path) else value
        run.log(line, EVALUATIONS_FILE)
        track(self.accelerator, "eval", {name.removeprefix("eval_"): value for name, value in found.items()}, step)

    def _train(self, run: RunDirectory, interruption: Interruption, after_save: Callable[[int], None] | None) -> dict:
        accelerator, arguments = self.accelerator, self.arguments
        first_step = self._start(run)
        run.cut_metrics(first_step)
        if not self.prepare_data(run, self._asker(interruption)):
            self._leave(interruption, first_step)
        if accelerator.log_with:
            on_main_process(lambda: start_trackers(accelerator, run.path, run.identity, first_step))
        peak = peak_flops(accelerator.device, accelerator.mixed_precision, arguments.tf32)
        # A request to stop, or a kill, may have come before it.
        if first_step and on_main_process(lambda: all(line["step"] != first_step for line in run.read_evaluations())):
            self._evaluate(first_step, run, interruption)

        started = logged_at = time.perf_counter()
        data_wait, last_logged = 0.0, first_step
        saved_at = time.monotonic()
        bar = tqdm(
            total=self.num_steps,
            initial=first_step,
            desc=self.task,
            unit="step",
            disable=not accelerator.is_main_process,
        )
        with bar:
            for step in range(first_step + 1, self.num_steps + 1):
                learning_rate = learning_rate_at(
                    (step - 1) / self.steps_per_epoch,
                    self.learning_rate,
                    self.warmup_epochs,
                    self.num_epochs,
                    self.min_learning_rate,
                )
                for group in self.optimizer.param_groups:
                    group["lr"] = learning_rate * group.get("lr_scale", 1.0)

                step_loss, digests = 0.0, []
                for micro_step in range(1, self.accumulation + 1):
                    asked = time.perf_counter()
                    batch = self._next_batch(step, run, interruption)
                    data_wait += time.perf_counter() - asked
                    self.skipped += batch.skipped
                    step_loss += self._backward(batch, synchronised=micro_step == self.accumulation)
                    digests.append(batch.digests)
                gradient_norm = self.guard(step)
                if self.average is not None:
                    self.average.update(step)
                bar.update()

                last = step == self.num_steps
                logged = step % arguments.logging_steps == 0 or last
                if logged:
                    self.loss = accelerator.reduce(step_loss, "mean").item()
                    self._count_bad(run)
                    digests = accelerator.gather(torch.cat(digests).to(accelerator.device))
                    now = time.perf_counter()
                    images_per_second = (step - last_logged) * self.batch_size / (now - logged_at)
                    line = {
                        "step": step,
                        "epoch": step / self.steps_per_epoch,
                        "loss": self.loss,
                        "learning_rate": learning_rate,
                        "grad_norm": gradient_norm.item(),
                        "images_per_second": round(images_per_second, 1),
                        "data_wait": round(data_wait, 4),
                        "samples_digest": samples_digest(digests),
                    }
                    shown = {"loss": f"{self.loss:.4f}", "images/s": f"{images_per_second:.0f}"}
                    shown["data wait"] = f"{data_wait / (now - logged_at):.0%}"
                    if peak is not None and self.flops is not None:
                        line["mfu"] = round(images_per_second * self.flops / (peak * accelerator.num_processes), 4)
                        shown["MFU"] = f"{line['mfu']:.0%}"
                    run.log(line)
                    track(accelerator, "train", line, step)
                    bar.set_postfix(shown)
                    data_wait, last_logged, logged_at = 0.0, step, now
                    if self.guard.fatal_step:
                        self._stop_nonfinite(run)

                due = arguments.save_minutes is not None and time.monotonic() - saved_at > 60 * arguments.save_minutes
                stop, due = interruption.agree(interruption.signal is not None, due)
                paused = time.perf_counter()
                saved = step % arguments.save_steps == 0 or last or stop or due
                if saved:
                    self._save(step, run)
                    saved_at = time.monotonic()
                if stop and not last:
                    self._leave(interruption, step)
                self._evaluate(step, run, interruption)
                if saved and not last and after_save is not None:
                    after_save(step)
                first = step == first_step + 1
                if first and not logged:
                    self._count_bad(run)
                # Every process knows the same number then. After saving, if it is the step's turn; and after the first
                # step, because where nothing can be read there is nothing to wait for.
                if self.num_bad and (logged or first):
                    self._check_bad(step, run)
                logged_at += time.perf_counter() - paused  # what is logged is the speed of training
        runtime = time.perf_counter() - started
        run.save_model(self.model, self.average)
        evaluations = on_main_process(run.read_evaluations)
        evaluated = evaluations[-1] if evaluations else {}
        return {
            "steps": self.num_steps,
            "epochs": self.num_epochs,
            "loss": self.loss,
            **{name: value for name, value in evaluated.items() if name.startswith("eval_")},
            "nonfinite_steps": self.guard.num_nonfinite,
            "data_fingerprint": self.source.fingerprint,
            "dataset_revision": self.source.revision,
            "train_runtime": round(runtime, 1),
            "images_per_second": round((self.num_steps - first_step) * self.batch_size / runtime, 1),
        }
