#!/usr/bin/env python3
"""Prints what is said while it is said: python scripts/stream.py MODEL FILE|-|mic

Text goes to the standard output as it grows; with --json a word a line instead, the last one again
whenever it grows, until it is stable. At the end the standard error has the audio's length, the
real-time factor (seconds of computing per second of audio) and the latency.
"""

import argparse
import json
import logging
import sys
import time

from summarymixing.dataio import audio
from summarymixing.errors import InputError, number_or, said_in_one_line
from summarymixing.inference import sources
from summarymixing.inference.streaming import Stream, chunk_frames, frame_seconds
from summarymixing.runtime import choose


def arguments(argv):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "model", help="output folder of a training, a package, or an exported model"
    )
    parser.add_argument(
        "source", help="an audio file, - for raw PCM (s16le, one channel) from a pipe, or mic"
    )
    parser.add_argument(
        "--chunk_ms", type=float, help="chunk (default: 640, or that of an exported model)"
    )
    parser.add_argument(
        "--left_chunks",
        type=number_or("unlimited"),
        metavar="N|unlimited",
        help="chunks that a frame sees before its own (default: unlimited, or those of an exported "
        "model)",
    )
    parser.add_argument("--rate", type=int, help="Hz of - or mic (default: the model's)")
    parser.add_argument("--json", action="store_true", help="words with times, one a line")
    parser.add_argument("--threads", type=int, help="of the computation (default: all)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--int8", action="store_true", help="of an exported model, the quantised graphs"
    )
    return parser.parse_args(argv)


def source(options, model_rate):
    """Sample rate and pieces of the audio."""
    if options.rate is not None and options.rate < 1:
        raise InputError(f"--rate must be a positive number of Hz, got {options.rate}")
    rate = model_rate if options.rate is None else options.rate
    if options.source == "-":
        return rate, sources.pcm(sources.standard_input())
    if options.source == "mic":
        return rate, sources.microphone(rate)
    if options.rate is not None:
        raise InputError("--rate is for - and mic: a file says its own")
    return audio.inspect(options.source).sample_rate, audio.blocks(options.source)


def chunks(recogniser, milliseconds, left):
    """Chunk size in frames and left context in chunks."""
    made = getattr(recogniser, "chunks", (None, None))  # an exported model has one answer
    size = made[0] if made[0] and milliseconds is None else None
    if size is None:
        size = chunk_frames(recogniser, 640 if milliseconds is None else milliseconds)
    if left is None:
        return size, made[1]
    return size, None if left == "unlimited" else left


def show(events, as_json, shown):
    """Prints the events; returns how much of the unfinished word is on the screen."""
    for event in events:
        if as_json:
            start, end = round(event.start, 3), round(event.end, 3)
            line = {"text": event.text, "start": start, "end": end, "stable": event.stable}
            print(json.dumps(line, ensure_ascii=False), flush=True)
        else:
            print(event.text[shown:], end="", flush=True)
            shown = 0 if event.stable else len(event.text)
    return shown


def run(options):
    recogniser = choose(options.model, options.device, options.threads, options.int8)
    chunk, left = chunks(recogniser, options.chunk_ms, options.left_chunks)
    rate, pieces = source(options, recogniser.sample_rate)
    stream = Stream(recogniser, chunk, left, rate)
    samples = shown = 0
    computing = 0.0
    try:
        for piece in pieces:
            started = time.perf_counter()
            events = stream.push(piece)
            computing += time.perf_counter() - started
            samples += len(piece)
            shown = show(events, options.json, shown)
    except KeyboardInterrupt:  # how one ends a microphone
        pass
    if samples == 0:
        name = "standard input" if options.source == "-" else options.source
        raise InputError(f"{name}: there is no audio")
    started = time.perf_counter()
    events = stream.finish()
    computing += time.perf_counter() - started
    show(events, options.json, shown)
    if not options.json:
        print()
    seconds, chunk_seconds = samples / rate, chunk * frame_seconds(recogniser)
    # Of less than a chunk it would be the time of a start.
    factor = f", real-time factor {computing / seconds:.3f}" if seconds >= chunk_seconds else ""
    print(
        f"{seconds:.1f} s of audio{factor}; latency {1000 * stream.latency:.0f} ms (a chunk of "
        f"{1000 * chunk_seconds:g} ms and what is needed behind it) and the computation",
        file=sys.stderr,
    )


def main(argv=None):
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("speechbrain.utils.checkpoints").setLevel(logging.WARNING)
    with said_in_one_line():
        run(arguments(argv))


if __name__ == "__main__":
    main()
