"""The SummaryMixing cell in plain torch."""
