#!/usr/bin/env python3
"""What is said in recordings: python scripts/transcribe.py MODEL FILES|FOLDERS|-

Any format that libsndfile reads (WAV, FLAC, MP3, OGG, Opus, SPHERE, AIFF, ...), any sample rate,
number of channels and length; of folders, all such files below them. - is one such file from a
pipe. Transcripts go to the standard output, or with --output into a file, or into a folder with a
file for each recording. What cannot be read is named on the standard error, and the rest goes on.

Exit status: 0, 1 when there are recordings that could not be read, 2 for a mistake in the command.
"""

import argparse
import logging
import os
import shutil
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from summarymixing.errors import InputError, number_or, said_in_one_line
from summarymixing.files import write_whole
from summarymixing.inference.formats import ONE_RECORDING, SUFFIXES, WRITERS
from summarymixing.inference.segments import PAUSE_SECONDS
from summarymixing.inference.sources import standard_input
from summarymixing.inference.transcribe import SEGMENT_SECONDS, transcribe
from summarymixing.runtime import Exported, choose

# What is taken from a folder; files named by themselves may have any.
_AUDIO = (
    ".wav .flac .mp3 .ogg .oga .opus .sph .nist .aif .aiff .aifc .au .snd .w64 .rf64 .caf .voc"
).split()


def arguments(argv):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="output folder of a training, a package, or an exported model",
    )
    parser.add_argument("sources", metavar="FILE|FOLDER|-", nargs="+")
    parser.add_argument(
        "--format",
        choices=WRITERS,
        help="jsonl and ctm have word times and confidences (default: by the suffix of --output, "
        "or else text)",
    )
    parser.add_argument(
        "--output",
        metavar="FILE|FOLDER",
        help="a name with a suffix is a file for all recordings; otherwise it is a folder",
    )
    parser.add_argument("--force", action="store_true", help="overwrite what is there")
    parser.add_argument(
        "--batch_seconds", type=float, default=120, help="of audio at a time (default: 120)"
    )
    parser.add_argument(
        "--segment_seconds",
        type=number_or("whole", float),
        default=SEGMENT_SECONDS,
        metavar="N|whole",
        help="longer recordings are cut at their pauses into pieces of at most so many seconds, "
        "or taken as a whole (default: %(default)s)",
    )
    parser.add_argument(
        "--pause_seconds",
        type=float,
        default=PAUSE_SECONDS,
        metavar="N",
        help="the shortest pause that is cut (default: %(default)s)",
    )
    parser.add_argument(
        "--search",
        metavar="METHOD",
        help="one of ctc_greedy, ctc_beam, rescore, attention, joint, with arguments: 'joint "
        "beam_size=20'; or recipe, that of the training's test (default: greedy)",
    )
    parser.add_argument("--threads", type=int, help="of the computation (default: all)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--int8", action="store_true", help="of an exported model, the quantised graphs"
    )
    return parser.parse_args(argv)


def recordings(sources, pipe):
    """The files that the sources stand for, each once; `pipe` is that of -."""
    found = {}
    for source in sources:
        if source == "-":
            paths = [pipe]
        elif os.path.isdir(source):
            inside = (path for path in sorted(Path(source).rglob("*")) if path.is_file())
            paths = [str(path) for path in inside if path.suffix.lower() in _AUDIO]
            if not paths:
                raise InputError(f"{source}: there is no audio file in this folder")
        else:
            paths = [source]
        for path in paths:
            found.setdefault(os.path.abspath(path), path)
    return list(found.values())


def names(paths):
    """A name for each recording: as short as possible without giving two the same."""
    common = os.path.dirname(os.path.commonprefix([os.path.abspath(path) + "/" for path in paths]))
    below = [os.path.relpath(os.path.abspath(path), common) for path in paths]
    for found in (
        [Path(path).stem for path in paths],
        [os.path.splitext(path)[0] for path in below],
        below,
    ):
        # White space would end a name in text and CTM; what is not Unicode cannot be written.
        found = ["_".join(_unicode(name).split()) for name in found]
        if len(set(found)) == len(found):
            return found
    raise InputError("two recordings have names that differ in white space only: rename one")


def _unicode(path):
    return os.fsencode(path).decode(errors="replace")


def outputs(options, paths, found):
    """The format, and where each recording's transcript goes; None: the standard output."""
    target = options.output
    is_file = (
        target is not None
        and not os.path.isdir(target)
        and (os.path.isfile(target) or (Path(target).suffix != "" and target[-1] != os.sep))
    )
    suffix = Path(target).suffix.lower() if is_file else ""
    by_suffix = {suffix: format for format, suffix in SUFFIXES.items()}
    format = options.format or by_suffix.get(suffix, "text")
    if target is None or is_file:
        if format in ONE_RECORDING and len(paths) > 1:
            raise InputError(f"{format} is for one recording a file: --output a folder, not a file")
        places = [Path(target) if is_file else None] * len(paths)
    else:
        places = [Path(target, name + SUFFIXES[format]) for name in found]
    for place in dict.fromkeys(filter(None, places)):
        _check_new(place, paths, options.force, must_have_folder=is_file)
    return format, places


def _check_new(place, paths, force, must_have_folder):
    if must_have_folder and not place.parent.is_dir():
        raise InputError(f"{place}: there is no folder {place.parent}")
    if place.is_dir():
        raise InputError(f"{place} is a folder, where a transcript would be written")
    if place.exists():
        if any(os.path.exists(path) and place.samefile(path) for path in paths):
            raise InputError(f"{place} would be overwritten by --output, and is read")
        if not force:
            raise InputError(f"{place} is there already; --force overwrites it")


def set_search(recogniser, method):
    if isinstance(recogniser, Exported):
        if method not in (None, "ctc_greedy"):
            raise InputError(
                f"--search {method}: an exported model is searched with ctc_greedy; give the "
                "training's folder or a package"
            )
    elif method == "recipe":
        recogniser.search = recogniser.test_search
    elif method is not None:
        from summarymixing.decoding.methods import parse_search  # needs torch

        recogniser.search = parse_search(method, recogniser.modules, lambda: recogniser.test_search)


class _NoBar:
    """In the place of tqdm, which is there for the eyes only."""

    def __init__(self, **options):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def set_postfix_str(self, text):
        pass

    def update(self):
        pass

    @staticmethod
    def write(text, file, end="\n"):
        print(text, file=file, end=end)


try:
    from tqdm import tqdm
except ImportError:
    tqdm = _NoBar


def run(options):
    """Whether all recordings could be read."""
    with tempfile.TemporaryDirectory() as folder:
        pipe = os.path.join(folder, "stdin")
        paths = recordings(options.sources, pipe)
        found = names(["stdin" if path == pipe else path for path in paths])
        format, places = outputs(options, paths, found)
        recogniser = choose(options.model, options.device, options.threads, options.int8)
        set_search(recogniser, options.search)
        if pipe in paths:
            with open(pipe, "wb") as file:
                shutil.copyfileobj(standard_input(), file)
        results = transcribe(
            recogniser,
            paths,
            options.batch_seconds,
            None if options.segment_seconds == "whole" else options.segment_seconds,
            options.pause_seconds,
        )
        return work(results, len(paths), found, WRITERS[format], places, pipe)


def work(results, count, found, writer, places, pipe):
    """Writes the transcripts; False when there are files that could not be read."""
    failed, seconds, started = 0, 0.0, time.perf_counter()
    together, shared = [], len(set(places)) == 1
    # disable=None: only on a terminal.
    with tqdm(total=count, unit=" files", disable=None, dynamic_ncols=True) as bar:
        for name, place, result in zip(found, places, results):
            if result.error is not None:
                failed += 1
                message = result.error.replace(pipe, "standard input")
                tqdm.write(_unicode(f"error: {message}"), file=sys.stderr)
            else:
                path = "-" if result.path == pipe else _unicode(result.path)
                result = replace(result, path=path)
                transcript = writer(name, result)
                if place is None:
                    tqdm.write(transcript, file=sys.stdout, end="")
                elif shared:
                    together.append(transcript)
                else:
                    _write(place, transcript)
            seconds += result.duration
            factor = (time.perf_counter() - started) / max(seconds, 1e-9)
            bar.set_postfix_str(f"{seconds / 60:.1f} min of audio, real-time factor {factor:.3f}")
            bar.update()
    if together:
        _write(places[0], together)
    taken = time.perf_counter() - started
    print(
        f"{count - failed} of {count} files, {seconds / 60:.1f} min of audio"
        + (f", real-time factor {taken / seconds:.3f}" if seconds else ""),
        file=sys.stderr,
    )
    return failed == 0


def _write(place, transcript):
    try:
        write_whole(place, transcript)
    except OSError as error:
        raise InputError(f"{place}: {error.strerror}") from None


def main(argv=None):
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("speechbrain.utils.checkpoints").setLevel(logging.WARNING)
    with said_in_one_line():
        done = run(arguments(argv))
    sys.exit(0 if done else 1)


if __name__ == "__main__":
    main()
