"""The way out as an operator meets it: settings and `bridge check`."""

from pathlib import Path

import pytest
import trustme

from tests.app.test_cli import bridge
from tests.conftest import environment
from tests.network import Listener, server_context, through

OFFERS = ("SESSIONM_CONNECT_URL", "SESSIONM_CONNECT_AUTH", "SESSIONM_RETAILER_ID")


def core(url: str, folder: Path) -> dict[str, str]:
    """Settings of a bridge whose Core is at *url*, and that has neither Connect nor Braze."""
    others = dict.fromkeys((*OFFERS, "BRAZE_REST_URL", "BRAZE_REST_KEY"), "")
    return {**environment("http://127.0.0.1:9", folder), **others, "SESSIONM_CORE_URL": url}


@pytest.mark.parametrize("command", ["serve", "deliver", "check"])
def test_a_proxy_that_cannot_be_used_is_one_line(tmp_path: Path, command: str) -> None:
    proxy = "socks5://127.0.0.1:1080"
    ended = bridge(tmp_path, command, **core("https://core.test", tmp_path), HTTPS_PROXY=proxy)
    assert ended.returncode == 1
    output = ended.stdout + ended.stderr
    assert "HTTPS_PROXY" in output
    assert "Traceback" not in output
    assert command == "check" or len(ended.stderr.strip().splitlines()) == 1


def test_check_goes_the_way_that_the_file_names_and_says_so(tmp_path: Path) -> None:
    authority, bundle = trustme.CA(), tmp_path / "authority.pem"
    authority.cert_pem.write_to_path(str(bundle))
    context = server_context(authority.issue_cert("core.test"))
    with Listener(context=context) as server, Listener(through(server.port)) as proxy:
        url = f"http://ann:hunter2@127.0.0.1:{proxy.port}"
        (tmp_path / ".env").write_text(f"HTTPS_PROXY={url}\nSSL_CERT_FILE={bundle}\n")
        ended = bridge(tmp_path, "check", **core("https://core.test", tmp_path))
    assert ended.returncode == 0, ended.stdout
    assert "ok   SessionM Core: reachable" in ended.stdout
    way = f"http://127.0.0.1:{proxy.port} (HTTPS_PROXY)"
    assert f"ok   proxy: SessionM Core is reached through {way}" in ended.stdout
    assert "NO_PROXY=core.test would connect directly" in ended.stdout
    assert f"certificates are checked against {bundle} (SSL_CERT_FILE)" in ended.stdout
    assert "hunter2" not in ended.stdout


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_rendered_template_reaches_loopback_whatever_proxy_is_set(
    tmp_path: Path, host: str
) -> None:
    template = tmp_path / "message.liquid"
    with Listener() as server:
        url = f"http://{host}:{server.port}/"
        template.write_text(f"{{% connected_content {url} :save r %}}{{{{ r.status }}}}")
        arguments = ["--user-id", "ann", "--url", url, "--key", "a:b"]
        proxy = {"HTTP_PROXY": "http://127.0.0.1:9", "http_proxy": "http://127.0.0.1:9"}
        shown = bridge(tmp_path, "render", str(template), *arguments, **proxy)
    assert shown.stdout.strip() == "ok", shown.stderr
