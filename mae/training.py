"""
The one training loop, on Accelerate: a step at a time over a sample stream, logged, saved and resumed.

Model and optimizer are prepared by Accelerate, the data never is: the stream already yields this process's part of
each global batch, and a prepared DataLoader would take every other batch of it.
"""

import hashlib
import os
import time
from contextlib import nullcontext
from dataclasses import asdict
from datetime import timedelta
from typing import NoReturn

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, gather_object, set_seed
from huggingface_hub.errors import StrictDataclassError
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.utils.data import DataLoader
from tqdm import tqdm

from configuration_mae import MAEConfig
from mae.arguments import PreTrainingRecipe, RunArguments, parse_overrides, parse_statistics
from mae.checkpointing import NONFINITE, SKIPPED_FILE, RunDirectory
from mae.data import make_loader, measure_statistics, normalize, samples_digest
from mae.errors import DataError, Interrupted, RunError, UserError, first_line
from mae.interruption import Interruption, StoppedWaiting
from mae.loading import Found, load_checkpoint
from mae.optimization import NonfiniteGuard, learning_rate_at, make_optimizer
from mae.order import SampleOrder
from mae.sources import Source
from mae.streaming import SampleStream
from modeling_mae import MAEForPreTraining


# How many images --image_mean auto looks at.
STATISTICS_IMAGES = 1000
# More are not started by themselves: one process hands them their images.
MAX_WORKERS = 16


def make_accelerator(arguments: RunArguments) -> Accelerator:
    """Accelerate's idea of this process; stops where the launcher meant something else."""
    # One process may wait for its data, and the others for it.
    timeout = InitProcessGroupKwargs(timeout=timedelta(minutes=30 + arguments.data_retry_minutes))
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = arguments.tf32
    try:
        accelerator = Accelerator(
            cpu=not torch.accelerator.is_available(),
            mixed_precision="bf16" if arguments.bf16 else None,  # else the launcher's
            kwargs_handlers=[timeout],
        )
    except ValueError as error:  # a precision that the device does not have
        raise UserError(first_line(error)) from None
    if accelerator.mixed_precision not in ("no", "bf16"):
        raise UserError(
            f"Mixed precision {accelerator.mixed_precision} is not supported: its loss scale would be lost at a "
            "resume. Use --bf16, or none."
        )
    world_size = int(os.environ.get("WORLD_SIZE", 1))
    if accelerator.num_processes != world_size:
        raise UserError(
            f"The launcher started {world_size} processes but Accelerate sees {accelerator.num_processes}. On a CPU: "
            f"ACCELERATE_USE_CPU=true python -m torch.distributed.run --nproc_per_node {world_size} …"
        )
    # Both launchers set one thread where nobody says otherwise: on a CPU, half or less of the machine.
    launched = "ACCELERATE_MIXED_PRECISION" in os.environ or world_size > 1
    if accelerator.device.type == "cpu" and launched and os.environ.get("OMP_NUM_THREADS") == "1":
        torch.set_num_threads(max(count_cores(), 1))
    return accelerator


def count_cores() -> int:
    """This process's share of the machine's cores, rounded down."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def default_num_workers(device: torch.device) -> int:
    """
    Decoding processes of a training process: all cores but one for an accelerator. A CPU that trains is slower than
    one of them decodes.
    """
    return min(max(count_cores() - 1, 0), 1 if device.type == "cpu" else MAX_WORKERS)


def build_model(recipe: PreTrainingRecipe) -> tuple[MAEForPreTraining, Found | None]:
    """
    The model that a recipe names, from scratch, or from a checkpoint with what was found in it. The seed decides the
    weights that are new.

    Raises:
        UserError: for an impossible configuration, and for one that does not fit the checkpoint.
    """
    set_seed(recipe.seed)
    fields = parse_overrides(recipe.config_overrides)
    for name in ("image_size", "patch_size", "mask_ratio", "norm_pix_loss"):
        value = getattr(recipe, name)
        if isinstance(value, list):
            value = value[0] if len(value) == 1 else tuple(value)
        if value is not None:
            fields[name] = value
    for name in ("image_mean", "image_std"):
        values = parse_statistics(name, getattr(recipe, name))
        if values is not None:
            fields[name] = values[0] if len(values) == 1 else values
    try:
        if recipe.model_name_or_path is None:
            return MAEForPreTraining(MAEConfig.from_size(recipe.model_size or "base", **fields)), None
        if recipe.model_size is not None:  # must be the checkpoint's
            size = MAEConfig.from_size(recipe.model_size)
            names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
            fields = {name: getattr(size, name) for name in names} | fields
    except StrictDataclassError as error:
        raise UserError(str(error.__cause__ or error)) from None
    except ValueError as error:
        raise UserError(first_line(error)) from None
    return load_checkpoint(
        recipe.model_name_or_path,
        MAEForPreTraining,
        dtype=torch.float32,
        inflate_channels=recipe.inflate_channels,
        **fields,
    )


def choose_statistics(
    model: MAEForPreTraining, source: Source, recipe: PreTrainingRecipe, arguments: RunArguments
) -> str | None:
    """
    Sets the mean and std that images are normalised by where they are to be measured, and says so.

    Raises:
        UserError: where nobody has said what they are, for another number of channels than 3.
    """
    config = model.config
    if recipe.image_mean == ["auto"]:
        order = SampleOrder(source.group_sizes, recipe.seed, recipe.lanes, recipe.shuffle_buffer_size)
        config.image_mean, config.image_std, count = measure_statistics(
            source, order, config, STATISTICS_IMAGES, arguments.data_retry_minutes
        )
        mean, std = ([round(value, 4) for value in values] for values in (config.image_mean, config.image_std))
        return f"Measured on {count} images: --image_mean {mean}, --image_std {std}"
    if config.image_mean is None:
        raise UserError(
            f"Images of {config.num_channels} channels have no usual mean and std: give --image_mean and --image_std, "
            "or --image_mean auto to measure them. 0 and 1 leave pixels as they are, in [0, 1]."
        )
    return None


def hash_weights(model: MAEForPreTraining) -> str:
    """A hash of a model's tensors."""
    weights = hashlib.blake2b(digest_size=8)
    for name, tensor in sorted(model.state_dict().items()):
        weights.update(name.encode())
        weights.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy())
    return weights.hexdigest()


class PreTraining:
    """
    A run of masked pre-training.

    Args:
        model: What to train.
        source: Its images.
        recipe: What changes results.
        arguments: What does not.

    Raises:
        UserError: where recipe, data, model and processes do not fit together.
    """

    def __init__(
        self,
        model: MAEForPreTraining,
        source: Source,
        recipe: PreTrainingRecipe,
        arguments: RunArguments,
        accelerator: Accelerator,
    ):
        self.model = model
        self.source = source
        self.recipe = recipe
        self.arguments = arguments
        self.accelerator = accelerator
        for name in ("drop_path_rate", "attention_probs_dropout_prob"):
            # It would be drawn from a state that depends on how the batch is divided and that no checkpoint holds.
            if getattr(model.config, name):
                raise UserError(
                    f"{name}={getattr(model.config, name)} is for fine-tuning; pre-train without it, as the paper "
                    f"does: --config_overrides {name}=0"
                )
        # Before training changes them, and whatever their folder is called.
        self.initial_weights = hash_weights(model) if recipe.model_name_or_path is not None else None
        self.order = SampleOrder(source.group_sizes, recipe.seed, recipe.lanes, recipe.shuffle_buffer_size)

        self.num_workers = arguments.dataloader_num_workers
        if self.num_workers is None:
            self.num_workers = default_num_workers(accelerator.device)
        self.accumulation = arguments.gradient_accumulation_steps
        self.batch_size = arguments.per_device_train_batch_size * self.accumulation * accelerator.num_processes
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
            accelerator.print(
                f"Note: the warm-up of {self.warmup_epochs:g} epochs is no shorter than the run of "
                f"{self.num_epochs:.3g} epochs: the learning rate only rises, and does not reach its peak."
            )
        if self.order.is_coarse:
            accelerator.print(
                f"Note: the data has few row groups ({len(source.group_sizes)}), which are what is permuted in each "
                f"epoch; within them rows are only shuffled over --shuffle_buffer_size {recipe.shuffle_buffer_size}. "
                "A larger one mixes better, and takes more memory; or write the data in smaller row groups."
            )
        self._make_loader(first_step=0)  # for its checks, before anything is written

    def _make_loader(self, first_step: int) -> DataLoader:
        stream = SampleStream(
            self.source,
            self.order,
            self.arguments.per_device_train_batch_size,
            self.accelerator.process_index,
            self.accelerator.num_processes,
            start=first_step * self.batch_size,
            stop=self.num_steps * self.batch_size,
            retry_minutes=self.arguments.data_retry_minutes,
        )
        return make_loader(stream, self.model.config, self.num_workers)

    @property
    def identity(self) -> dict:
        """Everything that changes the run's results; not how the batch is divided, nor where files lie."""
        # In the place of names and flags, what they led to: fingerprint, initial weights and configuration.
        replaced = {"dataset_name", "dataset_config_name", "dataset_revision", "image_column_name", "streaming"}
        replaced |= {"train_dir", "validation_dir"}
        replaced |= {"model_name_or_path", "model_size", "inflate_channels", "image_mean", "image_std"}
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

    def _stop_nonfinite(self, run: RunDirectory, optimizer: torch.optim.Optimizer, guard: NonfiniteGuard) -> NoReturn:
        """Names the step and its samples, and leaves the weights before it for whoever looks for the cause."""
        step = guard.fatal_step
        positions = range((step - 1) * self.batch_size, step * self.batch_size)
        samples = [self.source.origin(*self.order.locate(position)) for position in positions]
        state = {"step": step - 1, "num_nonfinite": guard.num_steps, "samples": samples}
        path = run.save(self.model, optimizer, state, prefix=NONFINITE)
        shown = ", ".join(f"{file} row {row}" for file, row in samples[:3])
        raise RunError(
            f"The gradient of step {step} is not finite, more often than --max_nonfinite_steps {guard.max_steps} "
            f"allows. Its samples: {shown}{', …' if len(samples) > 3 else ''}. Weights and optimizer before it, and "
            f"all samples, are in {path}. Lower the learning rate, or raise --max_nonfinite_steps; the run goes on "
            "from its last checkpoint."
        )

    @staticmethod
    def _farewell(interruption: Interruption, step: int) -> str:
        cause = interruption.signal.name if interruption.signal is not None else "a signal to another process"
        return f"Stopped by {cause} after step {step}, which is saved: the same command goes on from there."

    def _check_bad(self, num_bad: int, step: int, run: RunDirectory) -> None:
        """Stops where too many images cannot be read; not before there are enough of them to say so."""
        seen = step * self.batch_size
        reason = f"see {run.path / SKIPPED_FILE}"
        if num_bad == seen:
            raise DataError(f"None of the first {seen} images can be read ({reason}): nothing was trained.")
        limit = self.arguments.max_bad_fraction
        if num_bad > limit * seen and (seen >= min(1000, self.order.epoch_length) or step == self.num_steps):
            raise DataError(
                f"{num_bad} of {seen} images cannot be read ({reason}), more than --max_bad_fraction {limit}: mend or "
                "remove them, or raise that, and the run goes on from its last checkpoint."
            )

    def train(self, run: RunDirectory) -> dict:
        """
        Trains to the end, from a checkpoint if there is one.

        Returns:
            Steps, epochs, loss of the last logged step, and speed.

        Raises:
            RunError: where the data breaks off, none of it can be read, or a checkpoint cannot be written.
            Interrupted: where a signal asked for it, after saving.
        """
        bar = tqdm(
            total=self.num_steps, desc="pre-training", unit="step", disable=not self.accelerator.is_main_process
        )
        with Interruption(self.accelerator.num_processes) as interruption, bar:
            return self._train(run, interruption, bar)

    def _train(self, run: RunDirectory, interruption: Interruption, bar: tqdm) -> dict:
        accelerator, arguments = self.accelerator, self.arguments
        recipe = self.recipe
        if arguments.gradient_checkpointing:
            # The first name came with transformers 5.2x, which deprecates the second.
            enable = getattr(self.model, "activation_checkpointing_enable", self.model.gradient_checkpointing_enable)
            enable()
        plain_optimizer = make_optimizer(self.model, recipe.weight_decay, (recipe.adam_beta1, recipe.adam_beta2))
        model, optimizer = accelerator.prepare(self.model, plain_optimizer)
        model.train()

        state = run.load(self.model, optimizer, arguments.resume_from_checkpoint)
        first_step = state["step"] if state else 0
        if state:
            accelerator.print(f"Going on after step {first_step}.")
        run.cut_metrics(first_step)
        bar.initial = bar.n = first_step
        bar.refresh()

        started = logged_at = time.perf_counter()
        batches = iter(self._make_loader(first_step))  # reads what the first batches need
        data_wait, last_logged, loss = time.perf_counter() - started, first_step, None
        num_bad = state["num_bad"] if state else 0  # images that could not be read, over all processes
        skipped = []  # those of this process since the last logged step
        saved_at = time.monotonic()
        num_nonfinite = state["num_nonfinite"] if state else 0
        guard = NonfiniteGuard(plain_optimizer, arguments.max_nonfinite_steps, num_nonfinite, accelerator.device)

        def count_bad() -> None:
            nonlocal num_bad, skipped
            num_new = int(accelerator.reduce(torch.tensor(len(skipped), device=accelerator.device), "sum"))
            if num_new:
                num_bad += num_new
                run.log_skipped(gather_object(skipped))
                skipped = []

        def save(step: int) -> None:
            if guard.fatal_step:  # the weights are those before it, and not of this step
                self._stop_nonfinite(run, optimizer, guard)
            state = {"step": step, "num_bad": num_bad, "num_nonfinite": guard.num_steps}
            run.save(self.model, optimizer, state, arguments.save_total_limit)

        for step in range(first_step + 1, self.num_steps + 1):
            learning_rate = learning_rate_at(
                (step - 1) / self.steps_per_epoch, self.learning_rate, self.warmup_epochs, self.num_epochs
            )
            for group in optimizer.param_groups:
                group["lr"] = learning_rate

            step_loss, digests = 0.0, []
            for micro_step in range(1, self.accumulation + 1):
                asked = time.perf_counter()
                try:
                    interruption.waiting = True
                    batch = next(batches)
                except StoppedWaiting:
                    # The step cannot be finished; what it has not yet changed is saved.
                    save(step - 1)
                    raise Interrupted(self._farewell(interruption, step - 1)) from None
                except RuntimeError as error:
                    if "DataLoader worker" not in str(error):
                        raise
                    raise DataError(
                        f"A decoding process has ended ({first_line(error)}): it needs more memory, or more shared "
                        "memory (docker run --ipc=host), or pass --dataloader_num_workers 0."
                    ) from error
                finally:
                    interruption.waiting = False
                data_wait += time.perf_counter() - asked
                skipped += batch.skipped
                synchronised = micro_step == self.accumulation
                with nullcontext() if synchronised else accelerator.no_sync(model):
                    images = batch.pixel_values.to(accelerator.device, non_blocking=True)
                    noise = torch.from_numpy(batch.noise).to(accelerator.device, non_blocking=True)
                    pixel_values = normalize(images, self.model.config)
                    # Unreadable images count with a loss of 0: the step's loss is the sum over the good ones divided
                    # by the batch size, however the batch is divided.
                    micro_loss = model(pixel_values, noise=noise).loss * (batch.weight / self.accumulation)
                    accelerator.backward(micro_loss)
                step_loss += micro_loss.detach()
                digests.append(batch.digests)
            parameters = [parameter for parameter in self.model.parameters() if parameter.grad is not None]
            gradient_norm = get_total_norm([parameter.grad for parameter in parameters])
            if recipe.max_grad_norm is not None:
                clip_grads_with_norm_(parameters, recipe.max_grad_norm, gradient_norm)
            guard.check(gradient_norm, step)
            optimizer.step()
            optimizer.zero_grad()
            bar.update()

            logged = step % arguments.logging_steps == 0 or step == self.num_steps
            if logged:
                loss = accelerator.reduce(step_loss, "mean").item()
                count_bad()
                digests = accelerator.gather(torch.cat(digests).to(accelerator.device))
                now = time.perf_counter()
                images_per_second = (step - last_logged) * self.batch_size / (now - logged_at)
                run.log(
                    {
                        "step": step,
                        "epoch": step / self.steps_per_epoch,
                        "loss": loss,
                        "learning_rate": learning_rate,
                        "grad_norm": gradient_norm.item(),
                        "images_per_second": round(images_per_second, 1),
                        "data_wait": round(data_wait, 4),
                        "samples_digest": samples_digest(digests),
                    }
                )
                bar.set_postfix({"loss": f"{loss:.4f}", "images/s": f"{images_per_second:.0f}"})
                data_wait, last_logged, logged_at = 0.0, step, now

            due = arguments.save_minutes is not None and time.monotonic() - saved_at > 60 * arguments.save_minutes
            stop, due = interruption.agree(interruption.signal is not None, due)
            saving = step % arguments.save_steps == 0 or step == self.num_steps or stop or due
            if logged and guard.fatal_step:
                self._stop_nonfinite(run, optimizer, guard)
            if saving:
                count_bad()
                save(step)
                saved_at = time.monotonic()
                accelerator.wait_for_everyone()
            if stop and step < self.num_steps:
                raise Interrupted(self._farewell(interruption, step))
            first = step == first_step + 1
            if first and not logged and not saving:
                count_bad()
            # Every process knows the same number then. After saving, if it is the step's turn; and after the first
            # step, because where nothing can be read there is nothing to wait for.
            if num_bad and (logged or first):
                self._check_bad(num_bad, step, run)
        runtime = time.perf_counter() - started
        steps_done = self.num_steps - first_step
        return {
            "steps": self.num_steps,
            "epochs": self.num_epochs,
            "loss": loss if loss is not None else run.read_metrics()[-1]["loss"],
            "nonfinite_steps": guard.num_steps,
            "data_fingerprint": self.source.fingerprint,
            "dataset_revision": self.source.revision,
            "train_runtime": round(runtime, 1),
            "images_per_second": round(steps_done * self.batch_size / runtime, 1),
        }
