"""The errors a user may meet; each message is one line: what was wrong, what was expected, what to do."""


class SqueezeError(Exception):
    """A request that cannot be served as it stands. The command line prints it and exits with code 2."""


class Unsupported(SqueezeError):  # noqa: N818 - it is an answer, not a mistake
    """A technique cannot do what was asked; the message says why and what would work."""


class IntegrityError(SqueezeError):
    """A file is not what its hash or its format promises: corrupt, truncated or replaced."""
