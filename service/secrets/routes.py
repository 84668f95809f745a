"""/v1/secrets: put, list and delete. No user's route returns a value."""

import logging
from typing import Annotated

from fastapi import APIRouter, Path, Query, Response

from roadless.service.auth.dependencies import Project
from roadless.service.contract.resources import Page
from roadless.service.contract.secrets import NewSecret, Secret, SecretName, check_value
from roadless.service.errors import Invalid
from roadless.service.http.dependencies import Db
from roadless.service.http.openapi import may_refuse
from roadless.service.http.paging import Limit, page_of
from roadless.service.http.routing import GuardedRoute
from roadless.service.secrets import actions, store
from roadless.service.secrets.incoming import IncomingSecret, SecretCipher
from roadless.service.secrets.views import secret_resource

log = logging.getLogger(__name__)

router = APIRouter(route_class=GuardedRoute, prefix="/v1/secrets", tags=["secrets"])

Name = Annotated[SecretName, Path(description="of the environment variable")]
_BODY = {
    "required": True,
    "content": {"application/json": {"schema": NewSecret.model_json_schema()}},
}


@router.put(
    "/{name}",
    status_code=204,
    responses={201: {"description": "a new name"}, **may_refuse(409)},
    openapi_extra={"requestBody": _BODY},
)
def put_secret(
    name: Name, project: Project, asked: IncomingSecret, db: Db, cipher: SecretCipher
) -> Response:
    """Keep a value under this name: 201 when it is new, 204 when it replaces an older one."""
    try:
        check_value(name, asked.value.get_secret_value())
    except ValueError as error:
        raise Invalid(str(error)) from None
    with db.write() as session:
        is_new = actions.put(session, asked, project=project, name=name, cipher=cipher)
    log.info("secret %s of project %s is %s", name, project, "new" if is_new else "replaced")
    return Response(status_code=201 if is_new else 204)


@router.get("")
def list_secrets(
    project: Project,
    db: Db,
    cipher: SecretCipher,
    after: Annotated[str | None, Query(max_length=64)] = None,
    limit: Limit = 50,
) -> Page[Secret]:
    """The project's secrets by name, without their values."""
    with db.read() as session:
        rows = store.page(session, project, after=after, limit=limit + 1)
    return page_of(
        rows,
        limit,
        view=lambda row: secret_resource(row, cipher=cipher),
        cursor=lambda row: row.name,
    )


@router.delete("/{name}", status_code=204, responses=may_refuse(404))
def delete_secret(name: Name, project: Project, db: Db) -> None:
    """Delete a secret. Ranks that hold it keep it; an attempt that starts without it fails."""
    with db.write() as session:
        store.delete(session, project, name)
    log.info("secret %s of project %s is deleted", name, project)
