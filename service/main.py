"""Composition root: settings -> database, blobs, loop -> app. Concrete classes meet only here."""

import asyncio
import contextlib
import logging
import os
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from types import FrameType
from typing import cast

import anyio
import anyio.to_thread
import uvicorn
from fastapi import Depends, FastAPI

from roadless.service import dashboard
from roadless.service.attempts.access import require_attempt
from roadless.service.attempts.leases import LeaseKeeper
from roadless.service.auth.bootstrap import make_first_tokens
from roadless.service.auth.dependencies import require_runner, require_user
from roadless.service.checkpoints import rank_routes as checkpoint_rank_routes
from roadless.service.checkpoints import routes as checkpoint_routes
from roadless.service.clock import utc_now
from roadless.service.datasets import routes as dataset_routes
from roadless.service.db.migrate import alone, migrate
from roadless.service.db.session import Database, DatabaseUnusable
from roadless.service.errors import Unavailable
from roadless.service.evaluations import routes as evaluation_routes
from roadless.service.evaluations.routes import CurveBounds
from roadless.service.events import routes as event_routes
from roadless.service.http import health, openapi, problems
from roadless.service.http.bodies import PARSING_THREADS
from roadless.service.http.connections import (
    KEEP_ALIVE_SECONDS,
    Doorkeeper,
    connections_that_fit,
    raise_file_limit,
)
from roadless.service.http.dependencies import AppState
from roadless.service.http.middleware import RequestGuard
from roadless.service.http.request_checks import check_request
from roadless.service.ingest import routes as ingest_routes
from roadless.service.jobs import routes as job_routes
from roadless.service.metrics import routes as metric_routes
from roadless.service.scheduling import loop
from roadless.service.scheduling import routes as scheduling_routes
from roadless.service.scheduling.housekeeping import Housekeeping
from roadless.service.secrets import routes as secret_routes
from roadless.service.secrets.cipher import Cipher, KeyUnusable
from roadless.service.secrets.keys import open_cipher
from roadless.service.secrets.rotation import rotate
from roadless.service.settings import Settings, SettingsError, read_settings
from roadless.service.storage.blobs import BlobStore
from roadless.service.storage.disk import needing_room
from roadless.service.storage.intake import STORING_THREADS
from roadless.service.storage.local_blobs import LocalBlobs
from roadless.service.storage.s3_blobs import S3Blobs
from roadless.service.storage.s3_bucket import Bucket, BucketUnusable, require_usable
from roadless.service.theory import routes as theory_routes
from roadless.service.theory.concurrency import ConcurrencyLimit
from roadless.service.theory.curve import JobBounds
from roadless.service.wakeups import Wakeups
from roadless.service.wheels import routes as wheel_routes

log = logging.getLogger("roadless.service")

ROUTERS = (
    health.router,
    job_routes.router,
    event_routes.router,
    evaluation_routes.router,
    metric_routes.router,
    theory_routes.router,
    checkpoint_routes.router,
    scheduling_routes.router,
    ingest_routes.router,
    checkpoint_rank_routes.router,
    dataset_routes.router,
    dataset_routes.rank_router,
    wheel_routes.router,
    wheel_routes.rank_router,
    secret_routes.router,
)


def create_app(settings: Settings) -> FastAPI:
    """Return the service; create the home folder and first tokens, and migrate the database."""
    app = FastAPI(
        title="Roadless",
        version="1",
        # Such pages load scripts from elsewhere into an origin that has a login.
        docs_url=None,
        redoc_url=None,
        openapi_url=None,  # `openapi` answers there
        redirect_slashes=False,
        lifespan=_lifespan,
        dependencies=[Depends(check_request)],
    )
    app.state = _compose(settings)
    app.add_middleware(RequestGuard, max_body_bytes=settings.max_body_bytes)
    problems.install(app)
    for router in ROUTERS:
        app.include_router(router)
    dashboard.mount(app)
    openapi.install(
        app, tokens={require_user: "user", require_runner: "runner", require_attempt: "attempt"}
    )
    return app


def _compose(settings: Settings) -> AppState:
    state = AppState()
    state.settings = settings
    state.db, cipher = _open_database(settings)
    state.blobs = _open_blobs(settings, "blobs")
    state.dataset_blobs = _open_blobs(settings, "datasets")
    state.wheel_blobs = _open_blobs(settings, "wheels")
    state.wakeups = Wakeups()
    leases = LeaseKeeper.starting(
        utc_now(), seconds=settings.lease_seconds, look_every_seconds=settings.tick_seconds
    )
    limit = ConcurrencyLimit()
    state.add(Cipher, cipher)
    state.add(LeaseKeeper, leases)
    state.add(health.Readiness, health.Readiness(state.db, settings))
    state.add(ConcurrencyLimit, limit)
    state.add(CurveBounds, JobBounds(state.db, limit))  # type: ignore[type-abstract]
    return state


def _open_database(settings: Settings) -> tuple[Database, Cipher]:
    """Return the migrated database, and the cipher for the secrets in it."""
    home = settings.home_dir
    with needing_room(home, what="the home folder"):
        return _open_home(settings, home)


def _open_home(settings: Settings, home: Path) -> tuple[Database, Cipher]:
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    num_threads = settings.request_threads + settings.report_threads
    db = Database(settings.resolved_database_url, pool_size=num_threads)
    with alone(db, home):
        migrate(db)
        for audience, path in make_first_tokens(db, home).items():
            log.warning("first start: the %s token is in %s", audience, path)
        cipher = open_cipher(settings)
        _rotate_secrets(db, cipher)
    return db, cipher


def _rotate_secrets(db: Database, cipher: Cipher) -> None:
    rotated = rotate(db, cipher)
    if rotated.num_sealed:
        log.warning("resealed %d secrets with key %s", rotated.num_sealed, cipher.key_id)
    if rotated.num_unreadable:
        log.error(
            "%d secrets open with none of the available keys: restore the key or store them again",
            rotated.num_unreadable,
        )


def _open_blobs(settings: Settings, folder: str) -> BlobStore:
    """``folder``: below the home folder, or below the prefix of the bucket."""
    if settings.blobs is None:
        return LocalBlobs(settings.home_dir / folder)
    bucket = Bucket.at(
        f"{settings.blobs.rstrip('/')}/{folder}",
        endpoint=settings.s3_endpoint,
        region=settings.s3_region,
        is_path_style=settings.s3_path_style,
    )
    require_usable(bucket)
    return S3Blobs(bucket)


@contextlib.asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    state = cast("AppState", app.state)
    settings = state.settings
    state.wakeups.bind(asyncio.get_running_loop())
    state.report_limiter = anyio.CapacityLimiter(settings.report_threads)
    state.blob_limiter = anyio.CapacityLimiter(ingest_routes.BLOB_THREADS)
    state.storing_limiter = anyio.CapacityLimiter(STORING_THREADS)
    state.parsing_limiter = anyio.CapacityLimiter(PARSING_THREADS)
    anyio.to_thread.current_default_thread_limiter().total_tokens = settings.request_threads
    ticking = loop.run_forever(
        state.db,
        state.part(LeaseKeeper),
        settings=settings,
        bell=state.wakeups,
        limiter=state.report_limiter,
    )
    housekeeping = Housekeeping(
        state.db, state.blobs, state.dataset_blobs, state.wheel_blobs, settings.uploads_dir
    )
    tasks = [asyncio.create_task(ticking), asyncio.create_task(housekeeping.run_forever())]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        state.db.close()


def server_config(app: FastAPI, keeper: Doorkeeper, *, host: str, port: int) -> uvicorn.Config:
    """How uvicorn serves the app; the keeper watches its connections."""
    return uvicorn.Config(
        app,
        host=host,
        port=port,
        http=cast("type[asyncio.Protocol]", keeper.protocol),
        ws="none",
        log_level="warning",
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=5,
    )


class _Server(uvicorn.Server):
    """Ends long polls when it is to stop, since they would delay it."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Wake the polls, then stop as usual."""
        app = self.config.app
        assert isinstance(app, FastAPI)
        cast("AppState", app.state).wakeups.close()
        super().handle_exit(sig, frame)


def _bound(settings: Settings) -> list[socket.socket]:
    """Sockets at the address, taken before anything else happens; exits where that is impossible.

    Nobody can connect until the server listens on them.
    """
    sockets = []
    try:
        for family, kind, _, _, address in socket.getaddrinfo(
            settings.host or None, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        ):
            sockets.append(socket.socket(family, kind))
            sockets[-1].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sockets[-1].setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sockets[-1].bind(address)
    except OSError as error:
        sys.exit(
            f"expected ROADLESS_HOST and ROADLESS_PORT to be an address to listen on, saw "
            f"{settings.host} port {settings.port}: {error.strerror or error}"
        )
    return sockets


def _created(settings: Settings) -> FastAPI:
    """The app; exits with one line where what the operator has set cannot work."""
    try:
        return create_app(settings)
    except BucketUnusable as error:
        sys.exit(f"the service cannot store checkpoints: {error}")
    except KeyUnusable as error:
        sys.exit(f"the service cannot store secrets: {error}")
    except DatabaseUnusable as error:
        sys.exit(f"the service cannot use its database: {error}")
    except Unavailable as error:
        sys.exit(f"the service cannot start: {error}")
    except OSError as error:
        sys.exit(
            f"expected ROADLESS_HOME to be a folder that can be written, saw {settings.home_dir}: "
            f"{error.strerror or error}"
        )


def main() -> None:
    """Serve until a signal arrives."""
    os.umask(0o077)  # what it writes is its user's alone
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    try:
        settings = read_settings()
    except SettingsError as error:
        sys.exit(str(error))
    listening = _bound(settings)
    app = _created(settings)
    raise_file_limit()
    keeper = Doorkeeper(max_connections=connections_that_fit)
    _Server(server_config(app, keeper, host=settings.host, port=settings.port)).run(listening)


if __name__ == "__main__":
    main()
