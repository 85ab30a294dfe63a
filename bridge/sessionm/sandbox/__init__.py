"""A stand-in for SessionM, for demonstrations and tests. It is not SessionM.

It keeps customers, tags, wallets and batch jobs in memory, answers over HTTP as the
Tags API and the Connect offers API do, and misbehaves on demand: `POST /sandbox/faults`.
What SessionM's public documents leave open is marked "assumed".
"""

from bridge.sessionm.sandbox.application import Sandbox
from bridge.sessionm.sandbox.credentials import Credentials
from bridge.sessionm.sandbox.seed import SeedError, load_seed
from bridge.sessionm.sandbox.server import SandboxServer, run, serve

__all__ = ["Credentials", "Sandbox", "SandboxServer", "SeedError", "load_seed", "run", "serve"]
