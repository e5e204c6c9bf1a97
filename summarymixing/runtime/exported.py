"""An exported model: a folder that scripts/export.py has made.

Its `config.json` has

* `export_version`, the version of what stands in it;
* `sample_rate` in Hz, `tokens`, their number, `blank`, the one that is none, and `unknown`, what
  an unknown one is shown as;
* `front_end`: `stride`, samples from one encoder frame to the next, `context`, samples on each side
  of its centre that a frame looks at, and `features`, numbers in a frame;
* `streaming`, null for a model that cannot: `chunk_size` in frames, `left_context` in chunks (null:
  no limit), and `state`, of every tensor its name, shape (without the batch) and type;
* `int8`: whether there are quantised graphs beside the others;
* `files`: SHA-256 of the others: `tokens.txt` and the graphs,

  * `offline.onnx`: `samples` (batch, samples), float32, and `lengths` (batch,), int64 →
    `log_probs` (batch, frames, tokens) and `frames` (batch,), how many of them are valid;
  * `front_end.onnx`: the same inputs → `frames` (batch, time, features), and their `frame_lengths`;
  * `streaming.onnx`: `frames` (batch, chunk_size, features), `lengths` (batch,), how many of them
    are valid, and the state → `log_probs` (batch, chunk_size, tokens) and the state after it, each
    name with `next.` before it. At the beginning all of the state is zero.
"""

import json
import os

import numpy as np

from summarymixing.dataio.resampling import reach, resample
from summarymixing.errors import InputError, one_line
from summarymixing.inference.folders import CONFIG, EXPORTED
from summarymixing.inference.words import runs
from summarymixing.runtime.pieces import Pieces

TOKENS = "tokens.txt"
OFFLINE, FRONT_END, STREAMING = "offline", "front_end", "streaming"  # graphs: NAME.onnx
QUANTISED = ".int8"  # offline.int8.onnx


def is_exported(folder):
    """Whether a folder is an exported model."""
    try:
        with open(os.path.join(folder, CONFIG), encoding="utf-8") as file:
            return EXPORTED.version in json.load(file)
    except (OSError, ValueError, TypeError, RecursionError):
        return False


def load_exported(folder, int8=False, threads=None):
    """The model of a folder that scripts/export.py has made.

    Arguments
    ---------
    folder : str or os.PathLike
    int8 : bool
        Whether to take the quantised graphs.
    threads : int, optional
        Of the computation; by default what onnxruntime chooses.

    Returns
    -------
    Exported

    Raises
    ------
    InputError
        If it is no such folder, of a newer version, not complete or damaged, or without quantised
        graphs that are asked for.

    Example
    -------
    >>> from summarymixing.inference.transcribe import transcribe
    >>> model = load_exported("exported")  # doctest: +SKIP
    >>> for result in transcribe(model, ["a.wav", "b.mp3"]):  # doctest: +SKIP
    ...     print(result.path, result.error or result.text)
    """
    folder = os.fspath(folder)
    config = _config(folder)
    if int8 and not config["int8"]:
        raise InputError(f"{folder}: it has no int8 graphs; export it with --int8")
    return Exported(folder, config, int8, threads)


class Exported:
    """The graphs of a folder, with what `transcribe` and `StreamingSession` ask of a model.

    Arguments
    ---------
    folder : str
    config : dict
        Its `config.json`.
    int8 : bool
    threads : int, optional
    """

    def __init__(self, folder, config, int8=False, threads=None):
        self.config = config
        self.sample_rate = config["sample_rate"]
        self.tokenizer = Pieces.read(os.path.join(folder, TOKENS), config["unknown"])
        if len(self.tokenizer) != config["tokens"]:
            raise InputError(
                f"{os.path.join(folder, TOKENS)}: it has {len(self.tokenizer)} tokens, and the "
                f"model {config['tokens']}"
            )
        self.front_end_window = config["front_end"]["stride"], config["front_end"]["context"]
        self.longest_in_batch = float("inf")
        self._folder, self._int8, self._threads = folder, int8, threads
        self._sessions = {}

    @property
    def chunks(self):
        """Chunk size in frames and left context in chunks, those of the streaming graph."""
        made = self.config["streaming"] or {}
        return made.get("chunk_size"), made.get("left_context")

    def log_probs(self, samples, lengths):
        """What the CTC head says to recordings.

        Arguments
        ---------
        samples : numpy.ndarray
            (batch, samples), float32.
        lengths : numpy.ndarray
            (batch,), int64, one at least.

        Returns
        -------
        log_probs : numpy.ndarray
            (batch, frames, tokens).
        frames : numpy.ndarray
            (batch,), valid frames.

        Raises
        ------
        MemoryError
            When they are too many.
        """
        return self.run(OFFLINE, {"samples": samples, "lengths": lengths})

    def tokens(self, waveforms):
        """The best tokens of waveforms, (samples,) each, with frames and probabilities."""
        lengths = np.array([len(waveform) for waveform in waveforms])
        samples = np.zeros((len(waveforms), lengths.max()), np.float32)
        for row, waveform in zip(samples, waveforms):
            row[: len(waveform)] = waveform
        log_probs, frames = self.log_probs(samples, lengths)
        best, scores = log_probs.argmax(-1), log_probs.max(-1)
        return [
            runs(path[:length], score[:length], self.config["blank"])
            for path, score, length in zip(best, scores, frames)
        ]

    def encoder_input(self, samples):
        """One recording, (samples,), to frames (time, features)."""
        lengths = np.array([len(samples)])
        return self.run(FRONT_END, {"samples": samples[None], "lengths": lengths})[0][0]

    def resampler(self, rate):
        """A function from (samples,) at another rate to the model's, and its reach on each side."""
        new = self.sample_rate
        return lambda samples: resample(samples, rate, new), reach(rate, new)

    def chunkwise(self, chunk_size, left_context):
        """The model chunk by chunk, for `StreamingSession`."""
        return _Chunkwise(self, chunk_size, left_context)

    def run(self, graph, inputs):
        """The outputs of a graph, which is read when it is first needed."""
        if graph not in self._sessions:
            self._sessions[graph] = self._session(graph)
        try:
            return self._sessions[graph].run(None, inputs)
        except Exception as error:  # onnxruntime's are of no other kind
            if "alloc" in str(error).lower():
                raise MemoryError(str(error)) from error
            raise

    def _session(self, graph):
        onnxruntime = _onnxruntime()
        quantised = QUANTISED if self._int8 and graph != FRONT_END else ""
        path = os.path.join(self._folder, f"{graph}{quantised}.onnx")
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        if self._threads is not None:
            options.intra_op_num_threads = self._threads
        try:
            return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime has many
            raise InputError(f"{path}: onnxruntime cannot load it: {one_line(error)}") from error


class _Chunkwise:
    """The graphs chunk by chunk."""

    def __init__(self, exported, chunk_size, left_context):
        made = exported.config["streaming"]
        if made is None:
            raise InputError("this exported model does not stream: its encoder needs the whole")
        for name, asked in (("chunk_size", chunk_size), ("left_context", left_context)):
            if asked != made[name]:
                raise InputError(
                    f"this model was exported for {name}={made[name]}, got {asked}: "
                    "export it again for another"
                )
        self.exported = exported
        self.names = [tensor["name"] for tensor in made["state"]]
        self.size = chunk_size
        self.features = exported.config["front_end"]["features"]
        self.encoder_state = {
            tensor["name"]: np.zeros((1, *tensor["shape"]), tensor["dtype"])
            for tensor in made["state"]
        }
        self.search_state = exported.config["blank"]

    def as_input(self, samples):
        return samples

    def step(self, frames, encoder_states, search_states):
        """As of `summarymixing.inference.chunkwise.Chunkwise`; a search's state is a token."""
        lengths = np.array([len(f) for f in frames])
        padded = np.zeros((len(frames), self.size, self.features), np.float32)
        for row, f in zip(padded, frames):
            row[: len(f)] = f
        state = {
            name: np.concatenate([state[name] for state in encoder_states]) for name in self.names
        }
        log_probs, *after = self.exported.run(
            STREAMING, {"frames": padded, "lengths": lengths, **state}
        )
        found = []
        for row, (length, last) in enumerate(zip(lengths, search_states)):
            best = log_probs[row, :length].argmax(-1)
            before = np.concatenate([[last], best[:-1]])
            places = np.flatnonzero((best != self.exported.config["blank"]) & (best != before))
            # A copy: a view would keep the states of all streams of this batch.
            kept = {name: values[row : row + 1].copy() for name, values in zip(self.names, after)}
            found.append((best[places].tolist(), places.tolist(), kept, best[-1]))
        return found


def _onnxruntime():
    try:
        import onnxruntime
    except ImportError as error:
        raise InputError(
            "an exported model needs a package: pip install onnxruntime numpy soundfile"
        ) from error
    return onnxruntime


def _config(folder):
    path, config = os.path.join(folder, CONFIG), EXPORTED.read(folder)
    numbers = [config["front_end"].get(key) for key in ("stride", "context", "features")]
    if not all(isinstance(number, int) for number in numbers):
        raise InputError(f"{path}: front_end is not complete: it is damaged")
    for name in (TOKENS, f"{OFFLINE}.onnx"):
        if name not in config["files"]:
            raise InputError(f"{path}: files has no {name}: it is damaged")
    EXPORTED.check_files(folder, config)
    return config
