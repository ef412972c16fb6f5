"""What a user did wrong, said in one sentence."""


class UserError(Exception):
    """A mistake in the input, a setting or a file: the command prints its one sentence and exits with status 1.

    The sentence names the file, the line or the field, and the value.
    """
