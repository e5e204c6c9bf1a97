"""A small English corpus spoken by espeak-ng, in LibriSpeech's layout, for trying things out.

The voices are synthetic and easy; what is learnt on them says little about human speech. But the
corpus costs seconds, and is the same byte for byte wherever it is made with the same versions.
It needs ``pip install espeakng-loader``.

Speakers are combinations of an accent, a voice, a pitch and a rate; the voices of the validation
and the test speakers are not heard in training. Sentences come from a grammar (`GRAMMAR`), with
mild noise and various levels added.
"""

import ctypes
import importlib.metadata
import importlib.util
import json
import math
import os
import random
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import soundfile
from tqdm import tqdm

from summarymixing.errors import InputError
from summarymixing.files import write_whole

# Imports are few and light here: every speaker has a process of its own, which loads them.

SAMPLE_RATE = 16000
_ESPEAK_RATE = 22050
SPLITS = {"train": "train-synthetic", "valid": "dev-synthetic", "test": "test-synthetic"}

# Part of the parameters of a corpus: raise it when a change alters what is spoken.
_VERSION = 1
_MARKER = "corpus.json"
_SHORTEST_SPEAKER = 30.0  # seconds: tiny corpora have fewer speakers instead
_LONGEST_SENTENCE = 18  # words

# The package is put there without its __init__, which would load torch for every speaker.
_WORKER = """
import sys, types
sys.modules["summarymixing"] = package = types.ModuleType("summarymixing")
package.__path__ = [sys.argv[1]]
from summarymixing.dataio import synthetic
synthetic._speak_job()
"""

ACCENTS = (
    "en-US",
    "en",
    "en-GB-scotland",
    "en-GB-x-rp",
    "en-GB-x-gbclan",
    "en-GB-x-gbcwmd",
    "en-029",
    "en-US-nyc",
)
# Whispering, croaking and robotic ones are left out. No voice is in two parts.
VOICES = {
    "train": (
        *("m1", "m2", "m3", "m4", "m6", "m8", "f1", "f2", "f4", "Alex", "Andrea", "Denis"),
        *("Gene", "Storm", "antonio", "aunty", "belinda", "max", "pedro", "robert", "steph"),
    ),
    "valid": ("m5", "f3", "Michael", "Annie"),
    "test": ("m7", "f5", "Mike", "linda"),
}
_SPEAKERS = {"train": 30, "valid": 4, "test": 4}

# Alternatives by non-terminal, separated by |; a number in front is the weight (1 if absent).
GRAMMAR = {
    "S": "5 <COMMAND> | 1 PLEASE <COMMAND> | 1 <COMMAND> AND <COMMAND> | 1 <COMMAND> THEN <S>"
    " | 5 <FACT> | 1 <FACT> BECAUSE <FACT> | 1 <FACT> BUT <FACT> | 3 <QUESTION>",
    "COMMAND": "2 TURN <SWITCH> THE <DEVICE> | 1 TURN <SWITCH> THE <DEVICE> IN THE <ROOM>"
    " | 1 SET THE ALARM FOR <TIME> | 1 SET THE TIMER FOR <NUMBER> MINUTES"
    " | 2 CALL <NAME> AT <TIME> | 1 CALL <NAME> | 2 PUT <THING> <PLACE> | 1 PLAY SOME MUSIC <PLACE>"
    " | 1 STOP THE MUSIC | 2 <OPENING> THE <OPENED> | 2 BRING <NAME> <THING>"
    " | 2 TELL <NAME> THAT <FACT> | 2 ADD <NUMBER> <GOODS> TO MY LIST | 1 GO TO <CITY>"
    " | 1 TAKE <THING> TO <CITY>",
    "FACT": "3 <NAME> <VERB> <THING> | 2 <THING> IS <PLACE> | 1 <THING> IS <COLOUR>"
    " | 2 <NAME> IS IN <CITY> | 2 <THING> COSTS <NUMBER> DOLLARS | 1 <NAME> SAYS THAT <FACT>"
    " | 1 IT IS <TIME> | 2 THE <VEHICLE> TO <CITY> LEAVES AT <TIME>"
    " | 1 <NAME> LIVES AT NUMBER <NUMBER> IN <CITY> | 1 <NAME> HAS <NUMBER> <GOODS>",
    "QUESTION": "2 WHERE IS <THING> | 1 WHAT TIME IS IT IN <CITY> | 2 HOW MANY <GOODS> ARE <PLACE>"
    " | 1 WHO <VERB> <THING> | 1 IS <THING> <PLACE> | 1 WHEN DOES THE <VEHICLE> TO <CITY> LEAVE",
    "THING": "4 THE <NOUN> | 3 THE <ADJECTIVE> <NOUN> | 1 THE <STATE> <COLOUR> <NOUN>"
    " | 1 THE <NOUN> <PLACE>",
    "PLACE": "3 IN THE <ROOM> | 2 ON THE <SURFACE> | 2 NEAR <THING> | 1 BEHIND <THING>"
    " | 1 UNDER THE <SURFACE>",
    "ADJECTIVE": "<COLOUR> | <STATE>",
    "STATE": "OLD | NEW | SMALL",
    "COLOUR": "RED | BLUE | GREEN | YELLOW",
    "NOUN": "BOX | BOOK | LAMP | CAMERA | PICTURE | UMBRELLA",
    "GOODS": "APPLES | CANDLES | POTATOES",
    "DEVICE": "LAMP | RADIO | HEATER",
    "ROOM": "KITCHEN | GARDEN | OFFICE | GARAGE",
    "SURFACE": "TABLE | SHELF",
    "SWITCH": "ON | OFF",
    "OPENING": "OPEN | CLOSE",
    "OPENED": "DOOR | WINDOW | <COLOUR> BOX | GARAGE",
    "VEHICLE": "TRAIN | BUS",
    "VERB": "HAS | WANTS | FOUND | SOLD",
    "NAME": "PETER | MARIA | DAVID | SUSAN",
    "CITY": "LONDON | BERLIN | MADRID | CHICAGO",
    "TIME": "2 <HOUR> | 2 <HOUR> <DAYTIME> | 2 HALF PAST <HOUR> | 1 A QUARTER TO <HOUR>"
    " | 1 <BELOW_TEN> MINUTES PAST <HOUR>",
    "HOUR": "<BELOW_TEN> | TEN | ELEVEN | TWELVE",
    "DAYTIME": "IN THE MORNING | IN THE EVENING | TOMORROW | TONIGHT",
    "NUMBER": "3 <BELOW_HUNDRED> | 1 <BELOW_TEN> HUNDRED"
    " | 1 <BELOW_TEN> HUNDRED AND <BELOW_HUNDRED> | 1 <BELOW_HUNDRED> THOUSAND",
    "BELOW_HUNDRED": "2 <BELOW_TEN> | 1 <TEENS> | 1 <TENS> | 2 <TENS> <BELOW_TEN>",
    "BELOW_TEN": "TWO | THREE | FOUR | FIVE | SIX | SEVEN | EIGHT | NINE",
    "TEENS": "TEN | ELEVEN | TWELVE",
    "TENS": "TWENTY | THIRTY | FORTY | FIFTY | SIXTY | SEVENTY | EIGHTY | NINETY",
}


@dataclass(frozen=True)
class Speaker:
    """How one speaker sounds, and how much of them is wanted.

    Arguments
    ---------
    id : str
        Folder name, a number as in LibriSpeech.
    accent : str
        One of `ACCENTS`.
    voice : str
        One of `VOICES`.
    pitch : int
        espeak's pitch, 0 to 99.
    rate : int
        Words per minute.
    seconds : float
        Speech to synthesise, at least; the last sentence is finished.

    Example
    -------
    >>> Speaker("1000", "en-US", "m3", pitch=50, rate=160, seconds=30.0).voice
    'm3'
    """

    id: str
    accent: str
    voice: str
    pitch: int
    rate: int
    seconds: float


def make_corpus(
    folder, seed=1234, train_minutes=40.0, valid_minutes=3.0, test_minutes=5.0, workers=None
):
    """Synthesises the corpus, or what an interrupted call left to do.

    Arguments
    ---------
    folder : str or os.PathLike
        Will hold ``train-synthetic``, ``dev-synthetic``, ``test-synthetic`` and, written last,
        ``corpus.json``. If that says the corpus is complete, it is used as it is.
    seed : int
        Of sentences, speakers and noise. All files depend on it and on the minutes only.
    train_minutes : float
        Length of the training split; a little more is made.
    valid_minutes : float
        Length of the development split.
    test_minutes : float
        Length of the test split.
    workers : int, optional
        Speakers synthesised at a time; by default the number of CPUs.

    Returns
    -------
    corpus : dict
        What ``corpus.json`` says: "parameters", "complete", "splits" (for each split its number
        of utterances, minutes and speakers).

    Raises
    ------
    InputError
        If espeakng-loader is not installed, a length is not positive, or the folder holds
        something else.

    Example
    -------
    >>> import tempfile
    >>> corpus = make_corpus(tempfile.mkdtemp(), train_minutes=0.05, valid_minutes=0.01,
    ...     test_minutes=0.01)
    >>> list(corpus["splits"])
    ['train-synthetic', 'dev-synthetic', 'test-synthetic']
    """
    minutes = {"train": train_minutes, "valid": valid_minutes, "test": test_minutes}
    for part, value in minutes.items():
        if not value > 0:
            raise InputError(f"{part}_minutes must be positive, got {value}")
    if importlib.util.find_spec("espeakng_loader") is None:
        raise InputError("espeakng-loader is not installed: pip install espeakng-loader")
    folder = Path(folder).absolute()
    marker = folder / _MARKER
    parameters = {"version": _VERSION, "seed": seed, "minutes": minutes}
    corpus = _load_marker(folder)
    if corpus is not None and corpus["parameters"] != parameters:
        raise InputError(
            f"{folder}: holds a synthetic corpus made with {corpus['parameters']}, not with"
            f" {parameters}; choose another folder or remove it"
        )
    if corpus is not None and corpus["complete"]:
        return corpus

    folder.mkdir(parents=True, exist_ok=True)
    _write_marker(marker, {"parameters": parameters, "complete": False})
    speakers = {part: _speakers(part, seed, minutes[part] * 60) for part in SPLITS}
    partial = folder / ".partial"
    shutil.rmtree(partial, ignore_errors=True)
    jobs = [
        {"seed": seed, "target": str(target), "partial": str(partial), "speaker": asdict(speaker)}
        for part, split in SPLITS.items()
        for speaker in speakers[part]
        if not (target := folder / split / speaker.id).exists()
    ]
    with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        try:
            for _ in tqdm(pool.map(_speak_apart, jobs), "synthesis", len(jobs), unit="speaker"):
                pass
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    shutil.rmtree(partial, ignore_errors=True)

    corpus = {
        "parameters": parameters,
        "complete": True,
        "splits": {
            split: {**_measure(folder / split), "speakers": [asdict(s) for s in speakers[part]]}
            for part, split in SPLITS.items()
        },
        "espeakng-loader": importlib.metadata.version("espeakng-loader"),
    }
    _write_marker(marker, corpus)
    return corpus


def sentence(rng):
    """Draws a sentence from the grammar.

    Arguments
    ---------
    rng : random.Random
        Source of randomness.

    Returns
    -------
    sentence : str
        Upper case words separated by spaces, 3 to 18 of them.

    Example
    -------
    >>> sentence(random.Random(7)).isupper()
    True
    """
    while True:
        words = _expand("S", rng)
        if 3 <= len(words) <= _LONGEST_SENTENCE:
            return " ".join(words)


def _parse(alternatives):
    """Weights and expansions (lists of words and <NON_TERMINALS>) of one rule."""
    weights, expansions = [], []
    for alternative in alternatives.split("|"):
        symbols = alternative.split()
        weights.append(int(symbols.pop(0)) if symbols[0].isdigit() else 1)
        expansions.append(symbols)
    return weights, expansions


_RULES = {name: _parse(alternatives) for name, alternatives in GRAMMAR.items()}


def _expand(name, rng):
    weights, expansions = _RULES[name]
    words = []
    for symbol in rng.choices(expansions, weights)[0]:
        words += _expand(symbol[1:-1], rng) if symbol.startswith("<") else [symbol]
    return words


def _speakers(part, seed, seconds):
    """The speakers of one part, who share its seconds."""
    count = max(1, min(_SPEAKERS[part], math.ceil(seconds / _SHORTEST_SPEAKER)))
    rng = random.Random(f"{seed} {part} speakers")
    voices = rng.sample(VOICES[part], len(VOICES[part]))
    accents = rng.sample(ACCENTS, len(ACCENTS))
    first = 1000 * (1 + list(SPLITS).index(part))
    return [
        Speaker(
            id=str(first + i),
            accent=accents[i % len(accents)],
            voice=voices[i % len(voices)],
            pitch=rng.randint(35, 65),
            rate=rng.randint(140, 185),
            seconds=seconds / count,
        )
        for i in range(count)
    ]


def _speak_apart(job):
    """Synthesises one speaker in a process of its own.

    espeak carries state (phase, flutter, noise) from each utterance to the next, whatever is set
    anew; in a process per speaker every file is the same, however many run at a time.
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, "-c", _WORKER, str(Path(__file__).parents[1])],
        input=json.dumps(job),
        text=True,
        capture_output=True,
        env=environment,
    )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise RuntimeError(
            f"synthesis of speaker {job['speaker']['id']} failed ({done.returncode}): {reason}"
        )


def _speak_job():
    """What that process does: its job is on the standard input."""
    job = json.load(sys.stdin)
    speaker = Speaker(**job["speaker"])
    target = Path(job["target"])
    # Made elsewhere and renamed, so that a speaker's folder is there whole or not at all.
    partial = Path(job["partial"]) / speaker.id
    chapter = partial / "1"
    chapter.mkdir(parents=True)
    speech = _Espeak(speaker)
    rng = random.Random(f"{job['seed']} {speaker.id}")
    noise = np.random.default_rng([job["seed"], int(speaker.id)])
    transcripts, samples = [], 0
    while samples < speaker.seconds * SAMPLE_RATE:
        text = sentence(rng)
        signal = _record(speech.say(text.lower(), speaker.rate + rng.randint(-8, 8)), rng, noise)
        id_ = f"{speaker.id}-1-{len(transcripts):04d}"
        soundfile.write(chapter / f"{id_}.flac", signal, SAMPLE_RATE, subtype="PCM_16")
        transcripts.append(f"{id_} {text}\n")
        samples += len(signal)
    (chapter / f"{speaker.id}-1.trans.txt").write_text("".join(transcripts), encoding="utf-8")
    target.parent.mkdir(parents=True, exist_ok=True)
    partial.rename(target)


def _record(speech, rng, noise):
    """Level, surrounding silence and background noise of a recording: int16 at 16 kHz."""
    signal = _resample(speech)
    before, after = (round(rng.uniform(0.05, 0.25) * SAMPLE_RATE) for _ in range(2))
    signal = np.pad(signal, (before, after))
    level = 10 ** (rng.uniform(-34, -22) / 20)
    signal *= level / np.sqrt(np.mean(signal**2))
    noise_level = level * 10 ** (-rng.uniform(20, 40) / 20)
    signal += noise_level * noise.standard_normal(len(signal))
    return np.clip(np.round(signal * 32768), -32768, 32767).astype(np.int16)


def _resample(speech):
    """From espeak's rate to 16 kHz, by leaving out the highest frequencies of the spectrum."""
    divisor = math.gcd(_ESPEAK_RATE, SAMPLE_RATE)
    speech = np.pad(speech.astype(np.float64), (0, -len(speech) % (_ESPEAK_RATE // divisor)))
    length = len(speech) * SAMPLE_RATE // _ESPEAK_RATE
    spectrum = np.fft.rfft(speech)[: length // 2 + 1]
    return np.fft.irfft(spectrum, length) * (length / len(speech))


class _Espeak:
    """espeak-ng, set to one speaker's voice; one per process."""

    _RETRIEVE, _UTF8 = 2, 1  # AUDIO_OUTPUT_SYNCHRONOUS, espeakCHARS_UTF8
    _RATE, _PITCH = 1, 3

    def __init__(self, speaker):
        import espeakng_loader

        data = espeakng_loader.get_data_path()
        # espeak goes on in its default voice when a variant does not exist.
        if not Path(data, "voices", "!v", speaker.voice).is_file():
            raise RuntimeError(f"espeak-ng has no voice variant {speaker.voice}")
        self._library = ctypes.CDLL(espeakng_loader.get_library_path())
        rate = self._library.espeak_Initialize(self._RETRIEVE, 0, data.encode(), 0)
        if rate != _ESPEAK_RATE:
            raise RuntimeError(f"espeak-ng should give {_ESPEAK_RATE} Hz, got {rate}")
        # Breath noise is otherwise seeded with the time of day.
        self._library.espeak_ng_SetRandSeed(ctypes.c_long(int(speaker.id)))
        self._chunks = []
        callback = ctypes.CFUNCTYPE(
            ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p
        )
        self._callback = callback(self._collect)  # kept: espeak calls it later
        self._library.espeak_SetSynthCallback(self._callback)
        self._voice = f"gmw/{speaker.accent}+{speaker.voice}".encode()
        self._pitch = speaker.pitch

    def say(self, text, rate):
        """Samples of a text, int16 at espeak's rate, at a rate in words per minute."""
        self._chunks.clear()
        encoded = text.encode()
        size = ctypes.c_size_t(len(encoded) + 1)
        status = (
            self._library.espeak_SetVoiceByName(self._voice)
            or self._library.espeak_SetParameter(self._RATE, rate, 0)
            or self._library.espeak_SetParameter(self._PITCH, self._pitch, 0)
            or self._library.espeak_Synth(encoded, size, 0, 1, 0, self._UTF8, None, None)
            or self._library.espeak_Synchronize()
        )
        if status or not self._chunks:
            raise RuntimeError(f"espeak-ng did not speak {text!r} as {self._voice!r} ({status})")
        return np.concatenate(self._chunks)

    def _collect(self, samples, count, events):
        if samples and count > 0:
            self._chunks.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0


def _measure(split):
    """Number of utterances and minutes of a split."""
    files = list(split.rglob("*.flac"))
    frames = sum(soundfile.info(str(file)).frames for file in files)
    return {"utterances": len(files), "minutes": round(frames / SAMPLE_RATE / 60, 2)}


def _load_marker(folder):
    """What corpus.json says; None where nothing was made yet."""
    if not folder.exists():
        return None
    if not folder.is_dir():
        raise InputError(f"{folder}: is not a folder; the corpus needs one")
    if (folder / _MARKER).is_file():
        try:
            corpus = json.loads((folder / _MARKER).read_text(encoding="utf-8"))
        except ValueError:
            corpus = None
        if isinstance(corpus, dict) and {"parameters", "complete"} <= corpus.keys():
            return corpus
        raise InputError(f"{folder / _MARKER}: not from make_corpus; choose another folder")
    for split in SPLITS.values():
        if (folder / split).exists():
            raise InputError(
                f"{folder / split}: is there without {_MARKER}, so not made by make_corpus;"
                " choose another folder"
            )
    return None


def _write_marker(path, corpus):
    write_whole(path, json.dumps(corpus, indent=1) + "\n")
