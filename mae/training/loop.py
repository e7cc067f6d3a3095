"""The training loop: one step at a time, logged, evaluated, saved and resumed."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext
from typing import Any, NoReturn

import torch
from torch import Tensor

from mae.data.batch import Batch, samples_digest
from mae.data.loader import is_worker_failure, worker_failure
from mae.training.accelerator import process_timeout
from mae.training.checkpointing import NONFINITE
from mae.training.cost import CostEstimate
from mae.training.evaluations import Evaluations
from mae.training.feed import BatchFeed
from mae.training.flops import peak_flops
from mae.training.interruption import Interruption
from mae.training.metrics import StepLog
from mae.training.run_directory import RunDirectory
from mae.training.setup import Training
from mae.training.skipped import SkippedImages
from mae.training.tracking import start_trackers, track
from mae.utils.distributed import on_main_process
from mae.utils.errors import Interrupted, RunError, first_line
from mae.utils.progress import ProgressBar
from mae.utils.text import listed


logger = logging.getLogger(__name__)


def train(training: Training, run: RunDirectory, after_save: Callable[[int], None] | None = None) -> dict[str, Any]:
    """
    Train to the last step, from a checkpoint if there is one, and write the model.

    Args:
        run: The output directory, entered.
        after_save: Called on every rank with the step of a checkpoint, after evaluators have run.

    Returns:
        Steps, epochs, loss of the last logged step, the last results of the evaluators, and speed.

    Raises:
        RunError: if the data breaks off or cannot be read, a gradient is not finite, or a file cannot be written.
        Interrupted: if a signal asked for it, after saving.
    """
    with Interruption(process_timeout(training.arguments)) as interruption, _explained():
        return TrainingLoop(training, run, interruption, after_save).run()


@contextmanager
def _explained() -> Iterator[None]:
    """Turn errors of compiling, and of a dead DataLoader worker wherever PyTorch raises it, into one line."""
    try:
        yield
    except RuntimeError as error:
        if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise RunError(
                f"--torch_compile does not work here ({first_line(error)}). It needs a C++ compiler on a CPU and "
                "Triton on a GPU. The run gives the same results without it."
            ) from error
        if is_worker_failure(error):
            raise worker_failure(error) from error
        raise


class TrainingLoop:
    """
    One execution of a run, from its newest checkpoint to the last step. Every method is a collective.

    Args:
        training: The parts of the run.
        run: Its output directory.
        after_save: Called with the step of a checkpoint.
    """

    def __init__(
        self,
        training: Training,
        run: RunDirectory,
        interruption: Interruption,
        after_save: Callable[[int], None] | None = None,
    ):
        self.task = training.task
        self.training = training
        self.schedule = training.schedule
        self.arguments = training.arguments
        self.accelerator = training.accelerator
        self.run_directory = run
        self.interruption = interruption
        self.after_save = after_save
        self.state, self.forward = training.prepare()
        self.skipped = SkippedImages(run.skipped, self.accelerator)
        self.evaluations = Evaluations(
            training.evaluators, self.schedule, self.accelerator, run, self.skipped, self.arguments.torch_compile
        )

    def run(self) -> dict[str, Any]:
        """Train to the last step, and write the model. Returns the results."""
        task, schedule, arguments, state = self.task, self.schedule, self.arguments, self.state
        first = self.resume()
        dataset = task.dataset(self.interruption.should_stop)
        if dataset is None:
            self.leave(first)
        self.training.open_cache(dataset, first)
        if first and self.evaluations.is_missing(first):
            self.evaluate(first)
        started = saved_at = time.monotonic()
        log = StepLog(schedule.batch_size, task.flops_per_image, self.peak_flops(), first)
        cost = CostEstimate(first, schedule.num_steps, schedule.batch_size, self.accelerator.device)
        feed = BatchFeed(lambda step: self.training.loader(dataset, step), first, self.interruption)

        with closing(feed), self.progress_bar(first) as bar:
            for step in range(first + 1, schedule.num_steps + 1):
                rate = schedule.apply(state.optimizer, step)
                loss, digests = self.accumulate(step, feed, log)
                gradient_norm = state.guard(step)
                if state.average is not None:
                    state.average.update(step)
                bar.update()
                self.training.log_cache(step - first)
                if (told := cost.after(step)) is not None:
                    logger.info(told)

                is_first, is_last = step == first + 1, step == schedule.num_steps
                is_logged = (
                    step % arguments.logging_steps == 0 or is_last or (arguments.logging_first_step and step == 1)
                )
                if is_logged:
                    bar.set_postfix(self.log(step, log, loss, rate, gradient_norm, digests))
                    if state.guard.fatal_step:
                        self.stop_nonfinite()

                minutes = (time.monotonic() - saved_at) / 60
                is_due = arguments.save_minutes is not None and minutes > arguments.save_minutes
                stop, is_due = self.interruption.agree(self.interruption.signal is not None, is_due)
                is_saved = step % arguments.save_steps == 0 or is_last or stop or is_due
                is_saved = is_saved or step == schedule.steady_steps  # a longer run resumes there
                with log.paused():
                    if is_saved:
                        self.save(step)
                        saved_at = time.monotonic()
                    if stop and not is_last:
                        self.leave(step)
                    self.evaluate(step)
                    if is_saved and not is_last and self.after_save is not None:
                        self.after_save(step)
                    # After the first step too: if nothing can be read, there is nothing to wait for.
                    if is_first and not is_logged:
                        state.num_unreadable += self.skipped.collect()
                    if state.num_unreadable and (is_logged or is_first):
                        self.check_skipped(step)
        return self.finish(first, time.monotonic() - started)

    def resume(self) -> int:
        """Restore the newest checkpoint, and start trackers; returns its step."""
        run, accelerator = self.run_directory, self.accelerator
        step = run.checkpoints.load(self.state, self.arguments.resume_from_checkpoint)
        if step:
            logger.info(f"Resuming after step {step}.")
        on_main_process(lambda: run.truncate(step))
        if accelerator.log_with:
            on_main_process(lambda: start_trackers(accelerator, run.path, run.identity, step, self.arguments.run_name))
        return step

    def accumulate(self, step: int, feed: BatchFeed, log: StepLog) -> tuple[Tensor, list[Tensor]]:
        """Add up the gradient of a step; returns this rank's share of the loss, and the digests of its samples."""
        accelerator, accumulation = self.accelerator, self.arguments.gradient_accumulation_steps
        total, digests = torch.zeros((), device=accelerator.device), []
        for micro_step in range(1, accumulation + 1):
            with log.waiting_for_data():
                batch = feed.next()
            if batch is None:  # nothing of this step has changed the weights
                self.save(step - 1)
                self.leave(step - 1)
            self.skipped.add(batch.skipped)
            # Unreadable images count with a loss of 0: the loss of the step is the sum over the readable ones divided
            # by the batch size, however the batch is divided.
            weight = batch.weight / accumulation
            is_synchronised = micro_step == accumulation
            with nullcontext() if is_synchronised else accelerator.no_sync(self.forward):
                total += self.backward(batch, weight)
            digests.append(batch.digests)
        return total, digests

    def backward(self, batch: Batch, weight: float) -> Tensor:
        """Add a batch's gradient; returns its weighted loss."""
        with self.accelerator.autocast():  # which DDP enters by itself, and FSDP2 does not
            loss = self.task.loss(self.forward, batch)
        loss = loss * weight
        self.accelerator.backward(loss)
        return loss.detach()

    def log(
        self, step: int, log: StepLog, loss: Tensor, rate: float, gradient_norm: Tensor, digests: list[Tensor]
    ) -> dict[str, str]:
        """Write the line of a step; returns what the progress bar shows of it."""
        accelerator, state = self.accelerator, self.state
        state.loss = accelerator.reduce(loss, "mean").item()
        state.num_unreadable += self.skipped.collect()
        gathered = accelerator.gather(torch.cat(digests).to(accelerator.device))
        line, shown = log.line(
            step,
            epoch=self.schedule.epoch(step),
            loss=state.loss,
            learning_rate=rate,
            grad_norm=gradient_norm.item(),
            samples_digest=samples_digest(gathered),
        )
        self.run_directory.metrics.append(line)
        track(accelerator, "train", line, step)
        return shown

    def evaluate(self, step: int) -> None:
        if not self.evaluations.evaluate(self.state, step, self.interruption.should_stop):
            self.save(step)
            self.leave(step)

    def save(self, step: int) -> None:
        """Write the checkpoint of a step."""
        if not step:  # nothing to resume from
            return
        if self.state.guard.fatal_step:  # the weights are those before it, and not of this step
            self.stop_nonfinite()
        self.state.num_unreadable += self.skipped.collect()
        self.run_directory.checkpoints.save(self.state, step)

    def leave(self, step: int) -> NoReturn:
        """End the run after a step that is saved."""
        cause = self.interruption.cause
        if not step:
            raise Interrupted(f"Stopped by {cause} before the first step. Run the same command again to start over.")
        raise Interrupted(f"Stopped by {cause} after step {step}, which is saved. Run the same command to resume.")

    def stop_nonfinite(self) -> NoReturn:
        """Name the step and its samples, and save the weights before it to find the cause."""
        guard = self.state.guard
        step = guard.fatal_step
        samples = self.training.origins(step)
        self.state.average = None  # later steps have moved it already
        path = self.run_directory.checkpoints.save(self.state, step - 1, NONFINITE, {"samples": samples})
        shown = listed([f"{file} row {row}" for file, row in samples], most=3)
        raise RunError(
            f"The gradient of step {step} is not finite, more often than --max_nonfinite_steps "
            f"{guard.max_nonfinite_steps} allows. Its samples: {shown}. Weights "
            f"and optimizer before it, and the names of all samples, are in {path}. Lower the learning rate or raise "
            "--max_nonfinite_steps; the run resumes from its last checkpoint."
        )

    def check_skipped(self, step: int) -> None:
        """Stop if too many images cannot be read; the share counts once there are enough samples."""
        is_last = step == self.schedule.num_steps
        enough = 0 if is_last else min(1000, self.schedule.epoch_length)
        num_samples = step * self.schedule.batch_size
        self.skipped.check(self.state.num_unreadable, num_samples, enough, self.arguments.max_bad_fraction)

    def finish(self, first: int, seconds: float) -> dict[str, Any]:
        """Write the final model; returns the results."""
        run, schedule, source = self.run_directory, self.schedule, self.task.source
        run.checkpoints.save_model(self.state)
        evaluations = on_main_process(run.evaluations.read)
        evaluated = evaluations[-1] if evaluations else {}
        return {
            "steps": schedule.num_steps,
            "epochs": schedule.num_epochs,
            "loss": self.state.loss,
            **{name: value for name, value in evaluated.items() if name.startswith("eval_")},
            "nonfinite_steps": self.state.guard.num_nonfinite,
            "data_fingerprint": source.fingerprint,
            "dataset_revision": source.revision,
            "train_runtime": round(seconds, 1),
            "images_per_second": round((schedule.num_steps - first) * schedule.batch_size / seconds, 1),
        }

    def peak_flops(self) -> float | None:
        """FLOP/s of all devices together, if known."""
        accelerator = self.accelerator
        peak = peak_flops(accelerator.device, accelerator.mixed_precision, self.arguments.tf32)
        return None if peak is None else peak * accelerator.num_processes

    def progress_bar(self, first: int) -> ProgressBar:
        return ProgressBar(
            total=self.schedule.num_steps,
            initial=first,
            desc=self.task.name,
            unit="step",
        )
