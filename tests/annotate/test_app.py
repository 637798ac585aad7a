"""The annotation pages over HTTP, without a browser."""

import re
from pathlib import Path

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from gpo.annotate.app import make_app
from gpo.annotate.guard import Limit
from gpo.annotate.items import CHECK, Item, order_for, with_checks
from gpo.annotate.marks import Marks
from gpo.annotate.serve import main
from written_run import Written, write_run

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>\u202e"
ITEMS = [
    Item(f"t{i}", f"question {i} {HOSTILE}", ("first\n", f"{HOSTILE}\n", "last"), i % 2 == 0, "7") for i in range(3)
]


@pytest.fixture
def marks(tmp_path: Path) -> Marks:
    return Marks(tmp_path / "annotations.sqlite")


@pytest.fixture
def client(marks: Marks) -> TestClient:
    return TestClient(make_app(marks, ITEMS, hosts=["testserver"]))


def joined(client: TestClient, name: str = "Ann") -> TestClient:
    assert client.post("/join", data={"name": name}).status_code == 200
    return client


def fields(page: str) -> dict[str, str]:
    """The hidden fields of the form that marks."""
    return {name: re.search(rf'name="{name}" value="([^"]*)"', page)[1] for name in ("token", "item")}  # type: ignore[index]


def mark(client: TestClient, **values: object) -> int:
    form = fields(client.get("/").text) | {"kind": "step", "step": 1} | values
    return client.post("/mark", data={k: v for k, v in form.items() if v is not None}).status_code


def test_marking_all_items_ends_with_thanks_and_keeps_every_mark(client: TestClient, marks: Marks) -> None:
    joined(client)
    assert mark(client, step=2, comment=" because ") == 200
    assert mark(client, kind="none", step=None) == 200
    assert mark(client, kind="skip", step=None) == 200
    assert "Thank you" in client.get("/").text
    assert [(m.annotator, m.kind, m.step, m.comment) for m in marks.all()] == [
        ("1:Ann", "step", 2, "because"),
        ("1:Ann", "none", None, ""),
        ("1:Ann", "skip", None, ""),
    ]
    assert {m.item for m in marks.all()} == {"t0", "t1", "t2"}


def test_undo_brings_the_last_item_back(client: TestClient, marks: Marks) -> None:
    joined(client)
    first = fields(client.get("/").text)["item"]
    mark(client)
    page = client.get("/").text
    assert fields(page)["item"] != first
    client.post("/undo", data={"token": fields(page)["token"]})
    assert fields(client.get("/").text)["item"] == first
    assert marks.all() == []


def test_model_output_is_text_and_the_chosen_step_is_not_told(client: TestClient) -> None:
    page = joined(client).get("/").text
    assert "<script>alert" not in page
    assert "<img" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert "critical_step" not in page
    assert "checked" not in page


def test_forms_of_others_are_refused(client: TestClient, marks: Marks) -> None:
    joined(client)
    good = fields(client.get("/").text)
    other = TestClient(client.app)
    assert other.post("/mark", data=good | {"step": 0}).status_code == 401
    joined(other, "Bob")
    assert other.post("/mark", data=good | {"step": 0}).status_code == 403
    assert client.post("/mark", data=good | {"step": 0, "token": "é"}).status_code == 403
    assert marks.all() == []


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"step": 3}, 422),
        ({"step": -1}, 422),
        ({"step": None}, 422),
        ({"item": "unknown"}, 404),
        ({"kind": "other"}, 422),
        ({"comment": "x" * 2001}, 422),
        ({"comment": "x" * 70_000}, 413),
    ],
)
def test_a_mark_that_makes_no_sense_is_refused(
    client: TestClient, marks: Marks, change: dict[str, object], status: int
) -> None:
    assert mark(joined(client), **change) == status
    assert marks.all() == []


def test_too_many_marks_at_once_are_refused(marks: Marks) -> None:
    client = joined(TestClient(make_app(marks, ITEMS, hosts=["testserver"], limit=Limit(rate=0, burst=2))))
    form = fields(client.get("/").text) | {"kind": "skip"}
    sent = [client.post("/mark", data=form, follow_redirects=False).status_code for _ in range(3)]
    assert sent == [303, 303, 429]


def test_a_limit_fills_up_with_time() -> None:
    limit = Limit(rate=2, burst=3)
    assert [limit.allows("a", now=0) for _ in range(4)] == [True, True, True, False]
    assert limit.allows("b", now=0)
    assert [limit.allows("a", now=0.6), limit.allows("a", now=0.6)] == [True, False]


def test_headers_forbid_scripts_and_frames_of_others(client: TestClient) -> None:
    headers = client.get("/").headers
    assert "default-src 'none'" in headers["content-security-policy"]
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    cookie = client.post("/join", data={}, follow_redirects=False).headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie


def test_two_studies_on_one_host_know_a_person_apart(tmp_path: Path) -> None:
    studies = [Marks(tmp_path / name) for name in ("one", "two")]
    pages = [TestClient(make_app(study, ITEMS, hosts=["testserver"])) for study in studies]
    pages[1].cookies = pages[0].cookies  # a browser's, which does not tell ports apart
    for page in pages:
        joined(page)
    for page in [*pages, *pages]:
        assert mark(page) == 200
    assert [{each.annotator for each in study.all()} for study in studies] == [{"1:Ann"}, {"1:Ann"}]


@pytest.mark.parametrize(
    ("host", "address"), [("127.0.0.2", "127.0.0.2:8000"), ("::1", "[::1]:8000"), ("localhost", "localhost:8000")]
)
def test_the_address_that_is_printed_is_answered(
    tmp_path: Path, host: str, address: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path, [Written("q", ["a"])])
    served: list[FastAPI] = []
    monkeypatch.setattr("gpo.annotate.serve.load_items", lambda *_: ITEMS)
    monkeypatch.setattr("uvicorn.run", lambda app, **_: served.append(app))
    assert main([str(run), "--host", host]) == 0
    assert f"Annotation pages: http://{address}/ " in capsys.readouterr().out
    status = [TestClient(served[0]).get("/", headers={"Host": name}).status_code for name in (address, "127.0.0.3")]
    assert status == [200, 400]


def test_another_host_name_is_refused(marks: Marks) -> None:
    client = TestClient(make_app(marks, ITEMS), base_url="http://evil.example")
    assert client.get("/").status_code == 400


def test_only_links_let_in_where_the_server_is_open_to_others(marks: Marks) -> None:
    secret = marks.join("link 1", invited=True)
    client = TestClient(make_app(marks, ITEMS, open_to_all=False, hosts=["*"]))
    assert client.post("/join", data={"name": "Eve"}).status_code == 403
    assert client.get("/join/wrong").status_code == 403
    assert 'name="step"' in client.get(f"/join/{secret}").text
    stored = b"".join(path.read_bytes() for path in marks.path.parent.glob("annotations.sqlite*"))
    assert b"link 1" in stored
    assert secret.encode() not in stored


def test_every_annotator_has_an_order_of_their_own() -> None:
    items = [Item(str(i), "q", ("a", "b"), True, "1") for i in range(8)]
    orders = {tuple(item.id for item in order_for(items, annotator, 0)) for annotator in range(5)}
    assert len(orders) == 5
    assert all(sorted(order) == [item.id for item in items] for order in orders)
    assert order_for(items, 3, 0) == order_for(items, 3, 0)


def test_attention_checks_ask_for_their_own_line() -> None:
    items = [Item(str(i), "q", ("a\n", "b\n", "c"), True, "1") for i in range(20)]
    checks = [item for item in with_checks(items, 0) if item.check is not None]
    assert len(checks) == 2
    for check in checks:
        assert check.check is not None
        assert check.steps[check.check].strip() == CHECK
        assert len(check.steps) == 4
