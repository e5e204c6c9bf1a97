#!/usr/bin/env python3
"""Learning curves of several trainings in one picture.

    python scripts/compare_curves.py RUN RUN … --out=curves.png [--names NAME NAME …] [--title=…]

RUN is the output folder of a training, or its curve.csv. Without names, a run is called by what its
path has that the others' have not.
"""

import argparse
import os
from pathlib import Path

from summarymixing.errors import InputError, said_in_one_line
from summarymixing.training import curves


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", metavar="RUN", nargs="+")
    parser.add_argument("--out", required=True, help="the PNG to write")
    parser.add_argument("--names", nargs="+", metavar="NAME", help="of the runs, in their order")
    parser.add_argument("--title", default="")
    args = parser.parse_args(argv)
    with said_in_one_line():
        files = [path / "curve.csv" if path.is_dir() else path for path in map(Path, args.runs)]
        names = args.names or _names(files)
        if len(names) != len(files):
            raise InputError(f"--names: {len(files)} are expected, one a run, got {len(names)}")
        if len(set(names)) < len(names):
            raise InputError("every run needs a name of its own: give --names")
        runs = dict(zip(names, map(curves.read, files)))
        try:
            curves.compare(runs, args.out, args.title)
        except OSError as error:
            raise InputError(f"{args.out}: cannot be written ({error.strerror})") from error
    print(args.out)


def _names(files):
    paths = [path.absolute().parent.parts for path in files]
    start = len(os.path.commonprefix(paths))
    end = len(os.path.commonprefix([path[start:][::-1] for path in paths]))
    return ["/".join(path[start : len(path) - end]) or path[-1] for path in paths]


if __name__ == "__main__":
    main()
