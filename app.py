"""The application for gunicorn: `gunicorn app:app` under any of its WSGI workers.

`gunicorn -k uvicorn_worker.UvicornWorker app:asgi` serves the same on an event loop.
"""

import sys

from bridge.application import create_app
from bridge.intake.rules import RulesError
from bridge.ops import files
from bridge.settings import SettingsError
from bridge.storage.database import NewerSchemaError
from bridge.web.asgi import Asgi

# gunicorn takes this exit status as "the application cannot be loaded" and stops, where any
# other would make it start workers for ever.
CANNOT_LOAD = 4

try:
    app = create_app()
except (SettingsError, RulesError, NewerSchemaError) as error:
    sys.stderr.write(f"bridge: {error}\n")
    sys.exit(CANNOT_LOAD)
files.raise_limit()
asgi = Asgi(app)
