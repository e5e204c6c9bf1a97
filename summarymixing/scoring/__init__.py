"""Error rates of transcripts: files of them, counts, uncertainty, and a report."""
