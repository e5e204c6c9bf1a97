"""The one exception that a user's mistake raises."""


class InputError(ValueError):
    """Raised for what a user gave wrong: one line that names the thing and what would be right."""
