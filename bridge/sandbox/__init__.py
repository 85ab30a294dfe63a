"""A stand-in for SessionM, for demonstrations and tests. It is not SessionM.

The sandbox keeps customers, tags, wallets and batch jobs in memory, implements the Tags API and
the Connect offers API over HTTP, and injects faults: `POST /sandbox/faults`. Behaviour that
SessionM's public documents do not describe is marked "assumed".
"""

from bridge.sandbox.application import Sandbox
from bridge.sandbox.credentials import Credentials
from bridge.sandbox.seed import SeedError, load_seed
from bridge.sandbox.server import SandboxServer, run, serve

__all__ = ["Credentials", "Sandbox", "SandboxServer", "SeedError", "load_seed", "run", "serve"]
