"""A fleet's databases, and the application in this process beside real services."""

from collections.abc import Iterator

import pytest

from tests.app.conftest import compiled_templates as compiled_templates  # noqa: PLC0414
from tests.app.conftest import described as described  # noqa: PLC0414 - fixtures of these tests too
from tests.app.conftest import make_app as make_app  # noqa: PLC0414
from tests.postgres import Proxy, fresh_database


@pytest.fixture
def database() -> Iterator[str]:
    with fresh_database() as url:
        yield url


@pytest.fixture
def proxy(database: str) -> Iterator[Proxy]:
    """The way to the database of one machine out of several."""
    proxy = Proxy(database)
    yield proxy
    proxy.close()
