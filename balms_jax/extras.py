"""What a command says where the extra that it needs is not installed."""

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def needed(extra: str, task: str) -> Iterator[None]:
    """Ends the command with one line if a module that is imported within is not installed.

    Args:
        extra: of this package, which brings the module.
        task: what needs it, as the line begins.

    Raises:
        SystemExit: of exit code 1, with the line as its message.

    Example:
        >>> with needed('plots', 'the page'):
        ...     import no_such_library
        Traceback (most recent call last):
        SystemExit: balms_jax: the page needs the plots extra: pip install 'balms_jax[plots]' (no
            module named no_such_library)
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise SystemExit(
            f"balms_jax: {task} needs the {extra} extra: pip install 'balms_jax[{extra}]' "
            f'(no module named {(error.name or "").partition(".")[0]})'
        ) from None
