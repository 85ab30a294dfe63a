"""The application for gunicorn: `gunicorn app:app` under any of its workers.

`gunicorn -k bridge.web.worker.Worker app:asgi` is the same on an event loop, as `bridge serve`
runs it.
"""

import sys

from bridge import create_app
from bridge.database import NewerSchemaError
from bridge.intake.rules import RulesError
from bridge.settings import SettingsError
from bridge.web.asgi import Asgi

# gunicorn takes this exit status as "the application cannot be loaded" and stops, where any
# other would make it start workers for ever.
CANNOT_LOAD = 4

try:
    app = create_app()
except (SettingsError, RulesError, NewerSchemaError) as error:
    sys.stderr.write(f"bridge: {error}\n")
    sys.exit(CANNOT_LOAD)
asgi = Asgi(app)
