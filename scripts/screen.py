#!/usr/bin/env python3
"""What is wrong with the utterances of a manifest: python scripts/screen.py MANIFEST

Decodes all audio and prints how many utterances have which fault, and whether it is a reason to
leave them out (--drop and --note change that). With --output, writes there a line for each finding
and the clean manifest, and remembers the audio, so that the next time is fast.

The faults: unreadable, truncated, empty, nan (samples that are no numbers), not_scaled (integers
that were not divided), silent, clipped, wrong_rate, stereo, wrong_duration (not the manifest's),
too_short, too_long, empty_text, unknown_characters, speech_rate (implausible), duplicate_id,
duplicate_audio.
"""

import argparse
import os
import re
from pathlib import Path

from summarymixing.dataio import manifests, screening
from summarymixing.errors import InputError, said_in_one_line


def arguments(argv):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("manifest", metavar="MANIFEST")
    parser.add_argument("--output", metavar="FOLDER", help="for the report and the clean manifest")
    parser.add_argument(
        "--facts", metavar="FILE", help="remembers the audio here (default: FOLDER/facts.sqlite)"
    )
    parser.add_argument("--sample_rate", type=int, default=16000, help="in Hz (default: 16000)")
    parser.add_argument("--min_seconds", type=float)
    parser.add_argument("--max_seconds", type=float)
    parser.add_argument(
        "--characters",
        metavar="FILE|STRING",
        help="that texts may have: those of the file, or the string's; white space may always be",
    )
    parser.add_argument("--drop", default="", metavar="A,B", help="faults to drop utterances for")
    parser.add_argument("--note", default="", metavar="A,B", help="faults that are only noted")
    parser.add_argument("--text_only", action="store_true", help="do not read the audio")
    parser.add_argument("--jobs", type=int, help="processes (default: one a processor)")
    return parser.parse_args(argv)


def alphabet(characters):
    """The set of characters that a file or a string has."""
    if characters is None:
        return None
    if os.path.isfile(characters):
        try:
            characters = Path(characters).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{characters}: cannot be read as UTF-8 text ({error})") from None
    elif re.search(r"[/\\]|\.\w+$", characters):
        raise InputError(
            f"--characters: there is no file {characters} (an alphabet with a slash or a full stop"
            " before its end must be in a file)"
        )
    if not characters.strip():
        raise InputError("--characters: there are none; give an alphabet or a file that has one")
    return set(characters)


def names(text):
    return [name.strip() for name in text.split(",") if name.strip()]


def run(options):
    facts = options.facts
    if facts is None and options.output is not None:
        facts = Path(options.output) / "facts.sqlite"
    screened = screening.screen(
        manifests.read(options.manifest),
        facts,
        screening.Limits(
            sample_rate=options.sample_rate,
            min_seconds=options.min_seconds,
            max_seconds=options.max_seconds,
        ),
        characters=alphabet(options.characters),
        drop=names(options.drop),
        note=names(options.note),
        decode=not options.text_only,
        jobs=options.jobs,
    )
    if options.output is not None:
        clean = screened.write_report(options.output, Path(options.manifest).stem)
    print(screened.table())
    if options.output is not None:
        print(f"clean manifest: {clean}")


def main(argv=None):
    with said_in_one_line():
        run(arguments(argv))


if __name__ == "__main__":
    main()
