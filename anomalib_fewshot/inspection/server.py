# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Web server of the page. It accepts connections from this computer only, with a token that nobody can guess."""

import json
import secrets
import socket
import threading
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route

from anomalib_fewshot.errors import ArgumentError

from .page import render

if TYPE_CHECKING:
    from .service import InspectionService

HOST = "127.0.0.1"
MAX_BODY = 10_000_000  # bytes of a request
STOP_TIMEOUT = 0.5  # seconds


def check_port(port: int) -> None:
    """Check that a port is free, before a training.

    Args:
        port (int): Port. 0 means a free one.

    Raises:
        ArgumentError: If another program uses the port.
    """
    try:
        socket.create_server((HOST, port)).close()
    except (OSError, OverflowError) as error:
        msg = f"`port` must be a free port, got {port} ({error}). Omit it to use a free one."
        raise ArgumentError(msg) from error


class PageServer:
    """Server of the page, in a thread of its own. Use it as a context manager.

    Args:
        service (InspectionService): The inspection that the page controls.
        port (int): Port. 0 means a free one.

    Attributes:
        url (str): Address of the page, with the token.

    Raises:
        OSError: If the port is in use.
    """

    def __init__(self, service: "InspectionService", port: int = 0) -> None:
        self._socket = socket.create_server((HOST, port))
        self.port = self._socket.getsockname()[1]
        self.token = secrets.token_urlsafe(24)
        app = create_app(service, self.token, self.port)
        config = uvicorn.Config(app, log_level="error", access_log=False, lifespan="off")
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([self._socket],), daemon=True)

    @property
    def url(self) -> str:
        """Address of the page, with the token."""
        return f"http://{HOST}:{self.port}/?token={self.token}"

    def __enter__(self) -> "PageServer":
        """Start the server."""
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop the server."""
        self._server.should_exit = self._server.force_exit = True
        self._thread.join(STOP_TIMEOUT)
        self._socket.close()


def create_app(service: "InspectionService", token: str, port: int) -> Starlette:
    """Return the web application.

    Args:
        service (InspectionService): The inspection that the page controls.
        token (str): Token that each request must have: in the address of the first one, then in a cookie, and in the
            header of requests that change something.
        port (int): Port of the server. The name of the cookie contains it, because servers of one host share cookies.
    """
    cookie = f"inspect_{port}"

    def is_known(text: str | None) -> bool:
        return text is not None and secrets.compare_digest(text.encode(), token.encode())

    def page(request: Request) -> Response:
        if is_known(request.query_params.get("token")):  # the address without the token stays in the history
            response: Response = RedirectResponse("/", status_code=303)
            response.set_cookie(cookie, token, httponly=True, samesite="strict")
            return response
        if not is_known(request.cookies.get(cookie)):
            return PlainTextResponse("Open the address that the command has printed, with its token.", status_code=403)
        return HTMLResponse(render(data()), headers={"Cache-Control": "no-store"})

    def data() -> dict[str, Any]:
        return service.data() | {"server": {"token": token}}

    def get_data(request: Request) -> Response:
        return _refuse() if not is_known(request.cookies.get(cookie)) else JSONResponse(data())

    def get_state(request: Request) -> Response:
        return _refuse() if not is_known(request.cookies.get(cookie)) else JSONResponse(service.state())

    def get_file(request: Request) -> Response:
        if not is_known(request.cookies.get(cookie)):
            return _refuse()
        folder = (service.session.run.path / "page").resolve()
        path = (folder / request.path_params["path"]).resolve()
        if not path.is_relative_to(folder) or not path.is_file():  # such as ../../model.ckpt
            return PlainTextResponse("There is no such file.", status_code=404)
        return FileResponse(path)

    def post(action: Callable[[dict[str, Any]], None], status_code: int = 200) -> Callable:
        async def handle(request: Request) -> Response:
            if not is_known(request.headers.get("Authorization", "").removeprefix("Bearer ")):
                return _refuse()
            try:
                content = await _read_json(request)
                await run_in_threadpool(action, content)
            except (ArgumentError, KeyError, TypeError, ValueError) as error:
                return JSONResponse({"error": str(error)}, status_code=400)
            return JSONResponse({"version": service.version}, status_code=status_code)

        return handle

    actions: dict[str, Callable] = {
        "labels": post(lambda content: service.set_labels(content["labels"])),
        "thresholds": post(lambda content: service.set_thresholds(content["thresholds"])),
        "ignore": post(lambda content: service.set_ignored(content["path"], content["rectangles"])),
        "train": post(lambda _: service.train(), 202),
    }
    routes = [Route("/", page), Route("/api/data", get_data), Route("/api/state", get_state)]
    routes += [Route("/page/{path:path}", get_file)]
    routes += [Route(f"/api/{name}", handle, methods=["POST"]) for name, handle in actions.items()]
    hosts = Middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])  # against DNS rebinding
    return Starlette(routes=routes, middleware=[hosts])


def _refuse() -> Response:
    return JSONResponse(
        {"error": "The token is missing or wrong. Open the address that the command has printed."},
        status_code=403,
    )


async def _read_json(request: Request) -> dict[str, Any]:
    """Return the JSON object of a request.

    Raises:
        ValueError: If the body is too large or not a JSON object.
    """
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > MAX_BODY:
            msg = f"A request must have at most {MAX_BODY} bytes."
            raise ValueError(msg)
    content = json.loads(body or b"{}")
    if not isinstance(content, dict):
        msg = "A request must contain a JSON object."
        raise TypeError(msg)
    return content
