"""Guessing keys is slow; having one is always fast, whatever others send."""

import time
from concurrent.futures import ThreadPoolExecutor

import requests

from tests.conftest import KEYS, MakeService, bearer


def test_the_right_key_passes_however_many_wrong_ones_come_from_its_address(
    make_service: MakeService,
) -> None:
    service = make_service("--workers", "1", "--threads", "4")
    until = time.monotonic() + 4

    def guess(number: int) -> set[int]:
        found = set()
        while time.monotonic() < until:
            wrong = {"Authorization": f"Bearer {KEYS['webhook']}{number}"}
            url = f"{service.url}/webhooks/braze"
            found.add(requests.post(url, json={}, headers=wrong, timeout=9).status_code)
        return found

    right = []
    with ThreadPoolExecutor(3) as pool:
        guesses = [pool.submit(guess, number) for number in range(3)]
        while time.monotonic() < until:
            answer = service.webhook(user_id="a", braze_campaign_id="c")
            right.append(answer.status_code)
            looked = requests.get(f"{service.url}/health", headers=bearer("admin"), timeout=9)
            right.append(looked.status_code)
    assert set(right) <= {200, 202}
    assert {202, 200} == set(right)
    assert set().union(*(one.result() for one in guesses)) == {401}
    assert service.log.read_text().count("auth_failed") <= 2
