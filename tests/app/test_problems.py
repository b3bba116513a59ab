"""The pages of error codes, as a caller without a key finds them."""

from __future__ import annotations

import re

import httpx

from app.problems.codes import CODES
from tests.app.test_every_endpoint import check_problem


async def test_the_type_of_an_error_leads_to_its_page(anonymous: httpx.AsyncClient) -> None:
    document = check_problem(await anonymous.get("/datasets"))
    page = (await anonymous.get(document["type"])).json()
    assert (page["code"], page["status"], page["title"]) == ("unauthenticated", 401, document["title"])
    assert "Bearer" in page["remedy"]


async def test_every_code_has_a_page_for_programs_and_one_for_people(anonymous: httpx.AsyncClient) -> None:
    listed = (await anonymous.get("/problems")).json()["data"]
    assert [kind["code"] for kind in listed] == list(CODES)
    for kind in listed:
        assert (await anonymous.get(f"/problems/{kind['code']}")).json() == kind
        response = await anonymous.get(f"/problems/{kind['code']}", headers={"Accept": "text/html"})
        assert response.headers["content-type"] == "text/html; charset=utf-8"
        assert response.headers["vary"] == "Accept"
        assert f"<h1>{kind['title']}</h1>" in response.text
        assert "`" not in response.text
        assert re.findall(r"{\w*}", response.text) == []


async def test_an_unknown_code_is_not_found_and_not_echoed(anonymous: httpx.AsyncClient) -> None:
    response = await anonymous.get("/problems/jane.doe", headers={"Accept": "text/html"})
    assert check_problem(response)["code"] == "not_found"
    assert "jane" not in response.text
