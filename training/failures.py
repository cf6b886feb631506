"""What stops a command with one sentence instead of a traceback."""


class CommandError(Exception):
    """What the flags ask for cannot be done; the message names the flag and what is allowed."""


class TrainingError(RuntimeError):
    """Training that cannot begin or go on; the message names the settings, or the iteration and the cause."""
