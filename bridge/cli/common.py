"""What the commands have in common."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import click

from bridge.database import NewerSchemaError, StoreUnavailableError
from bridge.fields import FieldError
from bridge.intake.rules import RulesError
from bridge.parts import Parts, build
from bridge.settings import Settings, SettingsError, load

USER_MISTAKES = (SettingsError, RulesError, NewerSchemaError, StoreUnavailableError, FieldError)


@contextmanager
def one_line() -> Iterator[None]:
    """End with one line on stderr, and no traceback, for what a user can mend."""
    try:
        yield
    except USER_MISTAKES as error:
        raise click.ClickException(str(error)) from None


def settings_from_environment() -> Settings:
    with one_line():
        return load()


@contextmanager
def connected() -> Iterator[Parts]:
    """The parts of the bridge that the settings describe, without delivery."""
    # What goes wrong is told by the command.
    logging.getLogger("bridge").handlers = [logging.NullHandler()]
    parts = build(load())
    try:
        yield parts
    finally:
        parts.close()
