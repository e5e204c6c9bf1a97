#!/usr/bin/env python3
"""Seconds and memory that a large manifest takes: ours, and SpeechBrain's classes for the same.

Makes a manifest, and in a fresh process for each side opens it, plans the dynamic batches of an
epoch, and lets data workers read every row (but no audio). Memory of all processes together is the
sum of their proportional set sizes, in which what they share counts once. Linux only.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from multiprocessing import active_children
from pathlib import Path

BATCH_SECONDS, BATCH_UTTERANCES, BUCKETS = 500, 128, 200
SIDES = {"ours": "summarymixing", "speechbrain": "SpeechBrain"}


def make(path, rows, seed=0):
    """Read speech of 1 to 24 seconds, 2.7 words a second, as of LibriSpeech."""
    draw = random.Random(seed)
    letters = "ETAOINSHRDLUCMFYWGPBVKXQJZ"
    words = ["".join(draw.choices(letters, k=draw.randint(1, 9))) for _ in range(20000)]
    with open(path, "w") as file:
        file.write("ID,duration,wav,spk_id,wrd\n")
        for number in range(rows):
            seconds = draw.uniform(1, 24)
            text = " ".join(draw.choices(words, k=max(1, round(2.7 * seconds))))
            speaker = number % 2338
            id_ = f"{speaker}-{number % 77}-{number:07}"
            wav = f"/data/LibriSpeech/train-other-500/{speaker}/{number % 77}/{id_}.flac"
            file.write(f"{id_},{seconds!r},{wav},{speaker},{text}\n")


def open_ours(path):
    from summarymixing.dataio import manifests
    from summarymixing.training.batches import Batches

    def plan():
        rows = manifests.read(path)
        batches = Batches(rows.durations, BATCH_SECONDS, BATCH_UTTERANCES, BUCKETS, seed=1)
        batches.set_epoch(1)
        return rows, batches

    return plan


def open_speechbrain(path):
    from speechbrain.dataio.dataset import DynamicItemDataset
    from speechbrain.dataio.sampler import DynamicBatchSampler

    def plan():
        keys = ["id", "duration", "wav", "spk_id", "wrd"]
        rows = DynamicItemDataset.from_csv(path, output_keys=keys)
        batches = DynamicBatchSampler(
            rows, BATCH_SECONDS, BUCKETS, max_batch_ex=BATCH_UTTERANCES, seed=1
        )
        return rows, batches

    return plan


def memory(name, pid="self"):
    """A line of /proc, in MB: VmHWM is the peak of a process, Pss its share of the memory."""
    file = Path("/proc", str(pid), "smaps_rollup" if name == "Pss" else "status")
    (line,) = (line for line in file.read_text().splitlines() if line.startswith(name + ":"))
    return int(line.split()[1]) * 1024 / 1e6


def measure(side, path, workers):
    """What one side takes, in this process."""
    from torch.utils.data import DataLoader

    plan = {"ours": open_ours, "speechbrain": open_speechbrain}[side](path)
    found = {"imports_mb": memory("VmHWM")}
    began, used = time.perf_counter(), time.process_time()
    rows, batches = plan()
    found["open_seconds"] = time.perf_counter() - began
    found["open_cpu_seconds"] = time.process_time() - used
    found["open_mb"] = memory("VmHWM")
    began = time.perf_counter()
    loader = DataLoader(
        rows, batch_sampler=batches, num_workers=workers, collate_fn=len, persistent_workers=True
    )
    found["batches"], found["rows"] = len(batches), sum(loader)
    found["epoch_seconds"] = time.perf_counter() - began
    processes = ["self", *(process.pid for process in active_children())]
    found["processes"] = len(processes)
    found["all_mb"] = sum(memory("Pss", pid) for pid in processes)
    return found


def table(figures, workers):
    names = {
        "open_seconds": "open and plan, s",
        "open_cpu_seconds": "… of it on the processor, s",
        "imports_mb": "peak memory after imports, MB",
        "open_mb": "peak memory, opened and planned, MB",
        "epoch_seconds": "every row read by workers, s",
        "all_mb": f"main process and {workers} workers, MB",
    }
    lines = [f"{'':36}" + "".join(f"{SIDES[side]:>15}" for side in figures)]
    for name, words in names.items():
        lines.append(f"{words:36}" + "".join(f"{found[name]:15.1f}" for found in figures.values()))
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--json", help="file for the figures")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)  # in a fresh process
    parser.add_argument("--manifest", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.rows < 1 or arguments.workers < 1:
        parser.error("--rows and --workers must be positive")
    if arguments.side:
        print(json.dumps(measure(arguments.side, arguments.manifest, arguments.workers)))
        return
    figures = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "train.csv"
        make(path, arguments.rows)
        size = path.stat().st_size
        print(f"{arguments.rows} rows, {size / 1e6:.0f} MB", file=sys.stderr)
        for side in SIDES:
            command = [sys.executable, "-W", "ignore", __file__]
            command += [f"--side={side}", f"--manifest={path}"]
            command.append(f"--workers={arguments.workers}")
            done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
            figures[side] = json.loads(done.stdout.splitlines()[-1])
            if figures[side]["rows"] != arguments.rows:
                sys.exit(f"error: {side} read {figures[side]['rows']} rows of {arguments.rows}")
    print(table(figures, arguments.workers))
    if arguments.json:
        from summarymixing.machine import write_figures

        facts = {"manifest_bytes": size, "workers": arguments.workers}
        write_figures(arguments.json, facts | figures)


if __name__ == "__main__":
    main()
