"""The pages and the login: paste the token once, keep it in a cookie that scripts cannot read."""

import logging
import os
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Form, Query, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse
from fastapi.templating import Jinja2Templates
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from roadless.service.auth import store
from roadless.service.auth.dependencies import COOKIE
from roadless.service.auth.tokens import Audience
from roadless.service.contract.ids import PATTERN_TAIL
from roadless.service.dashboard import vendor
from roadless.service.db.session import Database
from roadless.service.http.dependencies import AppSettings, Db
from roadless.service.http.middleware import takes_up_to
from roadless.service.http.routing import GuardedRoute

log = logging.getLogger(__name__)


class Assets(StaticFiles):
    """Static files with ``Cache-Control: no-cache``: answered with 304 while they are the same."""

    def file_response(
        self,
        full_path: str | os.PathLike[str],
        stat_result: os.stat_result,
        scope: Scope,
        status_code: int = 200,
    ) -> Response:
        """The file, or 304."""
        response = super().file_response(full_path, stat_result, scope, status_code)
        response.headers["cache-control"] = "no-cache"
        return response


#: The form of the login, which anybody may send.
MAX_LOGIN_BYTES = 4096
COOKIE_SECONDS = 30 * 24 * 3600

_HERE = Path(__file__).parent
_JOB_ID = f"job_{PATTERN_TAIL}"
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    )
}

router = APIRouter(route_class=GuardedRoute, tags=["dashboard"])
_templates = Jinja2Templates(_HERE / "templates")

_HTML: dict[str, Any] = {"content": {"text/html": {"schema": {"type": "string"}}}}
_NOT_VALID: dict[int | str, Any] = {401: {"description": "the login again", **_HTML}}
_TO_LOGIN: dict[int | str, Any] = {303: {"description": "to the login"}}

#: Where to go after the login: one of our own pages and nowhere else.
Next = Annotated[str, Query(pattern=f"^/(jobs/{_JOB_ID})?$")]


def mount(app: FastAPI) -> None:
    """Add the pages and their static files to the app; warn if the chart library is missing."""
    problem = vendor.problem()
    if problem:
        log.warning("the dashboard has no charts: %s", problem)
    app.include_router(router)
    app.mount("/static", Assets(directory=_HERE / "static"), name="static")


def _opens(db: Database, token: str) -> bool:
    with db.read() as session:
        return store.project_of_token(session, token, Audience.USER) is not None


def _is_signed_in(request: Request, db: Db) -> bool:
    return _opens(db, request.cookies.get(COOKIE, ""))


SignedIn = Annotated[bool, Depends(_is_signed_in)]


@router.get("/login", response_class=HTMLResponse)
def login_page(request: Request, settings: AppSettings, next: Next = "/") -> Response:
    """Ask for the token, and say where to find it."""
    return _login(request, settings.home_dir, next=next)


@router.post("/login", status_code=303, response_class=RedirectResponse, responses=_NOT_VALID)
@takes_up_to(MAX_LOGIN_BYTES)
def login(
    request: Request,
    db: Db,
    settings: AppSettings,
    token: Annotated[str, Form(max_length=200)] = "",
    next: Next = "/",
) -> Response:
    """Set the cookie when the token opens something; otherwise ask again."""
    token = token.strip()
    if not _opens(db, token):
        message = "This is not a valid user token." if token else "Paste your token first."
        return _login(request, settings.home_dir, next=next, message=message, status=401)
    answer = RedirectResponse(next, status_code=303)
    answer.set_cookie(
        COOKIE,
        token,
        max_age=COOKIE_SECONDS,
        httponly=True,
        samesite="strict",
        secure=request.url.scheme == "https",
    )
    return answer


@router.post("/logout", status_code=303, response_class=RedirectResponse)
def logout() -> Response:
    """Forget the token in this browser."""
    answer = RedirectResponse("/login", status_code=303)
    answer.delete_cookie(COOKIE, httponly=True, samesite="strict")
    return answer


@router.get("/", response_class=HTMLResponse, responses=_TO_LOGIN)
def jobs_page(request: Request, is_signed_in: SignedIn) -> Response:
    """The list of jobs."""
    if not is_signed_in:
        return RedirectResponse("/login", status_code=303)
    return _page(request, "jobs.html")


@router.get("/jobs/{job_id}", response_class=HTMLResponse, responses=_TO_LOGIN)
def job_page(job_id: str, request: Request, is_signed_in: SignedIn) -> Response:
    """One job: progress, curves, checkpoints, events, specification."""
    if not is_signed_in:
        return RedirectResponse(f"/login?next=/jobs/{job_id}", status_code=303)
    return _page(request, "job.html", job_id=job_id, problem=vendor.problem())


def _login(
    request: Request, home: Path, *, next: str, message: str = "", status: int = 200
) -> Response:
    return _page(
        request,
        "login.html",
        status=status,
        next=next,
        message=message,
        token_file=home / "user.token",
    )


def _page(request: Request, name: str, *, status: int = 200, **values: object) -> Response:
    return _templates.TemplateResponse(
        request, name, context=values, status_code=status, headers=_HEADERS
    )
