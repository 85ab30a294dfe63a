"""The credentials that the sandbox accepts in `Authorization`."""

from dataclasses import dataclass

from werkzeug.wrappers import Request


@dataclass(frozen=True)
class Credentials:
    """The accepted credentials, which are invented."""

    core_key: str = "sandbox-key"
    core_secret: str = "sandbox-secret"  # noqa: S105 - public, protects nothing
    connect_user: str = "sandbox"
    connect_password: str = "sandbox-password"  # noqa: S105 - likewise
    braze_key: str = "sandbox-braze-key"
    retailer_id: str = "11111111-1111-4111-8111-111111111111"

    def environment(self, url: str) -> dict[str, str]:
        """Return the settings with which the bridge uses the sandbox at `url` for both sides."""
        return {
            "SESSIONM_CORE_URL": url,
            "SESSIONM_CORE_KEY": self.core_key,
            "SESSIONM_CORE_SECRET": self.core_secret,
            "SESSIONM_CONNECT_URL": url,
            "SESSIONM_CONNECT_AUTH": f"{self.connect_user}:{self.connect_password}",
            "SESSIONM_RETAILER_ID": self.retailer_id,
            "BRAZE_REST_URL": url,
            "BRAZE_REST_KEY": self.braze_key,
        }

    def judge(self, request: Request, side: str) -> str:
        """Return "missing", "wrong" or "ok" for the Authorization of `side`."""
        if "Authorization" not in request.headers:
            return "missing"
        if side == "braze":
            return (
                "ok" if request.headers["Authorization"] == f"Bearer {self.braze_key}" else "wrong"
            )
        core = self.core_key, self.core_secret
        connect = self.connect_user, self.connect_password
        given = request.authorization
        good = given and (given.username, given.password) == (core if side == "core" else connect)
        return "ok" if good else "wrong"
