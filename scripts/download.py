#!/usr/bin/env python3
"""Fetch a corpus: python scripts/download.py CORPUS FOLDER [PART ...]

    python scripts/download.py LibriSpeech data                          # all of it
    python scripts/download.py LibriSpeech data train-clean-100 dev-clean

Says what comes from where, under which licence and of which size, and begins. A connection that
breaks is taken up again, and so is a download that was stopped: the same command goes on. Archives
are checked against their published digests and unpacked into FOLDER. Proxies are those of the
environment (https_proxy).
"""

import argparse
import sys

from summarymixing.dataio import downloads
from summarymixing.errors import said_in_one_line


def table():
    """What there is, for the help."""
    lines = ["corpora and their parts:"]
    for name, corpus in downloads.CORPORA.items():
        lines.append(f"  {name}: {corpus.licence}, {corpus.page}")
        if corpus.elsewhere is not None:
            lines.append("    (not fetched from here)")
        for part, archive in corpus.parts.items():
            lines.append(f"    {part:16} {archive.gigabytes:g} GB")
    return "\n".join(lines).replace("%", "%%")


def arguments(argv):
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=table(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("corpus", metavar="CORPUS")
    parser.add_argument("folder", metavar="FOLDER")
    parser.add_argument("parts", metavar="PART", nargs="*", help="default: all")
    parser.add_argument(
        "--delete_archive", action="store_true", help="when it is unpacked (default: keep it)"
    )
    return parser.parse_args(argv)


def main(argv=None):
    options = arguments(argv)
    with said_in_one_line():
        try:
            downloads.download(
                options.corpus, options.folder, options.parts, options.delete_archive
            )
        except KeyboardInterrupt:
            print("interrupted; the same command goes on from here", file=sys.stderr)
            sys.exit(130)


if __name__ == "__main__":
    main()
