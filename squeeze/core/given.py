"""Read the files that a user gives: whatever is wrong with them is said in one line that names them."""

from pathlib import Path

from squeeze.core.errors import IntegrityError, SqueezeError
from squeeze.core.files import read_small


def read_given(path: Path, most: int) -> bytes:
    """Return the content of a regular file of at most ``most`` bytes, as ``read_small`` does.

    Raises SqueezeError, with the path and what was expected, for what that refuses or cannot find.
    """
    try:
        return read_small(path, most)
    except IntegrityError as error:
        raise SqueezeError(f"{path} {error}; put such a file in its place") from error
    except OSError as error:
        reason = "is a link to nothing" if path.is_symlink() else f"cannot be read ({error.strerror or error})"
        raise SqueezeError(f"{path} {reason}, expected a file; make it one, or name another") from error
