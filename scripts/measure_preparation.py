#!/usr/bin/env python3
"""Minutes and memory that a large corpus takes before training: preparation and screening.

Generates corpora in their official layouts, and in a fresh process each: prepares one, prepares it
again, which finds that nothing was changed, screens a part of its training set, decoding it, and
screens all of it when what is known of the audio is remembered. The audio files are some hundred
recordings of usual lengths under many names (hard links), which the system has in memory: what a
disk or a network adds is not in the seconds; read_mb says how much they would have to read. Memory
is the peak of the proportional set sizes of all processes together. Linux only.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile
from measure_manifest import memory
from tqdm import tqdm

from summarymixing.errors import InputError, said_in_one_line

STAGES = {
    "prepare": "preparation",
    "again": "nothing changed",
    "screen": "screening, audio decoded",
    "screen_again": "screening, audio known",
}
SPLITS = {"train": 0.95, "dev": 0.025, "test": 0.025}
WATCH_SECONDS = 0.2


def noise(draw, seconds, rate):
    """Noise in syllables, which codecs make about as small as speech."""
    samples = np.random.default_rng(draw.getrandbits(32)).normal(0, 0.05, round(seconds * rate))
    samples = np.convolve(samples, np.full(6, 1 / 6), "same")
    return samples * np.sin(4 * np.pi * np.arange(len(samples)) / rate) ** 2


def encode(path, draw, seconds, rate):
    # The bit rate of Common Voice's clips.
    options = {"bitrate_mode": "CONSTANT", "compression_level": 0.85}
    options = options if path.suffix == ".mp3" else {}
    soundfile.write(path, noise(draw, seconds, rate), rate, **options)


def talk(path, draw, seconds, rate):
    """A SPHERE file of silence that takes no space."""
    header = (
        f"NIST_1A\n   1024\nsample_count -i {round(seconds * rate)}\nsample_n_bytes -i 2\n"
        f"channel_count -i 1\nsample_byte_format -s2 10\nsample_rate -i {rate}\n"
        "sample_coding -s3 pcm\nend_head\n"
    )
    path.write_bytes(header.encode().ljust(1024, b"\0"))
    os.truncate(path, 1024 + 2 * round(seconds * rate))


def recordings(folder, draw, make, suffix, rate, seconds, count):
    """Recordings to give names to, each time another one."""
    folder.mkdir()
    paths = [folder / f"{number}{suffix}" for number in range(count)]
    for path in tqdm(paths, "recordings", unit="file"):
        make(path, draw, draw.uniform(*seconds), rate)
    while True:
        yield from paths


def sentences(draw, letters, separator=" "):
    words = ["".join(draw.choices(letters, k=draw.randint(1, 9))) for _ in range(20000)]
    while True:
        yield separator.join(draw.choices(words, k=draw.randint(5, 30)))


def split_of(number, files):
    """The split of a file, at least one in each."""
    rest = files - 1 - number
    held_out = max(1, round(SPLITS["test"] * files))
    return "test" if rest < held_out else "dev" if rest < 2 * held_out else "train"


def make_librispeech(folder, audio, draw, files):
    texts = sentences(draw, "ETAOINSHRDLUCMFYWGPBVKXQJZ")
    lines = []
    for number in names(files):
        split, speaker = split_of(number, files), number // 120
        chapter, place = number // 40, number % 40
        parent = folder / split / str(speaker) / str(chapter)
        parent.mkdir(parents=True, exist_ok=True)
        id_ = f"{speaker}-{chapter}-{place:04}"
        os.link(next(audio), parent / f"{id_}.flac")
        lines.append(f"{id_} {next(texts)}\n")
        if place == 39 or number == files - 1 or split_of(number + 1, files) != split:
            (parent / f"{speaker}-{chapter}.trans.txt").write_text("".join(lines))
            lines.clear()


def make_commonvoice(folder, audio, draw, files):
    texts = sentences(draw, "eaisnrtouldcmpévqfbghjàxèêzyçûwkùîœï’-,.'")
    (folder / "clips").mkdir()
    columns = "client_id path sentence_id sentence sentence_domain up_votes down_votes age gender"
    columns += " accents variant locale segment"
    tables = {split: ["\t".join(columns.split()) + "\n"] for split in SPLITS}
    for number in names(files):
        clip = f"common_voice_fr_{17000000 + number}.mp3"
        os.link(next(audio), folder / "clips" / clip)
        speaker = f"{number // 30:0128x}"
        values = [speaker, clip, f"{number:064x}", next(texts).capitalize(), "", "2", "0"]
        values += ["", "", "", "", "fr", ""]
        tables[split_of(number, files)].append("\t".join(values) + "\n")
    for split, lines in tables.items():
        (folder / f"{split}.tsv").write_text("".join(lines))


def make_aishell(folder, audio, draw, files):
    texts = sentences(draw, [chr(code) for code in range(0x4E00, 0x5E00)])
    (folder / "transcript").mkdir()
    with open(folder / "transcript" / "aishell_transcript_v0.8.txt", "w") as file:
        for number in names(files):
            split = split_of(number, files)
            speaker = f"S{number // 350:04}"
            id_ = f"BAC009{speaker}W{number:07}"
            (folder / "wav" / split / speaker).mkdir(parents=True, exist_ok=True)
            os.link(next(audio), folder / "wav" / split / speaker / f"{id_}.wav")
            file.write(f"{id_} {next(texts)}\n")


def make_tedlium(folder, audio, draw, files, segments=62):
    """Talks of 62 segments, as 93 thousand of 1495."""
    texts = sentences(draw, "etaoinshrdlucmfywgpbvkxqjz")
    for split in SPLITS:
        for name in ("sph", "stm"):
            (folder / split / name).mkdir(parents=True)
    lines, began = [], 0
    for number in names(files):
        split = split_of(number, files)
        name = f"Speaker{began}_2010"
        start = 8.0 * len(lines)
        line = f"{name} 1 {name} {start} {start + draw.uniform(2, 8):.2f} <o,f0,male> "
        lines.append(line + next(texts) + "\n")
        last = number == files - 1 or split_of(number + 1, files) != split
        if last or len(lines) == segments:
            os.link(next(audio), folder / split / "sph" / f"{name}.sph")
            (folder / split / "stm" / f"{name}.stm").write_text("".join(lines))
            lines, began = [], number + 1


def names(files):
    return tqdm(range(files), "names", unit="file")


# How a corpus is made, and its recordings: how each, suffix, rate in Hz, seconds from and to.
CORPORA = {
    "librispeech": (make_librispeech, encode, ".flac", 16000, (2, 17)),
    "commonvoice": (make_commonvoice, encode, ".mp3", 32000, (2, 9)),
    "aishell": (make_aishell, encode, ".wav", 16000, (2, 8)),
    "tedlium": (make_tedlium, talk, ".sph", 16000, (600, 1200)),
}


def make(corpus, folder, files, payloads):
    draw = random.Random(0)
    maker, *kind = CORPORA[corpus]
    audio = recordings(folder / "recordings", draw, *kind, payloads)
    (folder / "corpus").mkdir()
    maker(folder / "corpus", audio, draw, files)


def prepare(corpus, folder):
    from summarymixing.dataio import aishell, commonvoice, librispeech, tedlium

    function, *arguments = {
        "librispeech": (librispeech.prepare, "train", "dev", "test"),
        "commonvoice": (commonvoice.prepare, "fr"),
        "aishell": (aishell.prepare,),
        "tedlium": (tedlium.prepare,),
    }[corpus]
    return function(folder / "corpus", folder / "manifests", *arguments)


def run(stage, corpus, folder, screened):
    """What one stage takes, in this process and those that it starts and ends."""
    from summarymixing.dataio import manifests, screening

    if stage in ("prepare", "again"):
        found, paths = timed(prepare, corpus, folder)
        rows = [manifests.read(path) for path in paths.values()]
    else:
        rows = manifests.read(folder / "manifests" / "train.csv")
        facts = folder / f"{stage}.sqlite"
        if stage == "screen":
            rows = rows.select(slice(screened))
        else:
            remember(rows, facts)
        found, _ = timed(screening.screen, rows, facts)
        rows = [rows]
    hours = sum(part.durations.sum() for part in rows) / 3600
    return {"rows": sum(map(len, rows)), "speech_hours": hours, **found}


def timed(function, *arguments):
    """Seconds, those of processors, and bytes that were read, and what the function returns."""

    def state():
        read = Path("/proc/self/io").read_text().split()[1]  # "rchar: 4096", cached or not
        return time.perf_counter(), sum(os.times()[:4]), int(read) / 1e6

    before = state()
    result = function(*arguments)
    names = ("seconds", "cpu_seconds", "read_mb")
    return {name: b - a for name, a, b in zip(names, before, state())}, result


def remember(rows, facts):
    """Notes of every row what decoding would find, other samples in each."""
    from summarymixing.dataio.facts import DIGEST, Facts, FactsFile, stamp_of

    def known():
        for number, row in enumerate(rows, 1):
            digest = number.to_bytes(DIGEST, "big")
            frames = round(row["duration"] * 16000)
            yield *stamp_of(row), *Facts(frames, 16000, 1, -0.5, 0.5, True, 0, digest)

    FactsFile(facts).add(list(known()))


def processes_of(pid):
    """A process and all below it."""
    try:
        tasks = list(Path("/proc", str(pid), "task").iterdir())
        children = [child for task in tasks for child in (task / "children").read_text().split()]
    except OSError:  # it has ended
        return []
    return [pid, *(found for child in children for found in processes_of(child))]


def watched(command):
    """What a command prints as its last line, with the peak memory of all its processes."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    peak = 0
    while process.poll() is None:
        used = 0
        for pid in processes_of(process.pid):
            try:
                used += memory("Pss", pid)
            except (OSError, ValueError):  # it ends, or has ended
                pass
        peak = max(peak, used)
        time.sleep(WATCH_SECONDS)
    if process.returncode:
        raise InputError(f"{' '.join(command)}: ended with status {process.returncode}")
    return json.loads(process.stdout.read().splitlines()[-1]) | {"peak_mb": peak}


def measure(corpus, folder, files, payloads):
    make(corpus, folder, files, payloads)
    figures = {}
    for stage in STAGES:
        print(f"{corpus}: {STAGES[stage]}", file=sys.stderr)
        command = [sys.executable, "-W", "ignore", __file__, f"--stage={stage}"]
        command += [f"--corpus={corpus}", f"--folder={folder}", f"--payloads={payloads}"]
        figures[stage] = watched(command)
    return figures


def file_system(folder):
    """What kind of file system a folder is on, such as tmpfs."""
    command = ["stat", "--file-system", "--format=%T", folder]
    return subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout.strip()


def table(figures):
    lines = [f"{'':38}{'rows':>8}{'seconds':>9}{'CPU s':>9}{'rows/s':>8}{'peak MB':>9}"]
    for corpus, stages in figures.items():
        for stage, found in ((stage, stages[stage]) for stage in STAGES):
            lines.append(
                f"{corpus + ', ' + STAGES[stage]:38}{found['rows']:8}{found['seconds']:9.1f}"
                f"{found['cpu_seconds']:9.1f}{found['rows'] / found['seconds']:8.0f}"
                f"{found['peak_mb']:9.0f}"
            )
    return "\n".join(lines)


def arguments(argv):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", nargs="+", choices=CORPORA, default=list(CORPORA))
    parser.add_argument("--files", type=int, default=300_000, help="utterances (300000)")
    parser.add_argument(
        "--payloads", type=int, default=500, help="recordings, and rows to decode (500)"
    )
    parser.add_argument("--folder", help="where there is room (the system's for temporary files)")
    parser.add_argument("--json", help="file for the figures")
    parser.add_argument("--stage", choices=STAGES, help=argparse.SUPPRESS)  # in a fresh process
    options = parser.parse_args(argv)
    if options.files < 3 or options.payloads < 1:
        parser.error("--files must be at least 3 and --payloads positive")
    return options


def main(argv=None):
    options = arguments(argv)
    if options.stage:
        (corpus,), folder = options.corpus, Path(options.folder)
        print(json.dumps(run(options.stage, corpus, folder, options.payloads)))
        return
    figures = {}
    with said_in_one_line():
        for corpus in options.corpus:
            with tempfile.TemporaryDirectory(dir=options.folder) as folder:
                where = {"file_system": file_system(folder)}
                # More than none: other programs ran beside, and the seconds are too many.
                where["load_before"] = os.getloadavg()[0]
                found = measure(corpus, Path(folder), options.files, options.payloads)
            figures[corpus] = where | found
            if options.json:  # after each, as a corpus may take an hour
                from summarymixing.machine import write_figures

                write_figures(options.json, figures)
        print(table(figures))


if __name__ == "__main__":
    main()
