"""The customer of an event or a lookup."""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from bridge.fields import FieldError, identifier

CustomerKind = Literal["user_id", "external_id"]
CUSTOMER_KINDS: tuple[CustomerKind, ...] = ("user_id", "external_id")
# The customer of the sandbox in examples.
DEMO_USER_ID = "a3f1c2d4-0b5e-4c6f-8a71-92b3c4d5e601"


class Customer(NamedTuple):
    """A SessionM customer, by the ID in SessionM or the ID in the retailer's system."""

    kind: CustomerKind
    id: str

    @property
    def key(self) -> str:
        """The customer as text, ``user_id:…`` or ``external_id:…``, for columns and logs."""
        return f"{self.kind}:{self.id}"

    @property
    def ids(self) -> dict[str, str]:
        """The customer as JSON: ``{"user_id": "…"}``."""
        return {self.kind: self.id}

    @property
    def of_other_kind(self) -> "Customer":
        """The customer whose identifier of the other kind has the same text."""
        return Customer("external_id" if self.kind == "user_id" else "user_id", self.id)

    @classmethod
    def of_sessionm(cls, key: str | None) -> "Customer | None":
        """Return the customer of a *key*; ``None`` if it is empty or an identifier of Braze."""
        kind, _, customer_id = (key or "").partition(":")
        return cls.from_key(key or "") if kind in CUSTOMER_KINDS and customer_id else None

    @classmethod
    def from_key(cls, key: str) -> "Customer":
        kind, _, customer_id = key.partition(":")
        return cls("user_id" if kind == "user_id" else "external_id", customer_id)


def ids_of_key(key: str | None) -> dict[str, str]:
    """Return a key as JSON, also that of an identifier of Braze: ``{"email": "…"}``."""
    kind, _, value = (key or "").partition(":")
    return {kind: value} if value else {}


def read_identifier(kind: str, value: object, field: str, *, in_quotes: bool = False) -> Customer:
    """Read the identifier of one customer. *in_quotes*: see `identifier`.

    Raises:
        FieldError: *kind* is no `CustomerKind`; or as `identifier`, or the value names no customer.
    """
    if kind not in CUSTOMER_KINDS:
        raise FieldError("kind", "must be user_id or external_id")
    found = identifier(value, field, in_quotes=in_quotes)
    if found is None:
        raise FieldError(field, "is missing or a word for no value")
    return Customer("user_id" if kind == "user_id" else "external_id", found)


def named_customers(fields: Mapping[str, Any], where: str = "") -> list[Customer]:
    """Return the customers in ``user_id`` and ``external_id``; *where* is for messages.

    Raises:
        FieldError: an identifier is invalid.
    """
    return [
        Customer(kind, found)
        for kind in CUSTOMER_KINDS
        if (found := identifier(fields.get(kind), f"{where}{kind}"))
    ]
