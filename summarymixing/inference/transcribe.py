"""From audio files to words, many short ones together, long ones by themselves."""

import itertools
from dataclasses import dataclass

import torch
from torch.nn.utils.rnn import pad_sequence

from summarymixing.dataio import audio
from summarymixing.errors import InputError
from summarymixing.inference import long
from summarymixing.inference.alignment import Word, align, words_of
from summarymixing.inference.streaming import frame_seconds

# Files that are sorted by length before they are put into batches.
_WINDOW = 256


@dataclass(frozen=True)
class Result:
    """What is said in a file, or why that is not known.

    Arguments
    ---------
    path : str or os.PathLike
        As it was given.
    duration : float
        Seconds; 0 where there is an error.
    text : str
    words : list of Word
    error : str, optional
        Why the file could not be transcribed, in one line.
    """

    path: object
    duration: float
    text: str
    words: list[Word]
    error: str | None = None


@torch.no_grad()
def transcribe(recogniser, paths, batch_seconds=120.0):
    """Transcribes audio files of any format, sample rate, number of channels and length.

    The search is greedy, and a file's text is the same alone and in any batch. What is longer than
    half a minute or so is encoded by itself, in one offline pass whose memory is that of its
    features, where the model allows it (`summarymixing.inference.long.encodes_in_blocks`).

    Arguments
    ---------
    recogniser : summarymixing.inference.loading.Recogniser
        As from `load`.
    paths : iterable of str or os.PathLike
    batch_seconds : float
        Of audio in a batch, padding included; what is longer is a batch by itself.

    Yields
    ------
    Result
        One a path, in the order of the paths. A file that cannot be read has its `error`.

    Raises
    ------
    InputError
        For a `batch_seconds` that is not positive, or too much for the memory.

    Example
    -------
    >>> recogniser = load("results/AN4/conformer/1")  # doctest: +SKIP
    >>> for result in transcribe(recogniser, ["a.wav", "b.mp3"]):  # doctest: +SKIP
    ...     print(result.path, result.error or result.text)
    """
    if not batch_seconds > 0:
        raise InputError(f"batch_seconds must be positive, got {batch_seconds}")
    work = _Transcriber(recogniser)
    paths = iter(paths)
    while window := list(itertools.islice(paths, _WINDOW)):
        yield from _in_order(work, window, batch_seconds)


def _in_order(work, paths, batch_seconds):
    results, durations = {}, {}
    for number, path in enumerate(paths):
        try:
            durations[number] = audio.inspect(path).duration
        except InputError as error:
            results[number] = _failed(path, error)
    next_one = 0
    for batch in itertools.chain([[]], _batches(durations, batch_seconds, work.longest)):
        results |= zip(batch, work([paths[number] for number in batch], batch_seconds))
        while next_one in results:
            yield results.pop(next_one)
            next_one += 1


def _batches(durations, seconds, longest):
    """Lists of numbers whose durations are alike; above `longest` each is alone."""
    batch = []
    for number in sorted(durations, key=durations.get):
        duration = durations[number]
        if batch and (duration > longest or (len(batch) + 1) * duration > seconds):
            yield batch
            batch = []
        batch.append(number)
    if batch:
        yield batch


class _Transcriber:
    def __init__(self, recogniser):
        self.recogniser = recogniser
        self.frame_seconds = frame_seconds(recogniser)
        in_blocks = long.encodes_in_blocks(recogniser)
        self.longest = long.BLOCK * self.frame_seconds if in_blocks else float("inf")

    def __call__(self, paths, batch_seconds):
        """Results of the files of a batch."""
        results, waveforms = {}, {}
        for path in paths:
            try:
                waveforms[path] = self._read(path)
            except InputError as error:
                results[path] = _failed(path, error)
        if waveforms:
            try:
                results |= self._transcribe(waveforms)
            except (MemoryError, torch.OutOfMemoryError) as error:
                raise InputError(
                    f"out of memory at {next(iter(waveforms))} and {len(waveforms) - 1} others, "
                    f"with batch_seconds={batch_seconds:g}: give less"
                ) from error
        return [results[path] for path in paths]

    def _read(self, path):
        samples = audio.read(path, self.recogniser.sample_rate)
        if not samples.isfinite().all():
            raise InputError(f"{path}: there are samples that are no numbers")
        return samples

    def _transcribe(self, waveforms):
        recogniser, results = self.recogniser, {}
        samples = [waveform.to(recogniser.device) for waveform in waveforms.values()]
        if len(samples) == 1 and len(samples[0]) > self.longest * recogniser.sample_rate:
            encoded = long.encode(recogniser, samples[0])
            lengths = torch.tensor([encoded.shape[1]], device=encoded.device)
        else:
            lengths = torch.tensor([len(s) for s in samples], device=recogniser.device)
            frames, lengths = recogniser.front_end(pad_sequence(samples, True), lengths)
            encoded = recogniser.modules["Transformer"].encode(frames, lengths)
        for path, tokens in zip(waveforms, align(recogniser, encoded, lengths)):
            duration = len(waveforms[path]) / recogniser.sample_rate
            text = recogniser.tokenizer.decode([token.number for token in tokens])
            words = words_of(recogniser.tokenizer, tokens, self.frame_seconds, duration)
            results[path] = Result(path, duration, " ".join(text.split()), words)
        return results


def _failed(path, error):
    return Result(path, 0.0, "", [], " ".join(str(error).split()))
