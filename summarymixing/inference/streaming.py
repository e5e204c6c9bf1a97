"""From raw audio to words while it arrives, for one stream or many, with a state of constant size.

What comes out is what the chunk-wise forward of training gives for the whole recording.
"""

import math

from summarymixing.dataio.samples import as_samples
from summarymixing.errors import InputError
from summarymixing.inference.filters import FilterStream, front_end_filter
from summarymixing.inference.text import Transcript


class StreamingSession:
    """Streams that begin and end at any time, computed together.

    Each gives what it would give alone, however its samples are split into pushes.

    Arguments
    ---------
    recogniser : summarymixing.inference.loading.Recogniser or summarymixing.runtime.Exported
    chunk_size : int
        Encoder frames that are computed at a time: `chunk_frames` has them for milliseconds.
    left_context : int, optional
        Chunks before its own that a frame sees. None: all of them.

    Raises
    ------
    InputError
        If the model cannot stream, or not with these numbers.
    """

    def __init__(self, recogniser, chunk_size=16, left_context=None):
        self.recogniser = recogniser
        self.chunk_size = chunk_size
        self._chunkwise = recogniser.chunkwise(chunk_size, left_context)
        self._filters = {}
        self._streams = {}
        self._opened = 0

    def open(self, rate=None):
        """Begins a stream, of audio at `rate` Hz (None: the model's); returns its number."""
        stream = _Stream(
            self._filter(rate),
            rate or self.recogniser.sample_rate,
            Transcript(self.recogniser.tokenizer, frame_seconds(self.recogniser)),
            self._chunkwise.encoder_state,
            self._chunkwise.search_state,
        )
        self._opened += 1
        self._streams[self._opened] = stream
        return self._opened

    def push(self, samples):
        """Takes the next samples of some streams, and computes every chunk that is complete.

        Arguments
        ---------
        samples : dict of int to numpy.ndarray or torch.Tensor
            For a stream's number (samples,) of one channel: floats in [-1, 1], or int16.

        Returns
        -------
        dict of int to list of Event
            The new words of each of these streams.

        Raises
        ------
        InputError
            For samples that are no such samples, no numbers or far beyond 1, or of no open stream.
            Then nothing has been taken from any stream.
        """
        checked = {number: self._checked(number, piece) for number, piece in samples.items()}
        for number, piece in checked.items():
            self._streams[number].filter.push(piece)
        streams = [self._streams[number] for number in samples]
        size = self.chunk_size
        while ready := [(s, f) for s in streams if (f := s.filter.pull(size)) is not None]:
            self._advance(ready)
        return {number: self._streams[number].events() for number in samples}

    def finish(self, *numbers):
        """Ends streams, each wherever its last sample was.

        Arguments
        ---------
        *numbers : int

        Returns
        -------
        dict of int to list of Event
            Their last words, all of them stable.
        """
        streams = {number: self._open_stream(number) for number in numbers}
        left = [(s, f) for s in streams.values() if (f := s.filter.finish()) is not None]
        size = self.chunk_size
        while left:
            self._advance([(stream, frames[:size]) for stream, frames in left])
            left = [(stream, frames[size:]) for stream, frames in left if len(frames) > size]
        for number, stream in streams.items():
            stream.transcript.finish()
            del self._streams[number]
        return {number: stream.events() for number, stream in streams.items()}

    def close(self, number):
        """Drops a stream and what it has not yet given."""
        self._open_stream(number)
        del self._streams[number]

    def latency(self, rate=None):
        """Seconds for which a sample waits at most until its frame can be computed.

        A chunk, and what the front end (and for another rate the resampling) looks ahead.
        """
        audio = self._filter(rate)
        samples = self.chunk_size * audio.stride + audio.context
        return float(samples) / (rate or self.recogniser.sample_rate)

    def _filter(self, rate):
        if rate not in self._filters:
            self._filters[rate] = front_end_filter(self.recogniser, rate)
        return self._filters[rate]

    def _open_stream(self, number):
        if number in self._streams:
            return self._streams[number]
        if isinstance(number, int) and 1 <= number <= self._opened:
            raise InputError(f"stream {number} is finished: open another one")
        raise InputError(f"there is no stream {number!r}: take a number that open() gave")

    def _checked(self, number, samples):
        received = self._open_stream(number).filter.received
        samples = as_samples(samples, f"stream {number}", received)
        return self._chunkwise.as_input(samples)

    def _advance(self, batch):
        """One chunk, or what is left of one, of some streams: pairs of a stream and its frames."""
        streams = [stream for stream, _ in batch]
        found = self._chunkwise.step(
            [frames for _, frames in batch],
            [stream.encoder_state for stream in streams],
            [stream.search_state for stream in streams],
        )
        for (stream, frames), (tokens, places, encoder_state, search_state) in zip(batch, found):
            stream.encoder_state, stream.search_state = encoder_state, search_state
            stream.transcript.add(tokens, [stream.frames + place for place in places])
            stream.frames += len(frames)


class Stream:
    """One stream by itself: a session with one.

    Arguments
    ---------
    recogniser, chunk_size, left_context
        As of `StreamingSession`.
    rate : int, optional
        Hz of the audio. None: the model's.
    """

    def __init__(self, recogniser, chunk_size=16, left_context=None, rate=None):
        self._session = StreamingSession(recogniser, chunk_size, left_context)
        self._number = self._session.open(rate)
        self.latency = self._session.latency(rate)

    def push(self, samples):
        """Takes (samples,); a list of `Event`: the new words."""
        return self._session.push({self._number: samples})[self._number]

    def finish(self):
        """Ends the stream; a list of `Event`: the last words."""
        return self._session.finish(self._number)[self._number]


def frame_seconds(recogniser):
    """Seconds from one encoder frame to the next."""
    return float(front_end_filter(recogniser).stride) / recogniser.sample_rate


def chunk_frames(recogniser, milliseconds):
    """The chunk size in encoder frames; InputError if it is not a whole number of them."""
    frame = 1000 * frame_seconds(recogniser)
    frames = round(milliseconds / frame) if 0 < milliseconds < math.inf else 0
    if frames < 1 or abs(frames * frame - milliseconds) > 1e-6:
        raise InputError(
            f"a chunk must be a multiple of {frame:g} ms, the encoder's frame, got {milliseconds:g}"
        )
    return frames


class _Stream:
    def __init__(self, filter, rate, transcript, encoder_state, search_state):
        self.filter = FilterStream(filter)
        self.rate = rate
        self.transcript = transcript
        self.encoder_state = encoder_state
        self.search_state = search_state
        self.frames = 0

    def events(self):
        return self.transcript.events(limit=self.filter.received / self.rate)
