"""The one exception that a user's mistake raises."""


class InputError(ValueError):
    """Raised for what a user gave wrong; the message is one line that names the thing and what would be right."""
