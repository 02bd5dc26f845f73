"""The command line: its flags, and the part of ``--config FILE:name=value`` after the colon."""

import re
import sys
from typing import Any

from absl import flags

from balms_jax.training.recipe import ConfigError


def parse(text: str, **defaults: Any) -> dict[str, Any]:
    """Reads ``name=value`` pairs, each of the type of its default.

    Args:
        text: pairs separated by commas; may be empty.
        **defaults: every name with its default, a string, number or bool.

    Returns:
        All names with their values.

    Raises:
        ConfigError: for an unknown name or a value of another type.

    Example:
        >>> parse('imbalance_factor=200', method='balms', imbalance_factor=100.0)
        {'method': 'balms', 'imbalance_factor': 200.0}
    """
    values = dict(defaults)
    for pair in filter(None, text.split(',')):
        name, equals, value = pair.partition('=')
        if not equals or name not in defaults:
            raise ConfigError(
                f'config argument: got {pair!r}, wanted name=value with a name of '
                f'{", ".join(defaults)}'
            )
        try:
            values[name] = type(defaults[name])(value)
        except ValueError:
            wanted = type(defaults[name]).__name__
            raise ConfigError(f'config argument {name}: got {value!r}, wanted {wanted}') from None
    return values


def parse_flags(arguments: list[str]) -> list[str]:
    """Reads the flags; a mistake in them or in the config is one line, not a traceback.

    Args:
        arguments: the program's name and what follows it.

    Returns:
        What is no flag, the name first.

    Raises:
        SystemExit: of exit code 2, after the line.
    """
    try:
        rest = list(flags.FLAGS(arguments))
        if flags.FLAGS.config is not None:
            flags.FLAGS.config.keys()  # That its file is not there is raised when it is read.
        return rest
    except (flags.Error, AttributeError, KeyError, OSError, TypeError, ValueError) as error:
        # What is raised inside a config file comes wrapped, with its traceback as text; the
        # KeyError of a key that the config does not have comes in an AttributeError.
        inner = error.args[0] if isinstance(error, AttributeError) and error.args else error
        told = _unknown_key(arguments, inner) if isinstance(inner, KeyError) else error
        lines = str(told).strip().splitlines()
        causes = [line for line in lines if 'Error: ' in line] or [' '.join(lines)]
        if isinstance(error, OSError):
            causes = [f'--config: {lines[-1].strip()}']
        print(re.sub(r'^(\w+\.)+(?=\w+Error: )', '', causes[-1].strip()), file=sys.stderr)
        sys.exit(2)


def _unknown_key(arguments: list[str], error: KeyError) -> object:
    """What ml_collections says of a key that the config does not have, with the flag's name."""
    told = str(error.args[0]) if error.args else str(error)
    key, _, hint = told.strip().partition('\n')
    key = key.strip('\'"')
    for flag in (argument.partition('=')[0] for argument in arguments[1:]):
        if flag.startswith('--config.') and key in flag.split('.'):
            return f'{flag}: the config has no key {key!r}' + (f'. {hint}' if hint else '')
    return told
