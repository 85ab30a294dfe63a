"""Functions that several commands use."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import click

from bridge.application import build
from bridge.fields import FieldError
from bridge.intake.rules import RulesError
from bridge.parts import Parts
from bridge.settings import Settings, SettingsError, load
from bridge.storage.database import NewerSchemaError, NoDatabaseError, StoreUnavailableError

Command = TypeVar("Command", bound=Callable[..., None])

EXISTING_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
USER_MISTAKES = (SettingsError, RulesError, NewerSchemaError, FieldError)


def options(*several: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Return a decorator that adds *several* options to a command, in their order."""

    def add(command: Command) -> Command:
        for option in reversed(several):
            command = option(command)
        return command

    return add


@contextmanager
def one_line() -> Iterator[None]:
    """Report mistakes of the user in one line on stderr, without a traceback.

    Raises:
        click.ClickException: for `StoreUnavailableError` and each of `USER_MISTAKES`.
    """
    try:
        yield
    except NoDatabaseError as error:
        raise click.ClickException(
            f"{error}: run this where the bridge runs, or correct BRIDGE_DATABASE_URL"
        ) from None
    except StoreUnavailableError as error:
        raise click.ClickException(f"{error}; `bridge check` says what to do") from None
    except USER_MISTAKES as error:
        raise click.ClickException(str(error)) from None


def settings_from_environment() -> Settings:
    with one_line():
        return load()


@contextmanager
def connected() -> Iterator[Parts]:
    """Build the parts of the bridge by the settings, without delivery; close them at the end.

    Raises:
        SettingsError, RulesError, NewerSchemaError, StoreUnavailableError, NoDatabaseError: see
            `build`. No database is created.
    """
    # The command itself reports errors.
    logging.getLogger("bridge").handlers = [logging.NullHandler()]
    parts = build(load(), create=False)
    try:
        yield parts
    finally:
        parts.close()
