"""Data sets and loaders from manifests: audio, speed perturbation, tokens, batches."""

import logging
import multiprocessing
import os
import signal
from collections import Counter
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from speechbrain.dataio.batch import PaddedBatch
from speechbrain.utils.seed import seed_everything
from torch.utils.data import DataLoader, Dataset

from summarymixing.dataio import manifests
from summarymixing.dataio.samples import check_samples
from summarymixing.dataio.screening import FINDINGS, Limits, screen
from summarymixing.errors import InputError, one_line

logger = logging.getLogger(__name__)

NAMED = 20  # left-out utterances that are named in the log; the file has them all
_PATIENCE = 600  # seconds for a batch: a disk that hangs ends the run instead of hanging it
_FAREWELL = 5  # seconds for a killed process to be gone


class Utterances(Dataset):
    """The utterances of a manifest, each read when it is asked for.

    Items have id, wrd (str), sig (samples,), tokens_bos and tokens_eos (LongTensor). What is drawn
    for an utterance depends on the seed, the epoch and its index alone, not on the data worker.

    Arguments
    ---------
    rows : summarymixing.dataio.manifests.Manifest
    tokenizer : sentencepiece.SentencePieceProcessor
    sample_rate : int
        Audio of any other rate is resampled.
    speed_perturb : callable, optional
        Applied to (1, samples).
    seed : int
    may_fail : bool
        Give an `Unread` for an utterance that cannot be read instead of raising.

    Raises
    ------
    InputError
        When an item cannot be read, or has samples that are no numbers or far beyond 1.
    """

    def __init__(
        self, rows, tokenizer, sample_rate=16000, speed_perturb=None, seed=0, may_fail=False
    ):
        self.rows = rows
        self.tokenizer = tokenizer
        self.sample_rate = sample_rate
        self.speed_perturb = speed_perturb
        self.seed = seed
        self.may_fail = may_fail
        self.epoch = 0

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        row = self.rows[index]
        try:
            sig = manifests.read_audio(row, self.sample_rate)
            check_samples(sig.numpy(), f"{row['wav']} at {self.sample_rate} Hz")
        except (InputError, OSError) as error:
            if not self.may_fail:
                raise
            return Unread(row["ID"], str(error))
        if self.speed_perturb is not None:
            seed_everything(seed_of(self.seed, self.epoch, index), verbose=False)
            sig = self.speed_perturb(sig.unsqueeze(0)).squeeze(0)
        ids = self.tokenizer.encode(row["wrd"])
        return {
            "id": row["ID"],
            "wrd": row["wrd"],
            "sig": sig,
            "tokens_bos": torch.tensor([self.tokenizer.bos_id(), *ids]),
            "tokens_eos": torch.tensor([*ids, self.tokenizer.eos_id()]),
        }


class Unread(NamedTuple):
    """An utterance that could not be read, and why."""

    id: str
    reason: str


def seed_of(*numbers):
    """A seed for the draws that belong to some numbers: seed, epoch, and place.

    Example
    -------
    >>> seed_of(1, 2, 3) == seed_of(1, 2, 3) != seed_of(1, 3, 2)
    True
    """
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def collate(items):
    """What could be read as a `PaddedBatch`, or None if that is nothing, and what could not."""
    unread = [item for item in items if isinstance(item, Unread)]
    read = [item for item in items if not isinstance(item, Unread)]
    return PaddedBatch(read) if read else None, unread


def screened(
    manifest,
    tokenizer,
    frames,
    folder,
    sample_rate=16000,
    min_seconds=None,
    max_seconds=None,
    decode=True,
    facts=None,
):
    """What training can learn from; the rest is named, counted and left out.

    Left out is what screening drops (see `dataio.screening`): damaged or silent audio, characters
    that the tokenizer does not know, more labels than the encoder has frames (their CTC loss is
    infinite, and SpeechBrain's sets it to zero without a word), and so on.

    Arguments
    ---------
    manifest : summarymixing.dataio.manifests.Manifest
    tokenizer : sentencepiece.SentencePieceProcessor
    frames : callable
        Seconds of audio → encoder frames.
    folder : str
        For the reports.
    sample_rate : int
        Other rates are noted.
    min_seconds, max_seconds : float, optional
        Shorter and longer utterances are left out.
    decode : bool
        Whether to look at the audio, not only at the texts.
    facts : str, optional
        The file that remembers what was found out about audio.

    Returns
    -------
    path : pathlib.Path
        Of the manifest of what is left.

    Raises
    ------
    InputError
        If nothing is left.
    """
    name = os.path.basename(manifest.path).removesuffix(".csv")
    screening = screen(
        manifest,
        facts,
        Limits(sample_rate=sample_rate, min_seconds=min_seconds, max_seconds=max_seconds),
        characters=lambda text: _unknown(tokenizer, text),
        labels=lambda row: frames_needed(tokenizer.encode(row["wrd"])),
        frames=frames,
        decode=decode,
    )
    clean = screening.write_report(folder, name)
    report = os.path.join(folder, f"{name}.findings.csv")
    dropped = [finding for finding in screening.findings if finding.dropped]
    for finding in dropped[:NAMED]:
        row = manifest[finding.index]
        what = finding.name.replace("_", " ")
        logger.warning("left out: %s (%s): %s: %s", row["ID"], row["wav"], what, finding.detail)
    if screening.findings:
        logger.warning(
            "%s: %d of %d utterances left out%s%s; all are named in %s",
            name,
            len(manifest) - len(screening.kept),
            len(manifest),
            _counted(dropped, " ({})"),
            _counted([f for f in screening.findings if not f.dropped], "; kept, but {}"),
            report,
        )
    if len(screening.kept) == 0:
        raise InputError(f"no utterance is left to train on; {report} gives the reasons")
    return clean


def _counted(findings, form):
    """Findings by name, in their order, as a part of a sentence; nothing of none."""
    counts = Counter(finding.name.replace("_", " ") for finding in findings)
    return form.format(", ".join(f"{n} {what}" for what, n in counts.items())) if counts else ""


def check_whole(manifest, facts):
    """Raises InputError if audio of a validation or test set cannot be read to its end.

    Arguments
    ---------
    manifest : summarymixing.dataio.manifests.Manifest
    facts : str
        The file that remembers what was found out about audio.
    """
    unusable = {"unreadable", "truncated", "empty", "nan", "not_scaled"}
    findings = screen(manifest, facts, note=FINDINGS).findings
    bad = [finding for finding in findings if finding.name in unusable]
    if bad:
        row = manifest[bad[0].index]
        raise InputError(
            f"{manifest.path}: {len(bad)} utterances cannot be read, the first {row['ID']}: "
            f"{bad[0].detail} ({row['wav']}); leaving any out would change the score, so mend the "
            "data"
        )


def frames_needed(labels):
    """Frames without which CTC cannot align labels: a blank stands between two equal ones.

    Example
    -------
    >>> frames_needed([5, 5, 6])
    4
    """
    return len(labels) + sum(a == b for a, b in zip(labels, labels[1:]))


def _unknown(tokenizer, text):
    if tokenizer.unk_id() not in tokenizer.encode(text):
        return set()
    return {c for c in set(text) if tokenizer.unk_id() in tokenizer.encode(c)}


def train_loader(dataset, batches, num_workers):
    """A loader of (`PaddedBatch` or None, list of `Unread`).

    Arguments
    ---------
    dataset : Utterances
    batches : summarymixing.training.batches.Batches
    num_workers : int

    Returns
    -------
    torch.utils.data.DataLoader
    """
    return DataLoader(
        dataset,
        batch_sampler=batches,
        collate_fn=collate,
        **_workers(num_workers),
    )


def test_loader(dataset, batch_size, num_workers, rank=0, world_size=1):
    """A loader of `PaddedBatch` over the share of one process, longest utterances first.

    Longest first, a progress bar never slows down towards the end.
    """
    longest_first = np.argsort(-dataset.rows.durations, kind="stable")
    share = longest_first[rank::world_size].tolist()
    return DataLoader(
        dataset,
        batch_sampler=[share[i : i + batch_size] for i in range(0, len(share), batch_size)],
        collate_fn=PaddedBatch,
        **_workers(min(num_workers, 1)),
    )


def _workers(count):
    if count == 0:
        return {"num_workers": 0}
    return {"num_workers": count, "timeout": _PATIENCE, "worker_init_fn": _outlive_sigterm}


def _outlive_sigterm(worker):
    # It may be sent to all processes of a run: the main one still needs its batches, to end well.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


@contextmanager
def ended_with_its_workers():
    """Within this, data workers that hang or die end the run, with one line.

    Whatever ends it, no worker that waits for a disk is waited for.

    Raises
    ------
    InputError
    """
    try:
        yield
    except BaseException as error:
        _kill_workers()
        # A worker that dies may take away a batch that is being fetched from it.
        lost = isinstance(error, (ConnectionError, EOFError))
        # What a worker raised itself begins with "Caught", and is torch's to show.
        silent = isinstance(error, RuntimeError) and str(error).startswith("DataLoader ")
        if not (lost or silent):
            raise
        raise InputError(
            f"a data worker gave nothing for {_PATIENCE} s, or died ({one_line(error)}): look at "
            "the disk that the audio is on, and at memory; the same command goes on from the last "
            "checkpoint"
        ) from error


def _kill_workers():
    # Torch's handler would raise an error of its own for every one that is killed.
    handler = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for worker in multiprocessing.active_children():
        worker.kill()
        worker.join(_FAREWELL)
    signal.signal(signal.SIGCHLD, handler)
