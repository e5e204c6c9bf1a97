"""`--dry_run`: two steps of everything, and what the real run would take."""

import logging
import os
import tempfile
import time
from pathlib import Path

import speechbrain as sb
import torch

from summarymixing.training import results
from summarymixing.training.data import collate

STEPS = 2


def rehearse(brain, train_loader, loaders):
    """Trains on the longest batch and two steps, validates and tests two batches each.

    Nothing of it stays: checkpoints and curves go into a temporary folder.

    Arguments
    ---------
    brain : summarymixing.training.brain.ASRBrain
    train_loader : torch.utils.data.DataLoader
        As `data.train_loader` makes it.
    loaders : dict
        Name of a test set, "valid" among them, to its loader.

    Returns
    -------
    list of str
        Lines that say what the real run would do.
    """
    with tempfile.TemporaryDirectory() as folder:
        brain.hparams.output_folder = folder
        brain.checkpointer.checkpoints_dir = Path(folder)
        brain.train_loader = train_loader
        brain.hparams.epoch_counter.current = 1
        brain.on_fit_start()
        training = _train(brain)
        peak = results.peak_memory_bytes()
        size = _checkpoint_bytes(brain, folder)
        tests = {name: _evaluate(brain, name, loader) for name, loader in loaders.items()}
    return _report(brain, training, tests, size, peak)


def _train(brain):
    """Seconds of reading and of computing a step, and the longest batch."""
    batches, dataset = brain.batches, brain.train_loader.dataset
    brain.on_stage_start(sb.Stage.TRAIN, 1)
    brain.modules.train()
    longest = batches.longest()
    steps = min(STEPS * batches.accumulation, len(batches))
    read = compute = 0.0
    for turn, number in enumerate([longest, *range(steps)]):
        began = time.perf_counter()
        batch = collate([dataset[index] for index in batches.batch(number)])
        loaded = time.perf_counter()
        brain.step = number + 1
        brain.fit_batch(batch)
        if turn > 0:  # the first one has to set up much
            read += loaded - began
            compute += time.perf_counter() - loaded
    count = steps / batches.accumulation
    return read / count, compute / count, batches.batch(longest)


def _evaluate(brain, name, loader):
    """Seconds for all of a set, as two batches out of its middle take it."""
    stage = sb.Stage.VALID if name == "valid" else sb.Stage.TEST
    chosen = loader.batch_sampler[len(loader) // 2 :][:STEPS]
    rows = loader.dataset.rows
    brain.on_stage_start(stage, 1)
    brain.modules.eval()
    began = time.perf_counter()
    with torch.no_grad():
        for indices in chosen:
            brain.evaluate_batch(loader.collate_fn([loader.dataset[i] for i in indices]), stage)
    seconds = time.perf_counter() - began
    done = rows.durations[[i for indices in chosen for i in indices]].sum()
    return seconds * rows.durations.sum() / max(done, 1e-9) / brain.batches.world_size


def _checkpoint_bytes(brain, folder):
    brain.checkpointer.save_checkpoint(verbosity=logging.DEBUG)
    files = (os.path.join(path, name) for path, _, names in os.walk(folder) for name in names)
    return sum(map(os.path.getsize, files))


def _report(brain, training, tests, size, peak):
    batches, hparams = brain.batches, brain.hparams
    read, compute, longest = training
    epochs, workers = hparams.number_of_epochs, max(hparams.num_workers, 1)
    step = max(compute, read / workers)
    epoch = batches.steps * step
    steps = epochs * batches.steps
    if brain.optimizer_step_limit is not None and brain.optimizer_step_limit < steps:
        steps = brain.optimizer_step_limit
        epochs = -(-steps // batches.steps)
    searches = epochs // hparams.valid_search_interval
    total = steps * step + searches * tests["valid"] + sum(tests.values())
    rows = brain.train_loader.dataset.rows.select(longest)
    utterances, seconds = len(batches.durations), batches.durations.sum()
    kept = hparams.avg_checkpoints + 2  # the newest, and the one that is being written
    return [
        f"train: {utterances} utterances, {seconds / 3600:.2f} h, {batches.steps} steps an epoch "
        f"of {utterances / batches.steps:.1f} utterances, {seconds / batches.steps:.0f} s "
        f"(processes: {batches.world_size}, batches accumulated: {batches.accumulation})",
        f"longest batch: {len(longest)} utterances of up to {max(rows.durations):.1f} s; "
        f"peak memory {peak / 1e9:.2f} GB",
        f"a step: {compute:.2f} s to compute, {read:.2f} s to read"
        f" ({hparams.num_workers} data workers)",
        f"an epoch: {_time(epoch)}, validation {_time(tests['valid'])}",
        *(f"decoding {name}: at most {_time(tests[name])}" for name in tests if name != "valid"),
        f"{epochs} epochs, {steps} steps: about {_time(total)} with the test sets",
        f"checkpoints: {size / 1e6:.0f} MB each, up to {kept} of them: {kept * size / 1e9:.2f} GB",
    ]


def _time(seconds):
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
