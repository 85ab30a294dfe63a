"""The sandbox's WSGI application and its routes."""

import functools
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any
from wsgiref.types import StartResponse, WSGIEnvironment

from werkzeug.wrappers import Request, Response

from bridge import clock
from bridge.sandbox.batch import Behaviour
from bridge.sandbox.braze import Trigger, in_brazes_shape
from bridge.sandbox.calls import CallLog, RecordedCall
from bridge.sandbox.connect import Connect
from bridge.sandbox.core import Core
from bridge.sandbox.credentials import Credentials
from bridge.sandbox.customers import Customers
from bridge.sandbox.faults import Faults
from bridge.sandbox.messages import Json, SandboxRefusedError, check, read_object, reply
from bridge.sandbox.routes import Names, Routes, SandboxRoute
from bridge.sandbox.seed import Catalogue, GivenCustomer, Seed, load_seed, seeding


class Sandbox:
    """SessionM and a part of Braze in memory: a thread-safe WSGI application.

    Args:
        seed: the result of `load_seed`; ``None``: the built-in seed.
        clock: returns seconds since the epoch.
        any_customer: whether an unknown identifier becomes a customer when first used.
        credentials: the accepted credentials.

    Raises:
        SeedError: the seed cannot be used.
    """

    def __init__(
        self,
        *,
        seed: Mapping[str, Any] | None = None,
        clock: Callable[[], float] = clock.wall,
    ) -> None:
        self.credentials = Credentials()
        self._clock = clock
        self._log = CallLog()
        self.counts = self._log.counts
        self.clear_calls = self._log.clear
        self._faults = Faults()
        self.set_faults = self._faults.replace
        with seeding():
            given = check(Seed, dict(load_seed() if seed is None else seed))
            self._catalogue = Catalogue(given, clock())
            newcomer = self._catalogue.like(given.new_customer, "new")
            self._customers = Customers(clock, newcomer if given.any_customer else None)
            for customer in given.customers:
                self._customers.put(self._catalogue.customer(customer))
            if len(self._customers) < len(given.customers):
                raise ValueError("customers: a user_id is there twice")
        self.customers = self._customers.summaries
        self.remove_customer = self._customers.remove
        self.add_external_id = self._customers.add_external_id
        self._core = Core(self._customers)
        self.braze = Trigger(self.credentials.braze_key, clock)
        self._routes = Routes(
            [*self._sessionm_routes(), *self._braze_routes(), *self._own_routes()]
        )

    def put_customer(self, given: Mapping[str, Any]) -> None:
        """Create or replace a customer, given as in the seed. Raises SeedError."""
        with seeding():
            self._customers.put(self._catalogue.customer(check(GivenCustomer, dict(given))))

    def award(self, user_id: str, offer: Mapping[str, Any]) -> None:
        """Award an offer, given as in the seed, to a customer. Raises SeedError."""
        with seeding():
            self._customers.award(user_id, self._catalogue.offer(offer, user_id))

    def tags(self, user_id: str) -> dict[str, int]:
        """Return a customer's live tags and counts. Raises ValueError for an unknown customer."""
        return self._customers.counts({"user_id": user_id})

    def set_batches(self, given: Mapping[str, Any]) -> None:
        """Set how batch jobs fail, see `Behaviour`. Raises ValueError that names the key."""
        self._core.batch_behaviours.replace(check(Behaviour, dict(given)))

    def calls(
        self, method: str | None = None, match: str | None = None, since: float | None = None
    ) -> list[Json]:
        """Return the received calls, oldest first; `match` is searched in "METHOD path"."""
        return [call.as_json() for call in self._log.select(method, match, since)]

    # from the call to the answer

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        response = self._respond(Request(environ))
        response.headers["Server"] = "sessionm-sandbox"
        return response(environ, start_response)

    def _respond(self, request: Request) -> Response:
        path = request.environ["REQUEST_URI"].partition("?")[0]
        call = RecordedCall(self._clock(), request.method, path, request.get_data())
        try:
            route, names = self._routes.find(request.method, path)
        except SandboxRefusedError as refused:
            self._log.add(call)
            response = refused.reply()
        else:
            if route.side == "sandbox":
                return self._perform(route, names, request, call)
            call.authorization = self.credentials.judge(request, route.side)
            self._log.add(call, route.kind)
            response = self._misbehave(route, names, request, call)
        call.status, call.answered_at = response.status_code, self._clock()
        return response

    def _misbehave(
        self, route: SandboxRoute, names: Names, request: Request, call: RecordedCall
    ) -> Response:
        """Perform the call with the first matching fault."""
        fault = self._faults.take(route.side, f"{call.method} {call.path}")
        perform = functools.partial(self._perform, route, names, request, call)
        response = fault.around(perform, self._clock, writes=route.writes)
        return in_brazes_shape(response) if route.side == "braze" else response

    def _perform(
        self, route: SandboxRoute, names: Names, request: Request, call: RecordedCall
    ) -> Response:
        try:
            self._authorize(route, names, call)
            answer = route.action(request, names) or {}
            response = answer if isinstance(answer, Response) else reply({"status": "ok"} | answer)
        except SandboxRefusedError as refused:
            return refused.reply()
        except (ValueError, re.error) as error:
            return SandboxRefusedError(400, "argument_error", str(error)).reply()
        call.applied = route.writes and response.status_code < 400
        return response

    def _authorize(self, route: SandboxRoute, names: Names, call: RecordedCall) -> None:
        if route.side == "braze":
            # Braze refuses in a shape of its own.
            return
        if route.side != "sandbox" and call.authorization != "ok":
            why = f"The Basic credential is {call.authorization}."
            raise SandboxRefusedError(401, "invalid_api_key", why)
        if names.get("api_key", self.credentials.core_key) != self.credentials.core_key:
            raise SandboxRefusedError(401, "invalid_api_key", "The key in the path is another one.")

    # the routes

    def _sessionm_routes(self) -> list[SandboxRoute]:
        core = self._core
        connect = Connect(self._customers, self._catalogue, self.credentials.retailer_id)
        app = "/priv/v1/apps/:api_key"
        offers = "/offers/api/2.0/offers/get_user_offers"
        routes = [
            SandboxRoute("POST", f"{app}/batch/tags", core.start_batch, "core", "batch"),
            SandboxRoute("GET", f"{app}/batch/tags/:job_id", core.read_batch, "core", "batch"),
            SandboxRoute("POST", offers, connect.read_offers, "connect", "offers"),
        ]
        for user in (f"{app}/users/:user_id", f"{app}/external/users/:external_id"):
            routes += [
                SandboxRoute("POST", f"{user}/tags", core.write_tags, "core", "tags_write"),
                SandboxRoute("GET", f"{user}/tags", core.read_tags, "core", "tags_read"),
                SandboxRoute("GET", user, core.read_profile, "core", "profile"),
            ]
        return routes

    def _braze_routes(self) -> list[SandboxRoute]:
        trigger = self.braze
        return [
            SandboxRoute("POST", "/campaigns/trigger/send", trigger.campaign, "braze", "trigger"),
            SandboxRoute("POST", "/canvas/trigger/send", trigger.canvas, "braze", "trigger"),
        ]

    def _own_routes(self) -> list[SandboxRoute]:
        return [
            SandboxRoute("GET", "/", self._say_what_this_is),
            SandboxRoute("GET", "/sandbox/faults", lambda *_: {"faults": self._faults.as_json()}),
            SandboxRoute("POST", "/sandbox/faults", self._replace_faults),
            SandboxRoute("DELETE", "/sandbox/faults", self._replace_faults),
            SandboxRoute("POST", "/sandbox/batches", lambda r, _: self.set_batches(read_object(r))),
            SandboxRoute("POST", "/sandbox/braze", lambda r, _: self.braze.replace(read_object(r))),
            SandboxRoute("GET", "/sandbox/messages", lambda *_: {"messages": self.braze.sent()}),
            SandboxRoute("GET", "/sandbox/calls", self._show_calls),
            SandboxRoute("DELETE", "/sandbox/calls", lambda *_: self.clear_calls()),
            SandboxRoute("GET", "/sandbox/customers", self._list_customers),
            SandboxRoute(
                "POST", "/sandbox/customers", lambda r, _: self.put_customer(read_object(r))
            ),
            SandboxRoute("DELETE", "/sandbox/customers/:user_id", self._remove_customer),
            SandboxRoute(
                "POST",
                "/sandbox/customers/:user_id/offers",
                lambda r, names: self.award(names["user_id"], read_object(r)),
            ),
        ]

    def _say_what_this_is(self, *_: object) -> Json:
        about = "This is a stand-in for demonstrations and tests. It is neither SessionM nor Braze."
        return {"service": "sessionm-sandbox", "message": about, "routes": self._routes.listing()}

    def _replace_faults(self, request: Request, _: Names) -> Json:
        self.set_faults(read_object(request) if request.method == "POST" else {})
        return {"faults": self._faults.as_json()}

    def _show_calls(self, request: Request, _: Names) -> Json:
        """Filters: method, match, since (Unix seconds), limit (only the latest)."""
        asked = request.args
        since = float(asked["since"]) if "since" in asked else None
        calls = self._log.select(asked.get("method"), asked.get("match"), since)
        latest = calls[max(0, len(calls) - int(asked.get("limit", len(calls)))) :]
        return {
            "calls": [call.as_json() for call in latest],
            "count": len(calls),
            "counts": self.counts(),
        }

    def _list_customers(self, *_: object) -> Json:
        """List the first thousand: with any_customer there may be millions."""
        return {"customers": self.customers(1000), "count": len(self._customers)}

    def _remove_customer(self, _: Request, names: Names) -> None:
        if not self.remove_customer(names["user_id"]):
            raise SandboxRefusedError(404, "user_not_found", "There is no such customer.")
