"""SessionM Core: tags, profiles, batch jobs."""

import itertools
import threading
from typing import Annotated

from pydantic import Field
from werkzeug.wrappers import Request

from bridge.sandbox.batch import Behaviours, Order, Row, SandboxJob, seconds
from bridge.sandbox.customers import Customers
from bridge.sandbox.messages import Body, Count, Json, SandboxRefusedError, Text, read
from bridge.sandbox.routes import Names


class _TagWrite(Body):
    tags: Annotated[list[Text], Field(min_length=1)]
    ttl: Count = 0


class _Batch(Body):
    tags: Order


class Core:
    def __init__(self, customers: Customers) -> None:
        self._customers = customers
        self._jobs: dict[str, SandboxJob] = {}
        self._numbers = itertools.count(1)
        self.batch_behaviours = Behaviours()

    def write_tags(self, request: Request, ids: Names) -> Json:
        given = read(request, _TagWrite)
        return {"tags": self._customers.tag(ids, given.tags, given.ttl)}

    def read_tags(self, _: Request, ids: Names) -> Json:
        return {"tags": self._customers.counts(ids)}

    def read_profile(self, request: Request, ids: Names) -> Json:
        """Answer with the fields that real profiles have in common (assumed)."""
        customer = self._customers.find(ids)
        user: Json = {"id": customer.user_id, "external_id": customer.external_id}
        user |= {"opted_in": True, "activated": True, "suspended": False}
        user["available_points"] = customer.points["available_points"]
        # By a user ID, further fields must be asked for.
        is_whole = "external_id" in ids or request.args.get("user[user_profile]") == "true"
        return {"user": user | (customer.profile if is_whole else {})}

    def start_batch(self, request: Request, _: Names) -> Json:
        job = SandboxJob(next(self._numbers), read(request, _Batch).tags)
        job.behaviour = self.batch_behaviours.take()
        self._jobs[str(job.id)] = job
        receipt = job.receipt()
        threading.Thread(target=job.run, args=[self._tag_row], daemon=True).start()
        return {"tags": receipt}

    def read_batch(self, _: Request, ids: Names) -> Json:
        """Return a job. No document describes this call: it is assumed, like the row counts."""
        if job := self._jobs.get(ids["job_id"]):
            return {"tags": job.as_json()}
        raise SandboxRefusedError(404, "not_found", "There is no such job.")

    def _tag_row(self, row: Row) -> None:
        """Apply a row of a batch file. Raises ValueError."""
        ttl = seconds(row.get("expires", ""))
        if not row["tag"]:
            raise ValueError("the tag is blank")
        self._customers.tag(row, [row["tag"]], ttl)
