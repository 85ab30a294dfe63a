"""Whom an event or a lookup is about."""

from typing import Literal, NamedTuple

CustomerKind = Literal["user_id", "external_id"]


class Customer(NamedTuple):
    """A SessionM customer by SessionM's own id or by the id of the retailer's system."""

    kind: CustomerKind
    id: str

    @property
    def key(self) -> str:
        """The customer as one text, ``user_id:…`` or ``external_id:…``, for columns."""
        return f"{self.kind}:{self.id}"

    @property
    def ids(self) -> dict[str, str]:
        """The customer as JSON shows it: ``{"user_id": "…"}``."""
        return {self.kind: self.id}

    @classmethod
    def from_key(cls, key: str) -> "Customer":
        kind, _, customer_id = key.partition(":")
        return cls("user_id" if kind == "user_id" else "external_id", customer_id)
