"""Screening: what is wrong with the utterances of a manifest, found before a training meets it.

Every row is looked at once, in parallel, its audio decoded from the first sample to the last. What
was learnt of a file is remembered, so that the next time only files are decoded that are new or
were changed. Each finding drops its utterance or is only noted, and is reported either way: an
utterance that is not in the clean manifest is in the report, with the reason.
"""

import hashlib
import math
import multiprocessing
import os
import signal
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from summarymixing.dataio import audio, manifests
from summarymixing.dataio.facts import DIGEST, FactsFile, measure, stamp_of
from summarymixing.dataio.samples import LOUDEST
from summarymixing.errors import InputError, check_integer
from summarymixing.files import write_whole
from summarymixing.machine import cores

# What is looked for, and whether it drops the utterance unless the user says otherwise.
FINDINGS = {
    "unreadable": True,  # there is no such file, or it is no audio
    "truncated": True,  # samples are missing at the end, or damaged
    "empty": True,  # no samples
    "nan": True,  # samples that are no numbers
    "not_scaled": True,  # samples far beyond 1: integers that were not divided
    "silent": True,
    "clipped": False,
    "wrong_rate": False,  # it will be resampled
    "stereo": False,  # more than one channel: they will be averaged
    "wrong_duration": False,  # not what the manifest says: batches are planned with that
    "too_short": True,
    "too_long": True,
    "empty_text": True,
    "unknown_characters": True,
    "too_many_labels": True,  # more than CTC can align with the frames
    "speech_rate": False,  # more or fewer characters a second than people say
    "duplicate_id": True,
    "duplicate_audio": False,  # the same samples
}
_WITHOUT_DECODING = {"empty", "too_short", "too_long", "empty_text", "unknown_characters"}
_WITHOUT_DECODING |= {"too_many_labels", "speech_rate", "duplicate_id"}
_ROWS = 32  # that a process gets at a time: some hundred milliseconds of work
_REMEMBER_SECONDS = 1.0


@dataclass(frozen=True)
class Limits:
    """Between which values an utterance is as it should be; None for no limit.

    Arguments
    ---------
    sample_rate : int, optional
        In Hz; another one is "wrong_rate".
    min_seconds, max_seconds : float, optional
        Shorter is "too_short", longer "too_long".
    min_characters_per_second, max_characters_per_second : float, optional
        Outside is "speech_rate". White space does not count.
    silence_db : float, optional
        Half the range of the samples, in dB relative to full scale; below is "silent".
    clipped_share : float, optional
        Of samples at full scale; more is "clipped".
    duration_error : float, optional
        In seconds, between the manifest's duration and the audio's; more is "wrong_duration".

    Example
    -------
    >>> Limits(max_seconds=20).max_seconds
    20
    >>> Limits(min_seconds=2, max_seconds=1)
    Traceback (most recent call last):
    summarymixing.errors.InputError: min_seconds=2 is more than max_seconds=1
    """

    sample_rate: int | None = 16000
    min_seconds: float | None = None
    max_seconds: float | None = None
    min_characters_per_second: float | None = 0.5
    max_characters_per_second: float | None = 40
    silence_db: float | None = -70
    clipped_share: float | None = 0.001
    duration_error: float | None = 0.1

    def __post_init__(self):
        for field in fields(self):
            value = getattr(self, field.name)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, (int, float)) or math.isnan(value):
                raise InputError(f"{field.name} must be a number, got {value!r}")
            if field.name != "silence_db" and value < 0:
                raise InputError(f"{field.name} must not be negative, got {value}")
        for what in ("seconds", "characters_per_second"):
            low, high = getattr(self, f"min_{what}"), getattr(self, f"max_{what}")
            if low is not None and high is not None and low > high:
                raise InputError(f"min_{what}={low} is more than max_{what}={high}")


class Finding(NamedTuple):
    """Something that was found about an utterance.

    Arguments
    ---------
    index : int
        Its row in the manifest.
    name : str
        One of `FINDINGS`.
    detail : str
        The value that was found.
    dropped : bool
        Whether it is a reason to leave the utterance out.
    """

    index: int
    name: str
    detail: str
    dropped: bool


@dataclass(frozen=True)
class Screening:
    """What was found in a manifest.

    Arguments
    ---------
    manifest : manifests.Manifest
        All of it.
    findings : list of Finding
        In the order of the rows; of one utterance there may be several.
    looked_for : dict
        For each name of a finding that there could have been, whether it drops.
    kept : np.ndarray
        (utterances,), int64: the rows that no finding dropped.
    """

    manifest: manifests.Manifest
    findings: list
    looked_for: dict
    kept: np.ndarray

    @property
    def clean(self):
        """The rows that are kept (manifests.Manifest)."""
        return self.manifest.select(self.kept)

    @property
    def counts(self):
        """For each finding that was looked for, its number of utterances."""
        counts = dict.fromkeys(self.looked_for, 0)
        for finding in self.findings:
            counts[finding.name] += 1
        return counts

    def table(self):
        """The numbers of utterances and hours, and what became of them, as text."""
        durations = self.manifest.durations
        seconds = dict.fromkeys(self.looked_for, 0.0)
        for finding in self.findings:
            seconds[finding.name] += durations[finding.index]
        rows = [
            (name, count, seconds[name], "yes" if self.looked_for[name] else "no")
            for name, count in self.counts.items()
        ]
        total, kept = durations.sum(), durations[self.kept].sum()
        count = len(durations) - len(self.kept)
        rows.append(("dropped, in all", count, total - kept, ""))
        rows.append(("kept", len(self.kept), kept, ""))
        rows.append(("utterances", len(durations), total, ""))
        lines = [f"{'finding':20}{'utterances':>12}{'hours':>12}  dropped"]
        for name, count, seconds, dropped in rows:
            lines.append(f"{name:20}{count:12}{seconds / 3600:12.2f}  {dropped}".rstrip())
        return "\n".join(lines)

    def write_report(self, folder, name):
        """Writes everything that was found, and the clean manifest.

        Arguments
        ---------
        folder : str or os.PathLike
            Is created.
        name : str
            What the files are called: ``<name>.findings.csv`` has a line for each finding,
            ``<name>.summary.txt`` the table, ``<name>.clean.csv`` the rows that are kept.

        Returns
        -------
        path : pathlib.Path
            The clean manifest.

        Raises
        ------
        InputError
            If they cannot be written, or the clean manifest would be put over the screened one.
        """
        folder = Path(folder).absolute()
        clean = folder / f"{name}.clean.csv"
        if os.path.realpath(clean) == os.path.realpath(self.manifest.path):
            raise InputError(f"{clean} was screened and would be overwritten; choose another name")

        def lines():
            for index, finding, detail, dropped in self.findings:
                row = self.manifest[index]
                yield row["ID"], row["wav"], finding, detail, "yes" if dropped else "no"

        columns = ("ID", "wav", "finding", "detail", "dropped")
        manifests.write_csv(folder / f"{name}.findings.csv", columns, lines())
        self.clean.save(clean)
        try:
            write_whole(folder / f"{name}.summary.txt", self.table() + "\n")
        except OSError as error:
            raise InputError(f"{folder}: cannot be written to ({error.strerror})") from error
        return clean


def screen(
    manifest,
    facts_file=None,
    limits=None,
    *,
    characters=None,
    labels=None,
    frames=None,
    drop=(),
    note=(),
    decode=True,
    jobs=None,
):
    """Looks for what is wrong with the utterances of a manifest.

    Of utterances with the same id, or the same samples, the first that nothing else drops is left
    as it is, and the others are duplicates.

    Arguments
    ---------
    manifest : manifests.Manifest
        As `manifests.read` returns it.
    facts_file : str or os.PathLike, optional
        Where to remember what was measured of audio that could be decoded, by path, size, time and
        segment; several manifests may share it. A run that was killed has it up to then.
    limits : Limits, optional
        The default ones if left out.
    characters : set of str or callable, optional
        The characters that texts may have, white space aside; or text → those in it that are
        unknown.
    labels : callable, optional
        Row → number of frames that its labels need.
    frames : callable, optional
        Seconds of audio → number of frames; given together with `labels`.
    drop : iterable of str
        Findings that drop the utterance although they are only noted by default.
    note : iterable of str
        Findings that are only noted although they drop by default.
    decode : bool
        If False, only the manifest is looked at and its durations are believed.
    jobs : int, optional
        Number of processes; that of the processors if left out. (Where processes cannot be forked,
        the callables must be such as can be pickled.)

    Returns
    -------
    screening : Screening

    Raises
    ------
    InputError
        On the name of a finding that there is not, and if `facts_file` cannot be used.

    Example
    -------
    >>> import os, soundfile, tempfile, torch
    >>> folder = tempfile.mkdtemp()
    >>> for name, level in (("a", 0.1), ("b", 0)):
    ...     soundfile.write(f"{folder}/{name}.wav", level * torch.randn(16000).numpy(), 16000)
    >>> path = os.path.join(folder, "train.csv")
    >>> with open(path, "w") as file:
    ...     _ = file.write("ID,duration,wav,spk_id,wrd\\n")
    ...     _ = file.write(f"a,1,{folder}/a.wav,a,GOOD MORNING\\nb,1,{folder}/b.wav,a,B\\n")
    >>> screening = screen(manifests.read(path), jobs=1)
    >>> [(finding.index, finding.name) for finding in screening.findings]
    [(1, 'silent')]
    >>> [row["ID"] for row in screening.clean]
    ['a']
    """
    if (labels is None) != (frames is None):
        raise ValueError("labels and frames go together: both or neither must be given")
    drops = _dropping(drop, note)
    limits = limits or Limits()
    checker = _Checker(manifest, facts_file, limits, characters, labels, frames, decode)
    chunks = [
        range(first, min(first + _ROWS, len(manifest))) for first in range(0, len(manifest), _ROWS)
    ]
    findings, ids, sounds = [], bytearray(), bytearray()
    processes = min(_processes(jobs), max(1, len(chunks)))
    progress = tqdm(desc=f"screening {manifest.path.name}", total=len(manifest), unit="row")
    try:
        with (
            progress,
            _remembering(checker.facts) as remember,
            _mapping(checker, processes, chunks) as results,
        ):
            for found, id_digests, sound_digests, learnt in results:
                for index, name, detail in found:
                    # Few details are different: one string for all that are equal.
                    findings.append(Finding(index, name, sys.intern(detail), name in drops))
                ids += id_digests
                sounds += sound_digests
                remember(learnt)
                progress.update(len(id_digests) // DIGEST)
    except BrokenProcessPool:
        raise InputError(
            f"{manifest.path}: a screening process ended unexpectedly (was there too little memory,"
            f" or did a decoder crash?) at utterance {manifest[len(ids) // DIGEST]['ID']} or soon"
            " after it"
        ) from None

    kept = np.ones(len(manifest), bool)
    kept[[finding.index for finding in findings if finding.dropped]] = False
    for name, digests in (("duplicate_id", ids), ("duplicate_audio", sounds)):
        for index, first in _duplicates(digests, kept):
            row, earlier = manifest[index], manifest[first]
            if name == "duplicate_id":
                detail = f"that of {earlier['wav']}"
            else:
                text = ", with another text" if row["wrd"] != earlier["wrd"] else ""
                detail = f"that of {earlier['ID']}{text}"
            findings.append(Finding(index, name, detail, name in drops))
        kept[[finding.index for finding in findings if finding.dropped]] = False
    findings.sort(key=lambda finding: finding.index)
    looked_for = {name: name in drops for name in checker.looked_for}
    return Screening(manifest, findings, looked_for, np.flatnonzero(kept))


class _Checker:
    """Finds what is wrong with single rows, in any process."""

    def __init__(self, manifest, facts_file, limits, characters, labels, frames, decode):
        self.manifest, self.limits, self.decode = manifest, limits, decode
        self.labels, self.frames = labels, frames
        self.facts = FactsFile(facts_file)
        self.unknown = characters
        if characters is not None and not callable(characters):
            known = set(characters)
            self.unknown = lambda text: {c for c in text if c not in known and not c.isspace()}
        unlimited = {
            "wrong_rate": limits.sample_rate,
            "too_short": limits.min_seconds,
            "too_long": limits.max_seconds,
            "silent": limits.silence_db,
            "clipped": limits.clipped_share,
            "wrong_duration": limits.duration_error,
            "unknown_characters": characters,
            "too_many_labels": labels,
        }
        unlimited = {name for name, limit in unlimited.items() if limit is None}
        if limits.min_characters_per_second is limits.max_characters_per_second is None:
            unlimited.add("speech_rate")
        self.looked_for = tuple(
            name
            for name in FINDINGS
            if name not in unlimited and (decode or name in _WITHOUT_DECODING)
        )

    def __call__(self, indices):
        """Findings (index, name, detail), digests of the ids and of the samples, new facts."""
        found, ids, sounds, learnt = [], bytearray(), bytearray(), []
        for index in indices:
            row = self.manifest[index]
            ids += hashlib.blake2b(row["ID"].encode(), digest_size=DIGEST).digest()
            facts, seconds = None, row["duration"]
            if self.decode:
                stamp = stamp_of(row)
                facts = stamp and self.facts.look_up(*stamp)
                try:
                    if facts is None:
                        facts = measure(row["wav"], row.get("start"), row.get("stop"))
                        if stamp:
                            learnt.append((*stamp, *facts))
                    seconds = facts.frames / facts.sample_rate
                    found += ((index, *finding) for finding in self._audio(row, facts, seconds))
                except InputError as error:
                    found.append((index, _kind(error), str(error)))
            elif seconds == 0:
                found.append((index, "empty", "0 s"))
            sounds += facts.digest if facts else bytes(DIGEST)
            found += ((index, *finding) for finding in self._text(row, seconds))
        return found, ids, sounds, learnt

    def _audio(self, row, facts, seconds):
        limits = self.limits
        if not facts.finite:
            yield "nan", "samples that are no numbers, or infinite"
        elif (loudest := max(-facts.low, facts.high)) > LOUDEST:
            yield "not_scaled", f"samples up to {loudest:g}, where full scale is 1"
        if limits.silence_db is not None and facts.finite:
            level = (facts.high - facts.low) / 2
            if level < 10 ** (limits.silence_db / 20):
                yield "silent", f"{20 * math.log10(level):.0f} dB" if level else "digital silence"
        if limits.clipped_share is not None:
            share = facts.clipped / (facts.frames * facts.channels)
            if share > limits.clipped_share:
                yield "clipped", f"{100 * share:.2f} % of the samples"
        if limits.sample_rate is not None and facts.sample_rate != limits.sample_rate:
            yield "wrong_rate", f"{facts.sample_rate} Hz"
        if facts.channels != 1:
            yield "stereo", f"{facts.channels} channels"
        if limits.duration_error is not None:
            if abs(row["duration"] - seconds) > limits.duration_error:
                yield "wrong_duration", f"{seconds:.3f} s, stated as {row['duration']:.3f} s"

    def _text(self, row, seconds):
        limits, text = self.limits, row["wrd"]
        if limits.min_seconds is not None and seconds < limits.min_seconds:
            yield "too_short", f"{seconds:.3f} s"
        if limits.max_seconds is not None and seconds > limits.max_seconds:
            yield "too_long", f"{seconds:.3f} s"
        if not text.strip():
            yield "empty_text", ""
            return
        if self.unknown is not None:
            unknown = sorted(set(self.unknown(text)))
            if unknown:
                shown = [c if c.isprintable() else ascii(c)[1:-1] for c in unknown]
                yield "unknown_characters", " ".join(shown)
        if self.labels is not None:
            needed, there = self.labels(row), self.frames(seconds)
            if needed > there:
                yield "too_many_labels", f"{needed} labels, {there} frames in {seconds:.3f} s"
        if seconds > 0:
            rate = sum(map(len, text.split())) / seconds
            low, high = limits.min_characters_per_second, limits.max_characters_per_second
            if (low is not None and rate < low) or (high is not None and rate > high):
                yield "speech_rate", f"{rate:.1f} characters a second"


@contextmanager
def _remembering(facts):
    """A function that notes new facts, every second and at the end, whatever ends the pass."""
    waiting, noted = [], time.monotonic()

    def remember(learnt):
        nonlocal noted
        waiting.extend(learnt)
        if time.monotonic() - noted > _REMEMBER_SECONDS:
            facts.add(waiting)
            waiting.clear()
            noted = time.monotonic()

    try:
        yield remember
    finally:
        facts.add(waiting)


@contextmanager
def _mapping(checker, jobs, chunks):
    """Results of the checker, in the order of the chunks."""
    if jobs == 1:
        yield map(checker, chunks)
        return
    # Forked where that is possible: callables need not be pickled, nothing is imported again.
    method = "fork" if sys.platform == "linux" else None
    pool = ProcessPoolExecutor(
        jobs, multiprocessing.get_context(method), initializer=_start, initargs=(checker,)
    )
    try:
        yield pool.map(_check, chunks)
    finally:
        pool.shutdown(cancel_futures=True)


def _start(checker):
    """In a new process: it gets the checker once, and ends when its parent is killed."""
    global _checker
    _checker = checker
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent gets it, too, and says it once
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def _check(chunk):
    return _checker(chunk)


def _processes(jobs):
    if jobs is None:
        return cores()
    check_integer("jobs", jobs)
    return jobs


def _dropping(drop, note):
    """Names of the findings that drop an utterance."""
    drop, note = ({names} if isinstance(names, str) else set(names) for names in (drop, note))
    for name in sorted(drop | note):
        if name not in FINDINGS:
            raise InputError(f"there is no finding {name!r}; there are {', '.join(FINDINGS)}")
    if drop & note:
        raise InputError(f"{manifests.some(drop & note)} cannot both be dropped and only noted")
    return {name for name, dropped in FINDINGS.items() if dropped} - note | drop


def _kind(error):
    """The finding that an error in reading audio is."""
    if isinstance(error, audio.EmptyError):
        return "empty"
    return "truncated" if isinstance(error, audio.TruncatedError) else "unreadable"


def _duplicates(digests, considered):
    """Pairs (row, the first row like it) among those considered, in the order of the rows."""
    digests = np.frombuffer(digests, np.uint64).reshape(-1, 2)
    rows = np.flatnonzero(considered & digests.any(axis=1))
    order = np.lexsort(digests[rows].T)  # stable: rows that are alike stay in their order
    rows, digests = rows[order], digests[rows[order]]
    like_last = np.zeros(len(rows), bool)
    like_last[1:] = (digests[1:] == digests[:-1]).all(axis=1)
    first = rows[np.maximum.accumulate(np.where(like_last, 0, np.arange(len(rows))))]
    return sorted(zip(rows[like_last].tolist(), first[like_last].tolist()))
