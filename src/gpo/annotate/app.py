"""The annotation pages: one solution at a time, rendered on the server, usable with the keyboard alone.

Nothing on a page tells which step GPO chose.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Sequence
from hashlib import sha256
from typing import Annotated, Any

from fastapi import FastAPI, Form, Request, Response
from fastapi.responses import HTMLResponse, PlainTextResponse, RedirectResponse
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.staticfiles import StaticFiles

from gpo.annotate.guard import HEADERS, Limit, sign, signed
from gpo.annotate.items import Item, order_for
from gpo.annotate.marks import Kind, Marks
from gpo.report.clean import counted

COMMENT = 2000  # characters
MOST = 64 * 1024  # bytes of a form


class Refused(Exception):
    """A request that is answered with a short page and a status."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status, self.text = status, text


async def guarded(request: Request, call: Callable[[Request], Awaitable[Response]]) -> Response:
    """Refuse what no form of these pages sends, and tell browsers what a page may do."""
    length = request.headers.get("content-length", "0")
    if request.method == "POST" and "content-length" not in request.headers:
        response: Response = PlainTextResponse("A form needs a length.", 411)
    elif not length.isdigit() or int(length) > MOST:
        response = PlainTextResponse("That is too long.", 413)
    else:
        response = await call(request)
    response.headers.update(HEADERS)
    return response


def _app_for(hosts: Sequence[str]) -> FastAPI:
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))
    app.middleware("http")(guarded)
    app.mount("/static", StaticFiles(packages=[("gpo.annotate", "static")]))
    return app


def _pages() -> Environment:
    loader = PackageLoader("gpo.annotate", "pages")
    pages = Environment(loader=loader, autoescape=select_autoescape(), undefined=StrictUndefined)
    pages.filters["counted"] = counted
    return pages


def make_app(
    marks: Marks,
    items: Sequence[Item],
    *,
    seed: int = 0,
    open_to_all: bool = True,
    hosts: Sequence[str] = ("127.0.0.1", "localhost"),
    limit: Limit | None = None,
) -> FastAPI:
    """The pages over a set of items.

    Args:
        open_to_all: anybody may join with a name; otherwise only the links with a token made before let one in.
        hosts: names that the server answers to, against requests that another site's name was pointed at.
        limit: how often one annotator may send a form; None: 30 at once, 5 a second.
    """
    app = _app_for(hosts)
    key = marks.fact("key", secrets.token_hex(32))
    # Browsers do not tell the ports of a host apart: each study has a cookie of its own.
    cookie = f"annotator-{sha256(key.encode()).hexdigest()[:8]}"
    pages = _pages()
    known = {item.id: item for item in items}
    forms, joins = limit or Limit(rate=5, burst=30), Limit(rate=2, burst=250)

    def page(name: str, status: int = 200, **values: Any) -> HTMLResponse:
        return HTMLResponse(pages.get_template(name).render(**values), status_code=status)

    def signed_in(request: Request) -> tuple[int, str]:
        secret = request.cookies.get(cookie)
        annotator = marks.annotator(secret) if secret else None
        if annotator is None or secret is None:
            raise Refused(401, "You have not joined yet, or in another browser.")
        return annotator, secret

    def signed_form(request: Request, token: str) -> int:
        annotator, secret = signed_in(request)
        if not signed(key, secret, token):
            raise Refused(403, "This form was not made for you, or is too old. Load the page anew.")
        if not forms.allows(str(annotator)):
            raise Refused(429, "That was too fast. Wait a few seconds.")
        return annotator

    def remember(response: Response, secret: str) -> Response:
        response.set_cookie(cookie, secret, httponly=True, samesite="strict", max_age=90 * 24 * 3600)
        return response

    @app.exception_handler(Refused)
    async def refused(request: Request, error: Refused) -> Response:
        return page("refused.html", error.status, text=error.text)

    @app.get("/")
    def show(request: Request) -> Response:
        secret = request.cookies.get(cookie)
        number = marks.annotator(secret) if secret else None
        if number is None or secret is None:
            return page("join.html", open_to_all=open_to_all, count=len(items))
        done = marks.done(number)
        left = [item for item in order_for(items, number, seed) if item.id not in done]
        values: dict[str, Any] = {"done": len(items) - len(left), "count": len(items), "token": sign(key, secret)}
        if not left:
            return page("done.html", **values)
        return page("item.html", item=left[0], **values)

    @app.post("/join")
    def join(request: Request, name: Annotated[str, Form(max_length=80)] = "") -> Response:
        if not open_to_all:
            raise Refused(403, "Joining takes the link that you were sent.")
        if not joins.allows(request.client.host if request.client else ""):
            raise Refused(429, "Too many people joined at once. Wait a minute.")
        return remember(RedirectResponse("/", 303), marks.join(name.strip() or "anonymous"))

    @app.get("/join/{secret}")
    def invited(request: Request, secret: str) -> Response:
        if not joins.allows(request.client.host if request.client else ""):
            raise Refused(429, "Too many tries. Wait a minute.")
        if marks.annotator(secret) is None:
            raise Refused(403, "This link is not known here.")
        return remember(RedirectResponse("/", 303), secret)

    @app.post("/mark")
    def mark(
        request: Request,
        item: Annotated[str, Form()],
        token: Annotated[str, Form()],
        kind: Annotated[Kind, Form()] = "step",
        step: Annotated[int | None, Form()] = None,
        comment: Annotated[str, Form(max_length=COMMENT)] = "",
    ) -> Response:
        number = signed_form(request, token)
        if item not in known:
            raise Refused(404, "There is no such solution.")
        if kind == "step" and (step is None or not 0 <= step < len(known[item].steps)):
            raise Refused(422, "No step was chosen. Go back and choose one, or say that none stands out.")
        marks.add(number, item, kind, step if kind == "step" else None, comment.strip())
        return RedirectResponse("/", 303)

    @app.post("/undo")
    def undo(request: Request, token: Annotated[str, Form()]) -> Response:
        marks.undo(signed_form(request, token))
        return RedirectResponse("/", 303)

    return app
