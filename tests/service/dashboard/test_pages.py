"""The pages without a browser: who gets in, what the headers say, and that nothing leaks."""

import re

import pytest

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)

PAGES = ["/", "/jobs/job_01m7wwagpfqed9v2t28gt0kwvd"]


@pytest.fixture
def http(service):
    service.http.follow_redirects = False
    return service.http


@pytest.fixture
def token(service) -> str:
    return service.user["Authorization"].removeprefix("Bearer ")


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("cookie", [None, "rl_user_wrong"])
def test_without_a_valid_token_a_page_leads_to_the_login(http, page, cookie):
    if cookie:
        http.cookies.set("roadless_token", cookie)
    answer = http.get(page)
    assert answer.status_code == 303
    assert answer.headers["location"].startswith("/login")


def test_the_runners_token_does_not_open_the_dashboard(http, service):
    token = service.runner["Authorization"].removeprefix("Bearer ")
    assert http.post("/login", data={"token": token}).status_code == 401


def test_the_login_sets_a_cookie_that_scripts_and_other_sites_cannot_use(http, token):
    answer = http.post("/login", data={"token": f" {token}\n"})
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    cookie = answer.headers["set-cookie"]
    assert cookie.startswith(f"roadless_token={token};")
    assert {"HttpOnly", "SameSite=strict", "Path=/"} <= set(cookie.split("; "))
    assert http.get("/").status_code == 200
    assert http.get("/v1/jobs").status_code == 200


def test_the_cookie_is_secure_behind_https(http, token):
    answer = http.post("https://testserver/login", data={"token": token})
    assert "Secure" in answer.headers["set-cookie"].split("; ")


def test_the_cookie_looks_but_does_not_touch(http, token, digits_spec):
    http.post("/login", data={"token": token})
    assert http.post("/v1/jobs", json=digits_spec).status_code == 401


@pytest.mark.parametrize(("given", "said"), [("nonsense", "not a valid"), ("", "Paste your token")])
def test_a_wrong_token_asks_again_and_sets_nothing(http, given, said):
    answer = http.post("/login", data={"token": given})
    assert answer.status_code == 401
    assert said in answer.text
    assert "set-cookie" not in answer.headers


def test_the_login_says_where_the_token_is_but_not_what_it_is(http, settings, token):
    answer = http.get("/login")
    assert str(settings.home_dir / "user.token") in answer.text
    assert token not in answer.text


def test_the_login_leads_back_to_the_page_that_was_asked_for(http, token):
    location = http.get(PAGES[1]).headers["location"]
    assert location in http.get(location).text
    answer = http.post(location, data={"token": token})
    assert answer.headers["location"] == PAGES[1]


@pytest.mark.parametrize(
    "target", ["https://evil.example/", "//evil.example/", "/\\evil.example", "/v1/jobs"]
)
def test_the_login_leads_nowhere_else(http, token, target):
    answer = http.post("/login", params={"next": target}, data={"token": token})
    assert answer.status_code == 422


def test_signing_out_forgets_the_cookie(http, token):
    http.post("/login", data={"token": token})
    http.post("/logout")
    assert http.get("/").status_code == 303


@pytest.mark.parametrize("page", ["/login", *PAGES])
def test_pages_allow_no_inline_code_and_carry_none(http, token, page):
    http.post("/login", data={"token": token})
    answer = http.get(page)
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert not re.search(r"<script(?![^>]* src=)|\sstyle=|\son\w+=|<style", answer.text)


@pytest.mark.parametrize("page", ["/login", *PAGES])
def test_everything_that_a_page_names_is_served_and_revalidated(http, token, page):
    http.post("/login", data={"token": token})
    names = re.findall(r'(?:src|href)="(/static/[^"]+)"', http.get(page).text)
    assert names
    for name in names:
        answer = http.get(name)
        assert answer.status_code == 200
        assert answer.headers["cache-control"] == "no-cache"
        etag = {"If-None-Match": answer.headers["etag"]}
        assert http.get(name, headers=etag).status_code == 304


def test_the_vendored_chart_library_carries_its_licence(http):
    assert "MIT License" in http.get("/static/vendor/uplot.LICENSE").text


def test_no_file_outside_the_static_folder_is_served(http):
    for name in ("../pages.py", "%2e%2e/pages.py", "..%2fpages.py"):
        assert http.get(f"/static/{name}").status_code == 404


def test_a_path_that_is_no_job_is_only_echoed_escaped(http, token):
    http.post("/login", data={"token": token})
    answer = http.get("/jobs/%22%3E%3Cscript%3E")
    assert "<script>" not in answer.text
