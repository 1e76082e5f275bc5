"""The one exception that speaks to the person at the keyboard."""


class UserError(Exception):
    """Something the user can put right: a wrong path, flag, field or file.

    The message is one line that says what is wrong, where, and what to do. The command-line doors print it without a
    traceback and exit with status 2; from Python it is an ordinary exception.
    """
