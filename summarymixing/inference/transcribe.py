"""From audio files to words, many short ones together, long ones by themselves."""

import itertools
from dataclasses import dataclass, replace

from summarymixing.dataio import audio
from summarymixing.dataio.samples import check_samples
from summarymixing.errors import InputError, one_line
from summarymixing.inference.segments import PAUSE_SECONDS, cut
from summarymixing.inference.streaming import frame_seconds
from summarymixing.inference.words import Word, alone, words_of

# Files that are sorted by length before they are put into batches.
_WINDOW = 256
SEGMENT_SECONDS = 20.0


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


def transcribe(
    recogniser,
    paths,
    batch_seconds=120.0,
    segment_seconds=SEGMENT_SECONDS,
    pause_seconds=PAUSE_SECONDS,
):
    """Transcribes audio files of any format, sample rate, number of channels and length.

    The search is greedy, and a file's text is the same alone and in any batch. What is longer than
    `segment_seconds` is cut at its pauses, unless that is None: then a recording is encoded in
    one offline pass, whose memory is that of its features where the model allows it
    (`summarymixing.inference.long.encodes_in_blocks`).

    Arguments
    ---------
    recogniser : summarymixing.inference.loading.Recogniser or summarymixing.runtime.Exported
        As from `load`.
    paths : iterable of str or os.PathLike
    batch_seconds : float
        Of audio in a batch, padding included; what is longer is a batch by itself.
    segment_seconds : float, optional
        The longest piece of a recording, and the longest recording that is one piece.
    pause_seconds : float
        The shortest pause that is cut. A model that was trained on long utterances may hear better
        in longer pieces.

    Yields
    ------
    Result
        One a path, in the order of the paths. A file that cannot be read, or is too long for the
        memory, has its `error`.

    Raises
    ------
    InputError
        For a `batch_seconds` that is not positive, for a
        `segment_seconds` below 1 and a `pause_seconds` that is not positive.

    Example
    -------
    >>> recogniser = load("results/AN4/conformer/1")  # doctest: +SKIP
    >>> for result in transcribe(recogniser, ["a.wav", "b.mp3"]):  # doctest: +SKIP
    ...     print(result.path, result.error or result.text)
    """
    if not batch_seconds > 0:
        raise InputError(f"batch_seconds must be positive, got {batch_seconds}")
    if segment_seconds is not None and not segment_seconds >= 1:
        raise InputError(f"segment_seconds must be at least 1, or None, got {segment_seconds}")
    if not pause_seconds > 0:
        raise InputError(f"pause_seconds must be positive, got {pause_seconds}")
    work = _Transcriber(recogniser, batch_seconds, segment_seconds, pause_seconds)
    paths = iter(paths)
    while window := list(itertools.islice(paths, _WINDOW)):
        yield from _in_order(work, window)


def _in_order(work, paths):
    results, durations = {}, {}
    for number, path in enumerate(paths):
        try:
            durations[number] = audio.inspect(path).duration
        except InputError as error:
            results[number] = _failed(path, error)
    next_one = 0
    for batch in itertools.chain([[]], _batches(durations, work.batch_seconds, work.longest)):
        results |= zip(batch, work([paths[number] for number in batch]))
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
    def __init__(self, recogniser, batch_seconds, segment_seconds, pause_seconds):
        self.recogniser = recogniser
        self.batch_seconds = batch_seconds
        self.segment_seconds = segment_seconds
        self.pause_seconds = pause_seconds
        self.frame_seconds = frame_seconds(recogniser)
        self.longest = recogniser.longest_in_batch

    def __call__(self, paths):
        """Results of the files of a batch."""
        results, waveforms = {}, {}
        for path in paths:
            try:
                waveforms[path] = self._read(path)
            except InputError as error:
                results[path] = _failed(path, error)
        try:
            results |= self._transcribe(waveforms)
        except MemoryError:
            if len(waveforms) > 1:
                results |= {path: self([path])[0] for path in waveforms}
            else:
                (path,) = waveforms
                message = f"{path}: out of memory; pieces of fewer segment_seconds need less"
                results[path] = _failed(path, message)
        return [results[path] for path in paths]

    def _read(self, path):
        rate = self.recogniser.sample_rate
        samples = audio.read_array(path, rate)
        check_samples(samples, f"{path} at {rate} Hz")
        return samples

    def _transcribe(self, waveforms):
        rate, tokenizer = self.recogniser.sample_rate, self.recogniser.tokenizer
        pieces = {
            (path, start): samples[start:end]
            for path, samples in waveforms.items()
            for start, end in self._cut(samples)
        }
        durations = {place: len(samples) / rate for place, samples in pieces.items()}
        tokens = {}
        for batch in _batches(durations, self.batch_seconds, self.longest):
            tokens |= zip(batch, self.recogniser.tokens([pieces[place] for place in batch]))
        results = {
            path: Result(path, len(samples) / rate, "", []) for path, samples in waveforms.items()
        }
        for path, start in pieces:
            found, duration = tokens[path, start], durations[path, start]
            text = " ".join(tokenizer.decode([token.number for token in found]).split())
            words = words_of(tokenizer, found, self.frame_seconds, duration)
            results[path] = _continued(results[path], text, words, start / rate)
        return results

    def _cut(self, samples):
        if self.segment_seconds is None:
            return [(0, len(samples))]
        rate = self.recogniser.sample_rate
        return cut(samples, rate, self.segment_seconds, self.pause_seconds)


def _continued(result, text, words, start):
    """A result with what was found in the piece that begins at `start` seconds."""
    spaced = not (result.words and words and (alone(result.text[-1]) or alone(text[0])))
    words = [
        replace(
            word,
            start=word.start + start,
            end=word.end + start,
            spaced=spaced if i == 0 and result.words else word.spaced,
        )
        for i, word in enumerate(words)
    ]
    joined = f"{result.text}{' ' * spaced}{text}".strip()
    return replace(result, text=joined, words=result.words + words)


def _failed(path, error):
    return Result(path, 0.0, "", [], one_line(error, None))
