"""The cache of decoded images in a run: the same numbers, shared by ranks, and reported once."""

import re
import shutil

import pytest

from mae.data.pixel_cache import PixelCache
from mae.training import pixels
from mae.training.pixels import describe, open_pixel_cache
from mae.utils.files import RESULTS_FILE
from tests.support.runs import SCRIPT, TINY, metrics, run, run_here


def exact(lines):
    return [(line["step"], line["loss"], line["samples_digest"]) for line in lines]


def report(output):
    return re.findall(
        r"(\d+) decoded images are kept in memory \((\d+)% of the training images.*--cache_memory", output
    )


@pytest.fixture(scope="module")
def without(image_folder, tmp_path_factory):
    """A run of three epochs without a cache."""
    folder = tmp_path_factory.mktemp("runs") / "without"
    done = run_here(SCRIPT, "--output_dir", folder, "--train_dir", image_folder, *TINY, "--cache_memory", 0)
    assert done.returncode == 0 and not report(done.stdout), done.stderr
    return exact(metrics(folder))


@pytest.mark.parametrize("memory, workers, kept", [("auto", 0, 60), ("auto", 2, 60), ("200KB", 1, 15)])
def test_run_with_a_cache_has_the_same_losses_and_digests(without, image_folder, tmp_path, memory, workers, kept):
    flags = ["--cache_memory", memory, "--dataloader_num_workers", workers]
    done = run_here(SCRIPT, "--output_dir", tmp_path, "--train_dir", image_folder, *TINY, *flags)
    assert exact(metrics(tmp_path)) == without
    ((count, share),) = report(done.stdout)
    assert abs(int(count) - kept) < 5 and int(share) == round(int(count) / 60 * 100)
    assert ("no room" in done.stdout) == (kept < 60)


def test_resumed_run_may_have_another_cache(without, image_folder, tmp_path):
    arguments = ["--output_dir", tmp_path, "--train_dir", image_folder, *TINY]
    run_here(SCRIPT, *arguments, "--cache_memory", "1GB")
    shutil.rmtree(tmp_path / "checkpoint-24")
    (tmp_path / RESULTS_FILE).unlink()
    done = run_here(SCRIPT, *arguments, "--cache_memory", 0)
    assert "Resuming after step 20" in done.stdout and exact(metrics(tmp_path)) == without


def test_ranks_of_a_machine_share_one_cache(without, image_folder, tmp_path):
    """Each rank decodes other images in each epoch, so that together they hold all after the first."""
    flags = ["--per_device_train_batch_size", 4, "--dataloader_num_workers", 1]
    done = run("--output_dir", tmp_path, "--train_dir", image_folder, *TINY, *flags, processes=2)
    assert [line[2] for line in exact(metrics(tmp_path))] == [line[2] for line in without]
    assert report(done.stdout) == [("60", "100")], done.stdout


def test_run_of_one_epoch_has_no_cache(image_folder, tmp_path):
    done = run_here(SCRIPT, "--output_dir", tmp_path, "--train_dir", image_folder, *TINY, "--max_steps", 7)
    assert done.returncode == 0 and not report(done.stdout)


def test_machine_that_refuses_the_memory_trains_without(monkeypatch, caplog):
    def refuse(*arguments):
        raise OSError("Cannot allocate memory")

    monkeypatch.setattr(pixels, "PixelCache", refuse)
    assert open_pixel_cache(10, "1GB") is None
    assert "1.0 GB" in caplog.text and "Cannot allocate memory" in caplog.text


@pytest.mark.parametrize("free, memory, max_bytes, reserve", [(8000, "auto", 4000, 2000), (8000, "25%", 2000, 0)])
def test_size_is_a_share_of_the_free_memory(free, memory, max_bytes, reserve, monkeypatch):
    monkeypatch.setattr(pixels, "available_memory", lambda: free)
    cache = open_pixel_cache(10, memory)
    assert (cache.max_bytes, cache.reserve) == (max_bytes, reserve)
    assert open_pixel_cache(10, "0") is None


def test_description_counts_images_and_bytes():
    cache = PixelCache(8, 10**6)
    assert describe(cache, "auto").startswith(
        "0 decoded images are kept in memory (0% of the training images, 0.0 kB;"
    )


def test_several_views_resume_and_belong_to_the_identity(image_folder, tmp_path):
    flags = ["--train_dir", image_folder, *TINY, "--views_per_image", 4]
    done = run_here(SCRIPT, "--output_dir", tmp_path / "whole", *flags, "--cache_memory", 0)
    assert done.returncode == 0, done.stderr
    whole = exact(metrics(tmp_path / "whole"))
    # A pass over 60 images takes 30 steps of 2 images, so that 24 need no cache.
    run_here(SCRIPT, "--output_dir", tmp_path / "resumed", *flags)
    shutil.rmtree(tmp_path / "resumed" / "checkpoint-24")
    (tmp_path / "resumed" / RESULTS_FILE).unlink()
    done = run_here(SCRIPT, "--output_dir", tmp_path / "resumed", *flags)
    assert "Resuming after step 20" in done.stdout and exact(metrics(tmp_path / "resumed")) == whole
    done = run_here(SCRIPT, "--output_dir", tmp_path / "resumed", "--train_dir", image_folder, *TINY)
    assert done.returncode and "views_per_image" in done.stderr


def test_views_that_do_not_divide_the_batch_are_refused(image_folder, tmp_path):
    done = run_here(SCRIPT, "--output_dir", tmp_path, "--train_dir", image_folder, *TINY, "--views_per_image", 3)
    assert done.returncode and "--views_per_image 3" in done.stderr and "Use 9" in done.stderr
