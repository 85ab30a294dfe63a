"""SessionM Connect: the offers of a customer."""

from werkzeug.wrappers import Request

from bridge.sandbox.customers import Customers, SandboxCustomer, made_up_id
from bridge.sandbox.messages import Body, Json, SandboxRefusedError, Text, Whole, read
from bridge.sandbox.routes import Names
from bridge.sandbox.seed import Catalogue


class _OffersQuery(Body):
    retailer_id: Text
    user_id: Text
    culture: Text = "en-US"
    skip: Whole = 0
    take: Whole = 1000


class Connect:
    def __init__(self, customers: Customers, catalogue: Catalogue, retailer_id: str) -> None:
        self._customers = customers
        self._catalogue = catalogue
        self._retailer_id = retailer_id

    def read_offers(self, request: Request, _: Names) -> Json:
        asked = read(request, _OffersQuery)
        if asked.retailer_id != self._retailer_id:
            raise SandboxRefusedError(
                200, "argument_error", "retailer_id: does not belong to this credential"
            )
        customer = self._customers.find({"user_id": asked.user_id})
        page = range(len(customer.offers))[asked.skip : asked.skip + asked.take]
        offers = [_issued(customer, number, asked.culture) for number in page]
        return {"payload": self._wallet(customer) | {"user_offers": offers}}

    def _wallet(self, customer: SandboxCustomer) -> Json:
        user = {"opted_in": False, "activated": False, "external_id": customer.external_id}
        groups = {offer["offer_group_id"] for offer in customer.offers}
        categories = {offer.get("offer_category_id") for offer in customer.offers}
        return {
            "user": user | customer.profile,
            "user_id": customer.user_id,
            "total_records": len(customer.offers),
            "offer_groups": [g for g in self._catalogue.groups if g["id"] in groups],
            "offer_categories": [c for c in self._catalogue.categories if c["id"] in categories],
            **customer.points,
        }


def _issued(customer: SandboxCustomer, number: int, culture: str) -> Json:
    """Return offer *number* of the wallet, in *culture* if the offer has this language."""
    offer = customer.offers[number]
    mine = {"user_offer_id": made_up_id(customer.user_id, number, offer["offer_id"])}
    shown = {key: value for key, value in offer.items() if key != "translations"}
    return {**mine, **shown, **offer.get("translations", {}).get(culture, {})}
