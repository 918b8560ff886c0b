"""The page in a real browser, and who gets to talk to it."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import signal
import socket
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest

from cutlayer.cli.server_process import ServerProcess
from cutlayer.errors import InputError, InsecureError
from cutlayer.gateway.watch_page import LONGEST_PROMPT, WatchPage, serve_page

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

QUESTION = "Ada owes 4711."
SETTLED = "The attack has been through everything that crossed."
HOSTILE = "<script>document.title='x'</script><img src=x onerror=\"document.title='x'\">&lt;"


@pytest.fixture
def page(browser: Any, site: Any) -> Iterator[Any]:
    """The page, opened; whatever it complains of, and wherever it turns to, is noted."""
    opened = browser.new_page()
    opened.faults, opened.requests = [], []
    opened.on("pageerror", lambda error: opened.faults.append(str(error)))
    opened.on("console", lambda message: opened.faults.append(message.text) if message.type == "error" else None)
    opened.on("request", lambda request: opened.requests.append(request.url))
    opened.goto(site.url)
    yield opened
    opened.close()


def ask(page: Any, prompt: str) -> None:
    page.fill("#prompt", prompt)
    page.press("#prompt", "Enter")


def settled(page: Any) -> None:
    page.locator("#beside", has_text=SETTLED).wait_for()


def test_a_question_its_answer_and_what_the_server_reads(page: Any, site: Any) -> None:
    ask(page, QUESTION)
    settled(page)
    n = len(QUESTION)
    assert page.text_content("#counter") == f"The server has read {n} of {n} tokens."
    assert page.text_content("#question") == QUESTION
    assert page.text_content("#answer") == site.client.generate(QUESTION, max_tokens=24).result().text
    assert "".join(page.locator("#tokens-prompt .token:visible").all_text_contents()) == QUESTION
    assert page.locator("#tokens-prompt .token.right:visible").count() == n
    assert page.locator(".token.wrong[data-position]").count() == 0
    assert page.locator("#bar").bounding_box()["width"] > 0.9 * page.locator(".bar").bounding_box()["width"]
    assert page.faults == []


def test_the_setting_and_what_was_measured_are_on_the_page(page: Any) -> None:
    page.locator("#setting", has_text="2:4 of 6 layers").wait_for()
    assert "defence none" in page.text_content("#setting")
    assert "easured" in page.text_content("#measured")


def test_a_token_tells_more_when_pointed_at(page: Any) -> None:
    ask(page, QUESTION)
    settled(page)
    page.hover("#tokens-prompt .token:visible >> nth=0")
    assert page.locator("#tip dd").all_text_contents() == ["A", "A", "100 % sure, and right"]


def test_template_tokens_show_on_request_and_do_not_count(page: Any) -> None:
    ask(page, QUESTION)
    settled(page)
    assert page.locator("#tokens-prompt .token:visible").count() == len(QUESTION)
    page.check("#template")
    assert page.locator("#tokens-prompt .token:visible").all_text_contents()[0] == "<user>"
    assert page.locator("#tokens-prompt .token:visible").count() == len(QUESTION) + 2


def test_prompts_are_text_and_never_markup(page: Any) -> None:
    title = page.title()
    ask(page, HOSTILE)
    settled(page)
    assert page.text_content("#question") == HOSTILE
    assert "".join(page.locator("#tokens-prompt .token:visible").all_text_contents()) == HOSTILE
    assert page.locator("main img, main script").count() == 0
    assert page.title() == title
    assert page.faults == []


def test_the_page_asks_nobody_but_its_server(page: Any, site: Any) -> None:
    ask(page, QUESTION)
    settled(page)
    assert page.requests
    assert all(url.startswith(site.url) for url in page.requests if not url.startswith("data:"))


def test_what_was_smuggled_in_does_not_run(page: Any) -> None:
    """Should text ever end up as markup, the policy is the second lock."""
    title = page.title()
    page.evaluate(
        """() => {
            const script = document.createElement("script"), bold = document.createElement("b");
            script.textContent = "document.title = 'x'";
            bold.setAttribute("onclick", "document.title = 'x'");
            document.body.append(script, bold);
            bold.click();
        }"""
    )
    assert page.title() == title
    assert any("Content Security Policy" in fault for fault in page.faults)


def test_stop_ends_an_answer_and_the_next_question_works(page: Any, site: Any) -> None:
    site.line.hold()
    try:
        ask(page, "Wait")
        page.locator("#stop").wait_for()
        status, content = site.ask("And I?")
        assert (status, "another question" in content) == (409, True)
        page.click("#stop")
        page.locator("#beside", has_text="Stopped").wait_for()
    finally:
        site.line.proceed()
    ask(page, QUESTION)
    settled(page)
    assert page.text_content("#question") == QUESTION
    assert "".join(page.locator("#tokens-prompt .token:visible").all_text_contents()) == QUESTION


def test_a_closed_page_ends_its_answer(browser: Any, site: Any) -> None:
    site.line.hold()
    try:
        leaving = browser.new_page()
        leaving.goto(site.url)
        ask(leaving, "Wait")
        leaving.locator("#stop").wait_for()
        leaving.close()
    finally:
        site.line.proceed()
    # The server notices when it next hears of the connection; until then the place is taken.
    for _ in range(100):
        status, content = site.ask(QUESTION)
        if status != 409:
            break
    assert status == 200
    assert '"final":true' in content


# --- without a browser -------------------------------------------------------------------------------------------------


def events(content: str) -> list[tuple[str, Any]]:
    found = re.findall(r"event: (\w+)\ndata: (.*)\n", content)
    return [(kind, json.loads(data)) for kind, data in found]


def test_events(site: Any) -> None:
    status, content = site.ask(QUESTION)
    assert status == 200
    kinds = [kind for kind, _ in events(content)]
    assert kinds.count("answered") == 1
    assert kinds[-1] == "view"
    last = events(content)[-1][1]
    assert last["final"]
    assert last["prompt"] == [len(QUESTION), len(QUESTION)]
    text = "".join(data["text"] for kind, data in events(content) if kind == "piece")
    assert text == site.client.generate(QUESTION, max_tokens=24).result().text


def test_a_prompt_the_session_cannot_hold_is_a_problem_in_words(site: Any) -> None:
    status, content = site.ask("x" * 20_000)
    assert status == 200
    [(kind, data)] = events(content)
    assert kind == "problem"
    assert "shorten it" in data["message"]


def test_only_this_servers_names_are_answered(site: Any) -> None:
    assert site.request(Host=f"localhost:{site.port}")[0] == 200
    for name in ("evil.example", f"evil.example:{site.port}", "127.0.0.1", f"127.0.0.1:{site.port + 1}", ""):
        status, headers, content = site.request(Host=name)
        assert status in {400, 421}, name
        assert "<html" not in content
    assert "default-src 'none'" in headers["content-security-policy"]


@pytest.mark.parametrize("path", ["/", "/" + "u" * 32 + "/", "/" + "t" * 31 + "/", "/ask", "/%C3%A9/", "//", "/%74/"])
def test_without_the_token_there_is_nothing(site: Any, path: str) -> None:
    assert site.request(path=path)[0] == 404


def test_other_sites_may_not_ask(site: Any) -> None:
    body = json.dumps({"prompt": QUESTION})
    path = site.url.removeprefix(f"http://127.0.0.1:{site.port}") + "ask"
    for origin in ("http://evil.example", "null", f"https://127.0.0.1:{site.port}"):
        assert site.request("POST", path, body, Content_Type="application/json", Origin=origin)[0] == 403
    # A form on another site can send text/plain without asking first.
    assert site.request("POST", path, body, Content_Type="text/plain")[0] == 415
    own = f"http://127.0.0.1:{site.port}"
    assert site.request("POST", path, body, Content_Type="application/json", Origin=own)[0] == 200


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ("", 400),
        ('{"prompt": ""}', 400),
        ('{"prompt": "secret", "more": 1}', 400),
        ('{"prompt": ["secret"]}', 400),
        (json.dumps({"prompt": "secret" * 2 * LONGEST_PROMPT}), 413),
        (json.dumps({"prompt": "x" * (LONGEST_PROMPT + 1)}), 400),
    ],
    ids=["empty", "blank", "unknown-field", "not-text", "huge", "long"],
)
def test_malformed_questions_are_refused_without_being_repeated(site: Any, body: str, status: int) -> None:
    path = site.url.removeprefix(f"http://127.0.0.1:{site.port}") + "ask"
    with contextlib.suppress(BrokenPipeError):  # refused before all was sent
        got, _, content = site.request("POST", path, body, Content_Type="application/json")
        assert got == status
        assert "secret" not in content


def test_answers_are_private(site: Any) -> None:
    _, headers, content = site.request()
    assert headers["cache-control"] == "no-store"
    assert headers["referrer-policy"] == "no-referrer"
    policy = headers["content-security-policy"]
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert not re.search(r"(src|href)=\"?(https?:)?//", content)
    assert "innerHTML" not in content


def test_nothing_of_a_prompt_is_logged(
    site: Any, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(0)
    site.ask("Lovelace")
    written = capfd.readouterr()
    assert "Lovelace" not in written.out + written.err + caplog.text


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "::", "example.org", ""])  # noqa: S104
def test_other_machines_are_not_served(host: str) -> None:
    with pytest.raises(InsecureError, match="this machine only"):
        serve_page(WatchPage.__new__(WatchPage), host, 0, print)


def test_a_taken_port_is_said_to_be(site: Any) -> None:
    with pytest.raises(InputError, match=str(site.port)):
        serve_page(WatchPage.__new__(WatchPage), "127.0.0.1", site.port, print)


def test_the_command_prints_an_address_and_ends_cleanly(tiny_with_text: Callable[[str], Path]) -> None:
    directory = tiny_with_text("llama")
    with ServerProcess(str(directory)) as server:
        command = [sys.executable, "-m", "cutlayer", "watch", f"--server={server.url}", f"--keys={server.client_keys}"]
        process = subprocess.Popen(
            [*command, f"--model={directory}", "--listen=127.0.0.1:0", "--max-tokens=4"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        guard = threading.Timer(60, process.kill)
        guard.start()
        try:
            assert process.stdout is not None
            printed = re.match(r"Open http://127\.0\.0\.1:(\d+)(/[\w-]{32}/)\n", process.stdout.readline())
            assert printed, process.communicate()
            connection = http.client.HTTPConnection("127.0.0.1", int(printed[1]), timeout=30)
            connection.request(
                "POST", printed[2] + "ask", json.dumps({"prompt": "Hi"}), {"Content-Type": "application/json"}
            )
            answer = connection.getresponse()
            assert answer.status == 200
            assert '"prompt":[2,2]' in answer.read().decode()
            connection.close()
            # Nobody but this machine: the port is bound on loopback alone.
            with pytest.raises(OSError, match="refused"), socket.create_connection(("127.0.0.2", int(printed[1])), 5):
                pass
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=30)
        finally:
            guard.cancel()
            process.kill()
    assert process.returncode == 0
    assert "Traceback" not in errors
