#!/usr/bin/env python3
"""Is trained self-attention an average over time? Its maps beside averages, for each head.

    python scripts/attention_maps.py RUN MANIFEST [--json OUT] [--plot PNG]

RUN is the output folder of a training with attention, or a package; MANIFEST one of those in the
run's folder manifests/. Utterances are encoded whole and one at a time. Measures are averages over
frames, then utterances; distances are total variation, 0 for equal and 1 for nothing in common:

    uniform    from the average over the utterance
    shared     from the head's own average map: weights that are the same for all frames
    window     from a local average: that over the window around each frame, up to 13 frames to
               the left and to the right (of 40 ms, a second in all), which is best for the head
    entropy    over log T, that of the uniform; 1 is the uniform, 0 a single frame
    slope      of entropy against log T over utterances: 1 for a global average, 0 for a local one
"""

import argparse
import itertools
import math
import sys
from io import BytesIO
from pathlib import Path

import numpy
import torch
from tqdm import tqdm

from summarymixing.dataio import manifests
from summarymixing.errors import InputError, said_in_one_line
from summarymixing.files import write_whole
from summarymixing.inference import load
from summarymixing.inference.attention import (
    attention_maps,
    entropy,
    from_shared,
    from_uniform,
    from_window,
)
from summarymixing.machine import write_figures

SIDES = (0, 1, 2, 3, 4, 6, 8, 10, 13)  # frames to the left and right that a window may have
WINDOWS = list(itertools.product(SIDES, SIDES))
MEASURES = ("uniform", "shared", "window", "entropy")


def chosen(rows, number):
    """So many rows, of all durations alike."""
    rows = sorted(rows, key=lambda row: float(row["duration"]))
    return [rows[int((i + 0.5) * len(rows) / number)] for i in range(number)]


def measure(recogniser, rows):
    """The measures of each head.

    Returns
    -------
    heads : list of dict
        One a layer and head.
    utterances : list of dict
        "ID", "frames" and "entropy", (layers, heads).
    """
    found, utterances = {name: [] for name in (*MEASURES, "frames")}, []
    for row in tqdm(rows, unit="utterance", file=sys.stderr, leave=False):
        maps = attention_maps(recogniser, manifests.read_audio(row, recogniser.sample_rate))
        if len({len(of_layer) for of_layer in maps.values()}) > 1:
            counts = ", ".join(str(len(of_layer)) for of_layer in maps.values())
            raise InputError(f"layers with unequal numbers of heads: {counts}")
        layers, maps = list(maps), torch.stack(list(maps.values()))
        frames = maps.shape[-1]
        if frames < 2:  # one frame is an average of itself
            continue
        nats = entropy(maps)
        found["uniform"].append(from_uniform(maps))
        found["shared"].append(from_shared(maps))
        found["window"].append(torch.stack([from_window(maps, *sides) for sides in WINDOWS]))
        found["entropy"].append(nats / math.log(frames))
        found["frames"].append(frames)
        utterances.append({"ID": row["ID"], "frames": frames, "entropy": nats.tolist()})
    if not utterances:
        raise InputError("the utterances have one frame each: there is nothing to attend to")
    means = {name: torch.stack(found[name]).mean(0).cpu() for name in MEASURES}
    means["window"], best = means["window"].min(0)
    heads = []
    for i, layer in enumerate(layers):
        for head in range(best.shape[1]):
            values = {name: float(means[name][i, head]) for name in MEASURES}
            points = [utterance["entropy"][i][head] for utterance in utterances]
            left, right = WINDOWS[best[i, head]]
            sides = {"left": left, "right": right}
            slope = _slope([math.log(frames) for frames in found["frames"]], points)
            heads.append({"layer": layer, "head": head, **values, **sides, "slope": slope})
    return heads, utterances


def _slope(x, y):
    """None where all x are the same."""
    return float(numpy.polyfit(x, y, 1)[0]) if len(set(x)) > 1 else None


def table(heads):
    """Markdown, a row a layer: the mean over its heads and their range."""

    def cell(rows, key):
        values = [row[key] for row in rows if row[key] is not None]
        if not values:
            return "-"
        return f"{sum(values) / len(values):.2f} ({min(values):.2f}–{max(values):.2f})"

    columns = (*MEASURES, "slope")
    lines = [f"| layer | {' | '.join(columns)} | windows (frames) |", "|---" * 7 + "|"]
    layers = sorted({row["layer"] for row in heads})
    for layer in (*layers, "all"):
        rows = [row for row in heads if layer in (row["layer"], "all")]
        windows = ", ".join(f"{row['left']}+1+{row['right']}" for row in rows)
        name = layer if layer == "all" else layer + 1
        cells = [cell(rows, key) for key in columns]
        lines.append(f"| {name} | {' | '.join(cells)} | {'' if layer == 'all' else windows} |")
    return "\n".join(lines)


def examples(heads):
    """Heads to look at: {title: (layer, head)}."""
    picks = {
        "nearest the uniform": min(heads, key=lambda row: row["uniform"]),
        "nearest a window": min(heads, key=lambda row: row["window"]),
        "farthest from all": max(
            heads, key=lambda row: min(row[key] for key in ("uniform", "shared", "window"))
        ),
    }
    return {title: (row["layer"], row["head"]) for title, row in picks.items()}


def draw(heads, utterances, maps, path):
    """A picture a measure above, entropy against log T and example maps below.

    Arguments
    ---------
    heads, utterances : list of dict
        As from `measure`.
    maps : dict of int to torch.Tensor
        One utterance's, as from `attention_maps`.
    path : path
    """
    from matplotlib.figure import Figure

    layers = sorted({row["layer"] for row in heads})
    number = 1 + max(row["head"] for row in heads)
    height = max(2.6, 0.3 * len(layers) + 1)
    figure = Figure(figsize=(13, height + 3.4), dpi=120, layout="constrained", facecolor="white")
    upper, lower = figure.subplots(2, 4, height_ratios=(height, 3.4))
    titles = {
        "uniform": "distance from the uniform",
        "shared": "from one average for all frames",
        "window": "from the best local average",
        "entropy": "entropy / log T",
    }
    for axes, name in zip(upper, MEASURES):
        values = numpy.array([row[name] for row in heads]).reshape(len(layers), number)
        # Light is an average over time in all four.
        colors = "Blues_r" if name == "entropy" else "Blues"
        axes.imshow(values, vmin=0, vmax=1, cmap=colors, aspect="auto")
        for (i, head), value in numpy.ndenumerate(values):
            dark = (value < 0.5) if name == "entropy" else (value > 0.5)
            color = "white" if dark else "black"
            axes.text(head, i, f"{value:.2f}", ha="center", va="center", color=color, fontsize=7)
        axes.set_title(titles[name], fontsize=10)
        axes.set_xticks(range(number), range(1, number + 1))
        axes.set_yticks(range(len(layers)), [layer + 1 for layer in layers])
        axes.set_xlabel("head")
    upper[0].set_ylabel("layer")

    axes = lower[0]
    logs = numpy.log([utterance["frames"] for utterance in utterances])
    nats = numpy.array([utterance["entropy"] for utterance in utterances]).mean(2)
    shades = numpy.linspace(0.85, 0.15, len(layers))
    from matplotlib import colormaps

    for i, layer in enumerate(layers):
        color = colormaps["viridis"](shades[i])
        axes.plot(logs, nats[:, i], ".", markersize=3, color=color, label=f"layer {layer + 1}")
    ends = numpy.array([logs.min(), logs.max()])
    axes.plot(ends, ends, color="black", linewidth=1, label="uniform")
    axes.set(xlabel="log T (frames)", ylabel="entropy (nats), mean of heads")
    axes.set_ylim(bottom=0)
    axes.set_title("entropy against log T", fontsize=10)
    if len(layers) <= 8:
        axes.legend(frameon=False, fontsize=7, markerscale=2)
    for axes, (title, (layer, head)) in zip(lower[1:], examples(heads).items()):
        weights = maps[layer][head].cpu().numpy()
        # A few frames may have all the weight: they must not hide the rest.
        axes.imshow(weights, vmin=0, vmax=numpy.quantile(weights, 0.995), cmap="magma")
        axes.set_title(f"{title}: layer {layer + 1}, head {head + 1}", fontsize=10)
        axes.set_xlabel("looked at (frame)")
    lower[1].set_ylabel("from (frame)")
    image = BytesIO()
    figure.savefig(image, format="png")
    write_whole(path, image.getvalue())


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument(
        "model", metavar="MODEL", help="output folder of a training, or a package of it"
    )
    parser.add_argument("manifest")
    parser.add_argument("--utterances", type=int, default=100, help="at most; default: 100")
    parser.add_argument(
        "--untrained",
        action="store_true",
        help="draw the encoder's weights anew first: what there is without training",
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, help="file for the figures, head by head")
    parser.add_argument("--plot", type=Path, help="PNG file")
    arguments = parser.parse_args(argv)
    with said_in_one_line():
        if arguments.utterances < 1:
            raise InputError(f"--utterances must be at least 1, got {arguments.utterances}")
        for name in ("json", "plot"):
            path = getattr(arguments, name)
            if path is not None and path.is_dir():
                raise InputError(f"--{name}={path}: a file is expected, and that is a folder")
        recogniser = load(arguments.model, arguments.device)
        if arguments.untrained:
            torch.manual_seed(0)
            recogniser.modules["Transformer"]._init_params()
        rows = list(manifests.read(arguments.manifest))
        rows = chosen(rows, min(arguments.utterances, len(rows)))
        heads, utterances = measure(recogniser, rows)
        frames = [utterance["frames"] for utterance in utterances]
        print(
            f"\n{len(frames)} utterances of {min(frames)} to {max(frames)} frames, "
            f"mean {sum(frames) / len(frames):.0f}\n\n{table(heads)}"
        )
        if arguments.json:
            content = {
                "heads": heads,
                "utterances": [{key: u[key] for key in ("ID", "frames")} for u in utterances],
            }
            write_figures(arguments.json, content, recogniser.device)
        if arguments.plot:
            waveform = manifests.read_audio(rows[len(rows) // 2], recogniser.sample_rate)
            draw(heads, utterances, attention_maps(recogniser, waveform), arguments.plot)


if __name__ == "__main__":
    main()
