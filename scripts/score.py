#!/usr/bin/env python3
"""Word and character error rates of transcripts: python scripts/score.py REF HYP

REF and HYP are text ("id words"), trn, CTM, JSON lines or manifests (CSV); of a training:

    python scripts/score.py RUN/manifests/test.csv RUN/hypotheses_test.txt

Text is compared as it is, case and punctuation included, unless an option says otherwise. Both
sides must have the same utterances, unless an option says otherwise. Rates come with bootstrap
intervals of 95 %, over speakers where these are known (spk_id of a manifest, or an option) and over
utterances otherwise; --compare says by how much HYP2 differs from HYP on the same draws.
"""

import argparse
import json
import os
from pathlib import Path

from summarymixing.errors import InputError, said_in_one_line
from summarymixing.files import write_whole
from summarymixing.scoring import metrics, report, transcripts


def arguments(argv):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("reference", metavar="REF")
    parser.add_argument("hypothesis", metavar="HYP")
    parser.add_argument("--compare", metavar="HYP2", help="another system, scored against HYP")
    parser.add_argument("--json", action="store_true", help="print everything as one JSON object")
    parser.add_argument(
        "--alignments", metavar="FILE", help="write HYP's errors, word under word, worst first"
    )
    parser.add_argument("--force", action="store_true", help="overwrite FILE")

    files = parser.add_argument_group("files")
    formats = transcripts.FORMATS
    files.add_argument("--format", choices=formats, help="of all files (default: by suffix)")
    files.add_argument("--ref_format", choices=formats, help="of REF, if it differs")
    files.add_argument("--id_key", default="id", help="in JSON lines (default: id)")
    files.add_argument("--text_key", default="text", help="in JSON lines (default: text)")
    files.add_argument("--hyp_text_key", help="in HYP's JSON lines, if it differs")
    files.add_argument(
        "--allow_missing",
        action="store_true",
        help="references without a hypothesis count as deleted words (in a CTM file, what was "
        "recognised as silence is missing)",
    )
    files.add_argument(
        "--ignore_extra", action="store_true", help="leave out hypotheses without a reference"
    )

    normalisation = parser.add_argument_group("normalisation of both sides, none by default")
    normalisation.add_argument("--unicode", choices=transcripts.UNICODE_FORMS)
    normalisation.add_argument("--lower", action="store_true", help="to lower case")
    normalisation.add_argument(
        "--no_punctuation",
        action="store_true",
        help="punctuation becomes a space, but for apostrophes inside words",
    )

    speakers = parser.add_argument_group("speakers, for a table and for the intervals")
    speakers = speakers.add_mutually_exclusive_group()
    speakers.add_argument(
        "--speaker_pattern",
        metavar="REGEX",
        help="matches the beginning of an id; its first group, or else all of it, is the speaker",
    )
    speakers.add_argument("--utt2spk", metavar="FILE", help='"id speaker" lines, as Kaldi has them')
    speakers.add_argument("--speaker_key", help="in REF's JSON lines")
    speakers.add_argument(
        "--no_speakers", action="store_true", help="ignore the speakers of a manifest"
    )

    bootstrap = parser.add_argument_group("bootstrap")
    bootstrap.add_argument("--resamples", type=int, default=1000, help="draws (default: 1000)")
    bootstrap.add_argument("--seed", type=int, default=0, help="of the draws (default: 0)")
    return parser.parse_args(argv)


def speakers_of(options, references):
    if options.no_speakers:
        return None
    if options.speaker_pattern is not None:
        return transcripts.speakers_of(references.texts, options.speaker_pattern)
    if options.utt2spk is not None:
        known = transcripts.read_speakers(options.utt2spk)
        return transcripts.speakers_of(references.texts, known)
    return references.speakers


def check_new(path, options):
    """The report must not take the place of anything by mistake."""
    if path.is_dir():
        raise InputError(f"{path} is a folder; --alignments wants a file")
    if not path.parent.is_dir():
        raise InputError(f"{path}: there is no folder {path.parent}")
    if path.exists():
        inputs = (options.reference, options.hypothesis, options.compare, options.utt2spk)
        for name in filter(None, inputs):
            if os.path.exists(name) and path.samefile(name):
                raise InputError(f"{path} would be overwritten by --alignments, and is read")
        if not options.force:
            raise InputError(f"{path} is there already; --force overwrites it")


def run(options):
    if options.seed < 0:
        raise InputError(f"--seed must not be negative, got {options.seed}")
    alignments = options.alignments and Path(options.alignments)
    if alignments:
        check_new(alignments, options)

    def normalised(texts):
        return {
            i: transcripts.normalise(
                text, options.unicode, options.lower, not options.no_punctuation
            )
            for i, text in texts.items()
        }

    references = transcripts.read(
        options.reference,
        options.ref_format or options.format,
        options.id_key,
        options.text_key,
        options.speaker_key,
    )
    if options.speaker_key is not None and references.speakers is None:
        raise InputError(f"--speaker_key is for JSON lines, and {options.reference} is not")
    speakers = speakers_of(options, references)
    texts = normalised(references.texts)
    files, systems = [], []
    for path in filter(None, (options.hypothesis, options.compare)):
        read = transcripts.read(
            path, options.format, options.id_key, options.hyp_text_key or options.text_key
        )
        hypotheses, missing, extra = transcripts.pair(
            texts, normalised(read.texts), path, options.allow_missing, options.ignore_extra
        )
        systems.append(hypotheses)
        files.append({"file": path, "missing": missing, "ignored": extra})

    found = report.evaluate(texts, systems, speakers, options.resamples, options.seed)
    if alignments:
        try:
            write_whole(alignments, metrics.alignment_report(texts, systems[0]) + "\n")
        except OSError as error:
            raise InputError(f"{alignments}: {error.strerror}") from None
    found["reference"] = options.reference
    found["normalisation"] = {
        "unicode": options.unicode,
        "lower": options.lower,
        "no_punctuation": options.no_punctuation,
    }
    found["systems"] = [file | system for file, system in zip(files, found["systems"])]
    if options.json:
        print(json.dumps(found, indent=2, ensure_ascii=False))
    else:
        show(found)


def show(found):
    print(f"REF  {found['reference']}")
    for name, system in zip(("A", "B") if found["difference"] else ("HYP",), found["systems"]):
        notes = []
        if system["missing"]:
            notes.append(f"{system['missing']} missing, counted as deleted")
        if system["ignored"]:
            notes.append(f"{system['ignored']} without a reference left out")
        print(f"{name:3}  {system['file']}" + (f" ({'; '.join(notes)})" if notes else ""))
    done = [
        value if key == "unicode" else key for key, value in found["normalisation"].items() if value
    ]
    print(f"normalisation: {', '.join(done) or 'none'}")
    print(report.table(found))


def main(argv=None):
    with said_in_one_line():
        run(arguments(argv))


if __name__ == "__main__":
    main()
