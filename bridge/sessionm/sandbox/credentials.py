"""What the sandbox accepts in `Authorization`."""

from dataclasses import dataclass

from werkzeug.wrappers import Request


@dataclass(frozen=True)
class Credentials:
    """What the sandbox accepts; as made up as its customers."""

    core_key: str = "sandbox-key"
    core_secret: str = "sandbox-secret"  # noqa: S105 - known to everybody, protects nothing
    connect_user: str = "sandbox"
    connect_password: str = "sandbox-password"  # noqa: S105 - likewise
    retailer_id: str = "11111111-1111-4111-8111-111111111111"

    def environment(self, url: str) -> dict[str, str]:
        """Return the bridge's settings that make the sandbox at `url` its SessionM."""
        return {
            "SESSIONM_CORE_URL": url,
            "SESSIONM_CORE_KEY": self.core_key,
            "SESSIONM_CORE_SECRET": self.core_secret,
            "SESSIONM_CONNECT_URL": url,
            "SESSIONM_CONNECT_AUTH": f"{self.connect_user}:{self.connect_password}",
            "SESSIONM_RETAILER_ID": self.retailer_id,
        }

    def judge(self, request: Request, side: str) -> str:
        """Return whether its Authorization for `core` or `connect` is missing, wrong or ok."""
        if "Authorization" not in request.headers:
            return "missing"
        core = self.core_key, self.core_secret
        connect = self.connect_user, self.connect_password
        given = request.authorization
        good = given and (given.username, given.password) == (core if side == "core" else connect)
        return "ok" if good else "wrong"
