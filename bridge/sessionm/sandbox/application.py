"""The sandbox itself: a WSGI application, and the table of its routes."""

import functools
import re
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any
from wsgiref.types import StartResponse, WSGIEnvironment

from werkzeug.wrappers import Request, Response

from bridge.sessionm.sandbox.batch import Behaviour
from bridge.sessionm.sandbox.calls import Call, CallLog
from bridge.sessionm.sandbox.connect import Connect
from bridge.sessionm.sandbox.core import Core
from bridge.sessionm.sandbox.credentials import Credentials
from bridge.sessionm.sandbox.customers import Customers
from bridge.sessionm.sandbox.faults import Faults
from bridge.sessionm.sandbox.messages import Json, RefusedError, check, read_object, reply
from bridge.sessionm.sandbox.routes import Names, Route, Routes
from bridge.sessionm.sandbox.seed import Catalogue, GivenCustomer, Seed, load_seed, seeding


class Sandbox:
    """SessionM in memory: a WSGI application that many threads may call at once.

    `seed` is what `load_seed` returns (None: the built-in one). With `any_customer`
    every unknown identifier becomes a customer when it is first used. Raises SeedError.
    """

    def __init__(
        self,
        *,
        seed: Mapping[str, Any] | None = None,
        clock: Callable[[], float] = time.time,
        any_customer: bool = False,
        credentials: Credentials | None = None,
    ) -> None:
        self.credentials = credentials or Credentials()
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
            anybody = any_customer or given.any_customer
            self._customers = Customers(clock, newcomer if anybody else None)
            for customer in given.customers:
                self._customers.put(self._catalogue.customer(customer))
            if len(self._customers) < len(given.customers):
                raise ValueError("customers: a user_id stands there twice")
        self.customers = self._customers.summaries
        self.remove_customer = self._customers.remove
        self._core = Core(self._customers)
        self._routes = Routes([*self._sessionm_routes(), *self._own_routes()])

    def put_customer(self, given: Mapping[str, Any]) -> None:
        """Create or replace a customer, given as in the seed. Raises SeedError."""
        with seeding():
            self._customers.put(self._catalogue.customer(check(GivenCustomer, dict(given))))

    def tags(self, user_id: str) -> dict[str, int]:
        """Return a customer's living tags and counts. Raises ValueError if there is none."""
        return self._customers.counts({"user_id": user_id})

    def set_batches(self, given: Mapping[str, Any]) -> None:
        """Let batch jobs go wrong, as `Behaviour` says. Raises ValueError that names the key."""
        self._core.batch_behaviours.replace(check(Behaviour, dict(given)))

    def calls(
        self, method: str | None = None, match: str | None = None, since: float | None = None
    ) -> list[Json]:
        """Return what came in, oldest first; `match` is searched in "METHOD path"."""
        return [call.shown() for call in self._log.select(method, match, since)]

    # from the call to the answer

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        response = self._respond(Request(environ))
        response.headers["Server"] = "sessionm-sandbox"
        return response(environ, start_response)

    def _respond(self, request: Request) -> Response:
        path = request.environ["REQUEST_URI"].partition("?")[0]
        call = Call(self._clock(), request.method, path, request.get_data())
        try:
            route, names = self._routes.find(request.method, path)
        except RefusedError as refused:
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

    def _misbehave(self, route: Route, names: Names, request: Request, call: Call) -> Response:
        """Carry the call out as the faults that are set want it."""
        fault = self._faults.take(route.side, f"{call.method} {call.path}")
        perform = functools.partial(self._perform, route, names, request, call)
        return fault.around(perform, self._clock, writes=route.writes)

    def _perform(self, route: Route, names: Names, request: Request, call: Call) -> Response:
        try:
            self._authorize(route, names, call)
            response = reply({"status": "ok"} | (route.action(request, names) or {}))
        except RefusedError as refused:
            return refused.reply()
        except (ValueError, re.error) as error:
            return RefusedError(400, "argument_error", str(error)).reply()
        call.applied = route.writes
        return response

    def _authorize(self, route: Route, names: Names, call: Call) -> None:
        if route.side != "sandbox" and call.authorization != "ok":
            why = f"The Basic credential is {call.authorization}."
            raise RefusedError(401, "invalid_api_key", why)
        if names.get("api_key", self.credentials.core_key) != self.credentials.core_key:
            raise RefusedError(401, "invalid_api_key", "The key in the path is another one.")

    # the routes

    def _sessionm_routes(self) -> list[Route]:
        core = self._core
        connect = Connect(self._customers, self._catalogue, self.credentials.retailer_id)
        app = "/priv/v1/apps/:api_key"
        offers = "/offers/api/2.0/offers/get_user_offers"
        routes = [
            Route("POST", f"{app}/batch/tags", core.start_batch, "core", "batch"),
            Route("GET", f"{app}/batch/tags/:job_id", core.read_batch, "core", "batch"),
            Route("POST", offers, connect.read_offers, "connect", "offers"),
        ]
        for user in (f"{app}/users/:user_id", f"{app}/external/users/:external_id"):
            routes += [
                Route("POST", f"{user}/tags", core.write_tags, "core", "tags_write"),
                Route("GET", f"{user}/tags", core.read_tags, "core", "tags_read"),
                Route("GET", user, core.read_profile, "core", "profile"),
            ]
        return routes

    def _own_routes(self) -> list[Route]:
        return [
            Route("GET", "/", self._say_what_this_is),
            Route("GET", "/sandbox/faults", lambda *_: {"faults": self._faults.shown()}),
            Route("POST", "/sandbox/faults", self._replace_faults),
            Route("DELETE", "/sandbox/faults", self._replace_faults),
            Route("POST", "/sandbox/batches", lambda r, _: self.set_batches(read_object(r))),
            Route("GET", "/sandbox/calls", self._show_calls),
            Route("DELETE", "/sandbox/calls", lambda *_: self.clear_calls()),
            Route("GET", "/sandbox/customers", self._list_customers),
            Route("POST", "/sandbox/customers", lambda r, _: self.put_customer(read_object(r))),
            Route("DELETE", "/sandbox/customers/:user_id", self._remove_customer),
        ]

    def _say_what_this_is(self, *_: object) -> Json:
        about = "This is a stand-in for demonstrations and tests. It is not SessionM."
        return {"service": "sessionm-sandbox", "message": about, "routes": self._routes.listing()}

    def _replace_faults(self, request: Request, _: Names) -> Json:
        self.set_faults(read_object(request) if request.method == "POST" else {})
        return {"faults": self._faults.shown()}

    def _show_calls(self, request: Request, _: Names) -> Json:
        """Filters: method, match, since (Unix seconds), limit (only the latest)."""
        asked = request.args
        since = float(asked["since"]) if "since" in asked else None
        calls = self._log.select(asked.get("method"), asked.get("match"), since)
        latest = calls[max(0, len(calls) - int(asked.get("limit", len(calls)))) :]
        shown = [call.shown() for call in latest]
        return {"calls": shown, "count": len(calls), "counts": self.counts()}

    def _list_customers(self, *_: object) -> Json:
        """List the first thousand: with any_customer there may be millions."""
        return {"customers": self.customers(1000), "count": len(self._customers)}

    def _remove_customer(self, _: Request, names: Names) -> None:
        if not self.remove_customer(names["user_id"]):
            raise RefusedError(404, "user_not_found", "There is no such customer.")
