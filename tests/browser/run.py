#!/usr/bin/env python3
"""The console in a real browser: every page, by keyboard, as somebody without scripts, as nobody, and against texts that want to run.

The store is the demo's own: its traffic, its drift, its alarm, its run, its adapter.

  tests/browser/run.py --retune target/release/retune --axe node_modules/axe-core/axe.min.js [--shots FOLDER] [--store FOLDER]
"""

import argparse
import contextlib
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

from playwright.sync_api import sync_playwright

from look import Eyes, until

# Each tries something else to become more than text.
HOSTILE = [
    "<script>pwned()</script>",
    "<img src=x onerror=pwned()>",
    "</pre></textarea><svg onload=pwned()>",
    "\"><iframe srcdoc='<script>parent.pwned()</script>'></iframe>",
    "{{ 7 * 7 }} {% raw %} <a href=\"javascript:pwned()\" data-key=\"5\" hx-get=\"/console\" hx-trigger=\"load\">5</a>",
    "' autofocus onfocus=pwned() x='",
    "</script><script>pwned()//",
]
REVIEWED = 100


def api(base, path, body=None, key=None, wanted=200, method=None):
    headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {key}"} if key else {})
    data = json.dumps(body).encode() if body is not None else None
    request = urllib.request.Request(base + path, data=data, headers=headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=120) as response:
            status, text = response.status, response.read()
    except urllib.error.HTTPError as error:
        status, text = error.code, error.read()
    assert status == wanted, f"{path}: {status}, {text[:300]}"
    return json.loads(text) if text.startswith((b"{", b"[")) else text


class Retune:
    """The program, and a store that the demo has filled."""

    def __init__(self, program, store):
        self.program, self.folder = os.path.abspath(program), pathlib.Path(store)
        self.env = os.environ | {"RETUNE_SERVER__LISTEN": "127.0.0.1:0", "RETUNE_STORE__URL": f"file:{self.folder / 'store'}"}

    def demo(self, seed):
        self.folder.mkdir(parents=True, exist_ok=True)
        played = subprocess.run(
            [self.program, "demo", "--once", "--json", "--seed", str(seed), "--store", str(self.folder)],
            stdout=subprocess.PIPE, text=True, timeout=1200, check=True,
        )
        return json.loads(played.stdout.strip().splitlines()[-1])

    def run(self, *arguments):
        done = subprocess.run([self.program, *arguments], env=self.env, cwd=self.folder, stdout=subprocess.PIPE, text=True, check=True)
        return done.stdout

    @contextlib.contextmanager
    def up(self):
        with open(self.folder / "browser.log", "ab") as log:
            child = subprocess.Popen(
                [self.program, "up", "--json", "--stop-with-stdin"],
                env=self.env, cwd=self.folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
            )
            try:
                base = json.loads(child.stdout.readline())["listening"]
                until_ready(base)
                yield base
            finally:
                child.stdin.close()
                assert child.wait(timeout=60) == 0, "the server did not end well"


def until_ready(base):
    until = time.monotonic() + 120
    while True:
        try:
            urllib.request.urlopen(f"{base}/readyz").close()
            return
        except urllib.error.HTTPError:
            assert time.monotonic() < until, "the server is not ready"
            time.sleep(0.1)


def say(text):
    print(f"  {text}", flush=True)


def hostile_traffic(base):
    """Requests whose texts want to run; the ids of their answers."""
    ids = []
    for text in HOSTILE:
        # Of the base: what the champion cannot answer would be its alarm, and its end.
        body = {"model": "triage@base", "messages": [{"role": "user", "content": text}], "metadata": {"team": text[:60]}, "user": text[:60]}
        answer = api(base, "/v1/chat/completions", body)
        ids.append(answer["id"])
        api(base, "/v1/feedback", {"completion_id": answer["id"], "comment": text, "rating": 1}, wanted=201)
    return ids


def traffic(retune, base, count):
    """What the demo's apps asked last, once more."""
    rows = retune.run("ledger", "sql", "--json", f"select messages from exchanges where purpose = 'user' and task = 'triage' order by ts desc limit {count}")
    for row in rows.splitlines():
        messages = json.loads(row)["messages"]
        messages = json.loads(messages) if isinstance(messages, str) else messages
        asked = [{"role": message["role"], "content": message["content"]} for message in messages]
        api(base, "/v1/chat/completions", {"model": "triage", "messages": asked})


def pairs(retune, base):
    """Twelve pairs of a candidate that people are to judge, as a run puts them there."""
    rows = retune.run("ledger", "sql", "--json", "select request_id from exchanges where purpose = 'user' and code = 200 and metadata is null limit 24")
    ids = [json.loads(line)["request_id"] for line in rows.splitlines()]
    folder = retune.folder / "store" / "pairs" / "triage" / "99"
    folder.mkdir(parents=True)
    one = lambda n: {
        "id": f"pair-{n:032x}", "request_id": ids[n], "left": ids[n], "right": ids[n + 12], "candidate": "left" if n % 2 else "right",
        "format_valid": True, "baseline_format_valid": True, "parts": [], "judged": None, "asked": True,
    }
    until = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 86_400))
    made = {"task": "triage", "number": 99, "run_id": "run-of-people", "until": until, "criteria": "Short and right.", "pairs": [one(n) for n in range(12)]}
    (folder / "pairs.json").write_text(json.dumps(made))


def every_page(eyes, base):
    """Each page as it is after the demo: what it says, how heavy it is, how soon it is seen."""
    page = eyes.page
    eyes.go("/console")
    assert "triage@1 serves" in page.inner_text("main"), page.inner_text("main")[:400]
    for word in ("format", "quality", "output"):
        assert page.locator("td", has_text=re.compile(f"^{word}$")).count(), f"the overview has no stream {word}"
    eyes.check("overview")

    page.keyboard.press("g")
    page.keyboard.press("d")
    page.wait_for_url("**/console/drift")
    eyes.settle()
    assert page.locator("figure canvas").count() >= 1, "no curve is drawn"
    eyes.check("drift")
    page.click("section a[href^='/console/drift/']")
    page.wait_for_url("**/console/drift/*")
    eyes.settle()
    shown = page.inner_text("main")
    assert "Words and phrases that moved" in shown and "Requests that are the most typical" in shown, shown[:600]
    eyes.check("alarm")

    page.keyboard.press("g")
    page.keyboard.press("u")
    page.wait_for_url("**/console/runs")
    eyes.settle()
    eyes.check("runs")
    page.click("a[href^='/console/runs/']")
    page.wait_for_url("**/console/runs/*")
    eyes.settle()
    shown = page.inner_text("main")
    for word in ("promote, promoted", "trained on", "SHA-256", "judged by"):
        assert word in shown, f"the run's page has no {word!r}: {shown[:800]}"
    assert page.locator("figure canvas").count() == 1, "the losses are not drawn"
    eyes.check("run")
    run = page.url
    page.click("text=The whole report")
    page.wait_for_url("**/report")
    assert "Lineage" in page.inner_text("body")
    eyes.quiet("report")
    eyes.go(run.removeprefix(base))

    for path in ("/console", "/console/review", "/console/compare", "/console/drift", "/console/runs", "/console/try", run.removeprefix(base)):
        size, paint = eyes.weigh(path)
        say(f"{path.split('/run-')[0]}: {size / 1000:.0f} kB with all its files, first paint after {paint:.0f} ms")


def hostile_texts(eyes, base, ids):
    """What wants to run is text: as the prompt, as a comment, as a name, in what somebody writes into a form."""
    for number, (id, text) in enumerate(zip(ids, HOSTILE)):
        eyes.go(f"/console/review?task=triage&id={id}")
        shown = eyes.page.locator(".said-by pre").all_inner_texts()
        assert text in shown, f"{text!r} is not shown as it was written: {shown}"
        assert not eyes.page.evaluate("window.wasPwned === true"), text
        if number == 0:
            eyes.check("review, hostile")
    for text in HOSTILE:
        for path in ("/console/review?task=", "/console/review?last=", "/console/sign-in?to=", "/console/drift/", "/console/runs/", "/console/adapters/"):
            eyes.go(path + urllib.request.quote(text, safe=""))
            assert not eyes.page.evaluate("window.wasPwned === true"), path + text
    eyes.go(f"/console/review?task=triage&id={ids[0]}")
    eyes.page.keyboard.press("e")
    eyes.page.keyboard.press("Control+a")
    eyes.page.keyboard.type(HOSTILE[2])
    eyes.page.keyboard.press("Control+Enter")
    eyes.page.wait_for_selector("[role=alert]")
    eyes.settle()
    assert "breaks the task's own format" in eyes.page.inner_text("[role=alert]")
    assert eyes.page.input_value("textarea[name=correction]") == HOSTILE[2], "what was written is lost"
    eyes.check("review, refused")


def review_by_keyboard(eyes, base, retune):
    """A hundred answers, a keystroke each; then one is taken back, and one is corrected."""
    page = eyes.page
    ratings = lambda: json.loads(retune.run("ledger", "sql", "--json", "select count(*) as n from feedback where source = 'console' and rating is not null"))["n"]
    before = ratings()
    eyes.go("/console/review?task=triage")
    eyes.check("review")
    began, strokes, seen = time.monotonic(), 0, set()
    for n in range(REVIEWED):
        id = page.input_value("form input[name=id] >> nth=-1")
        assert id not in seen, f"{id} is shown again"
        seen.add(id)
        page.keyboard.press("4" if n % 3 else "2")
        strokes += 1
        until(page, "id => [...document.querySelectorAll('input[name=id]')].at(-1)?.value !== id", arg=id)
        eyes.settle()
    took = time.monotonic() - began
    say(f"{REVIEWED} answers reviewed with {strokes} keystrokes in {took:.0f} s of the program's own time, {took / REVIEWED * 1000:.0f} ms each")
    assert ratings() == before + REVIEWED, f"{ratings() - before} ratings are kept"

    shown = page.input_value("form input[name=id] >> nth=-1")
    last = page.input_value("form[action$=undo] input[name=id]")
    page.keyboard.press("s")
    until(page, "id => [...document.querySelectorAll('input[name=id]')].at(-1)?.value !== id", arg=shown)
    eyes.settle()
    eyes.go(f"/console/review?task=triage&last={last}&rating=4")
    page.keyboard.press("u")
    page.wait_for_url(f"**id={last}*")
    eyes.settle()
    assert page.input_value("form input[name=id] >> nth=-1") == last, "undo does not show the answer again"
    page.keyboard.press("e")
    page.keyboard.press("Control+a")
    correction = {"team": "technical", "urgent": False, "product": "Lumo lamp", "order": "123456"}
    page.keyboard.type(json.dumps(correction))
    page.keyboard.press("Control+Enter")
    until(page, "() => document.querySelector('form[action$=undo]') || document.querySelector('[role=alert]')")
    eyes.settle()
    assert page.input_value("form[action$=undo] input[name=id]") == last, page.inner_text("main")[:400]
    kept = retune.run("ledger", "sql", "--json", f"select correction from feedback where request_id = '{last}' and correction is not null")
    assert json.loads(json.loads(kept.splitlines()[-1])["correction"]) == correction
    eyes.check("review, after a correction")
    page.keyboard.press("?")
    page.wait_for_selector("dialog[open]")
    assert "take the last word back" in page.inner_text("dialog")
    eyes.shot("keys")
    page.keyboard.press("Escape")


def compare(eyes, retune):
    """Blind: the page says nothing of whose an answer is; a keystroke votes."""
    page = eyes.page
    eyes.go("/console/compare")
    html = page.content()
    for telling in ("triage@", "candidate", "baseline", "champion", "chatcmpl-"):
        assert telling not in re.sub(r"<nav.*?</nav>", "", html, flags=re.S), f"the pair's page tells {telling!r}"
    eyes.check("compare")
    votes = retune.folder / "store" / "pairs" / "triage" / "99" / "votes"
    # A mark is chosen by its digit; neither it nor Enter votes.
    first = page.input_value("form[action='/console/compare'] input[name=id]")
    for key in ("m", "5", "Enter", "Control+Enter"):
        page.keyboard.press(key)
    assert page.is_checked("input[name='left.accuracy'][value='5']"), "a digit does not choose the mark"
    page.wait_for_timeout(300)
    assert page.input_value("form[action='/console/compare'] input[name=id]") == first and not votes.exists(), "a mark has voted"
    page.evaluate("document.activeElement.blur()")
    for n, key in enumerate("12312"):
        id = page.input_value("form[action='/console/compare'] input[name=id]")
        page.keyboard.press(key)
        until(page, "id => document.querySelector('form[action=\"/console/compare\"] input[name=id]')?.value !== id", arg=id)
        eyes.settle()
        vote = json.loads((votes / f"{id}.json").read_text())
        assert vote["choice"] == {"1": "left", "2": "tie", "3": "right"}[key], vote
        assert f"{n + 1} of 12 pairs have a vote" in page.inner_text("main")
    first = page.input_value("form[action='/console/compare'] input[name=id]")
    page.keyboard.press("s")
    page.wait_for_url("**after=*")
    eyes.settle()
    assert page.input_value("form[action='/console/compare'] input[name=id]") != first
    eyes.quiet("compare")


def decide(eyes, base):
    """Back to the base and forth again, each after a question."""
    page = eyes.page

    def champion():
        listed = api(base, "/admin/adapters")["data"]
        return next(item["stage"] for item in listed if item["name"] == "triage@1")

    assert champion() == "champion"
    eyes.go("/console/adapters/triage@1")
    eyes.check("adapter")
    page.click("text=rollback…")
    page.wait_for_url("**/rollback")
    eyes.settle()
    eyes.check("decide")
    assert champion() == "champion", "the question alone decided it"
    page.keyboard.type("customers complain")
    page.click("button:has-text('Yes, rollback')")
    page.wait_for_url("**done=1")
    eyes.settle()
    assert champion() != "champion"
    assert "customers complain" in page.inner_text("main")
    stage = champion()
    page.click("text=promote…" if stage != "rejected" else "text=history")
    page.wait_for_url("**/promote")
    eyes.settle()
    # Somebody else decides meanwhile: what was seen is so no longer.
    api(base, "/admin/adapters/triage@1/canary", {"share": 0.1, "reason": "meanwhile"})
    page.fill("input[name=reason]", "it was the weather")
    page.click("button:has-text('Yes, promote')")
    page.wait_for_selector("[role=alert]")
    assert "not the expected one" in page.inner_text("[role=alert]")
    eyes.settle()
    page.fill("input[name=reason]", "it was the weather")
    page.click("button:has-text('Yes, promote')")
    page.wait_for_url("**done=1")
    assert champion() == "champion"
    eyes.quiet("decide")


def alarm(eyes, base):
    """A word to the alarm, with its reason."""
    page = eyes.page
    eyes.go("/console/drift")
    page.click("section a[href^='/console/drift/']")
    page.wait_for_url("**/console/drift/*")
    eyes.settle()
    page.keyboard.press("w")
    page.keyboard.type("the new shop opened")
    page.keyboard.press("Control+Enter")
    page.wait_for_url("**done=1")
    eyes.settle()
    assert "acknowledged by somebody" in page.inner_text("main")
    words = [item["word"] for item in api(base, "/admin/alarms")["data"]]
    assert any(word and word["reason"] == "the new shop opened" for word in words)
    eyes.quiet("an alarm's word")


def failures(eyes, base):
    """What fails takes nothing away: a look that finds an error, a form that is not taken, a server that is gone."""
    page = eyes.page
    eyes.go("/console")
    broken = lambda route: route.fulfill(status=502, body="bad gateway") if "hx-request" in route.request.headers else route.continue_()
    page.route(f"{base}/console", broken)
    until(page, "() => document.getElementById('trouble')?.textContent.includes('502')")
    assert "triage@1 serves" in page.inner_text("main"), "a look that failed has emptied the page"
    page.unroute(f"{base}/console", broken)
    until(page, "() => !document.getElementById('trouble')")
    eyes.go("/console/review?task=triage")
    id = page.input_value("form input[name=id] >> nth=-1")
    page.keyboard.press("t")
    page.keyboard.type("#unsure, and a long comment")
    gone = lambda route: route.abort() if route.request.method == "POST" else route.continue_()
    page.route(f"{base}/console/review", gone)
    page.keyboard.press("Control+Enter")
    until(page, "() => document.getElementById('trouble')?.textContent.includes('did not answer')")
    assert page.input_value("input[name=comment]") == "#unsure, and a long comment", "what was written is lost"
    page.unroute(f"{base}/console/review", gone)
    # Somebody else's form, so to say: the token of no session.
    page.evaluate("document.querySelectorAll('input[name=token]').forEach(field => { field.value = '0'; })")
    page.focus("input[name=comment]")
    page.keyboard.press("Control+Enter")
    until(page, "() => document.getElementById('trouble')?.textContent.includes('load its page again')")
    assert page.input_value("input[name=comment]") == "#unsure, and a long comment", "what was written is lost"
    # A mark by its digit; then it is sent.
    eyes.go(f"/console/review?task=triage&id={id}")
    for key in ("a", "5"):
        page.keyboard.press(key)
    assert page.is_checked("input[name=accuracy][value='5']")
    page.keyboard.press("t")
    page.keyboard.type("#tone")
    page.keyboard.press("Control+Enter")
    page.wait_for_url("**last=*")
    eyes.settle()
    assert page.input_value("form[action$=undo] input[name=id]") == id
    # What htmx says of a request that was cut off here.
    known = ("net::ERR_FAILED", "htmx:sendError", "htmx:afterRequest")
    eyes.troubles = [trouble for trouble in eyes.troubles if not any(of in trouble for of in known)]
    eyes.quiet("failures")


def trial(eyes, base):
    """One question, answered side by side as it comes."""
    page = eyes.page
    eyes.go("/console/try")
    page.keyboard.press("e")
    page.keyboard.type("My invoice is wrong, I was charged twice.")
    page.keyboard.press("Control+Enter")
    until(page, "() => [...document.querySelectorAll('.said')].every(said => said.textContent.includes('all after'))", seconds=60)
    answers = page.locator("[data-model] pre").all_inner_texts()
    assert len(answers) >= 2 and all(answers), answers
    eyes.check("try")


def training(eyes, retune, base):
    """A run as it trains: its losses come by themselves, until it is told to stop."""
    page = eyes.page
    with open(retune.folder / "training.log", "wb") as log:
        run = subprocess.Popen([retune.program, "retrain", "--task", "triage", "--server", base], env=retune.env, cwd=retune.folder, stdout=log, stderr=log)
        try:
            eyes.go("/console/runs")
            until(page, "() => [...document.querySelectorAll('#live td')].some(cell => cell.textContent.trim() === 'training')", seconds=120)
            row = page.locator("tr", has=page.locator("td", has_text=re.compile("^training")))
            row.first.locator("a").first.click()
            page.wait_for_url("**/console/runs/run-*")
            eyes.settle()
            # Nothing is pressed, and nothing loaded: the page looks for itself.
            until(page, "() => document.querySelector('h2#state')?.textContent === 'training' && document.querySelectorAll('figure canvas').length === 1", seconds=120)
            points = page.evaluate("document.querySelectorAll('figure tbody tr').length")
            until(page, "before => document.querySelectorAll('figure tbody tr').length > before", arg=points, seconds=120)
            eyes.check("run, training")
        finally:
            run.terminate()
            run.wait(timeout=60)


def without_scripts(browser, base):
    """Links and forms alone."""
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(base + "/console/review?task=triage")
    id = page.locator("input[name=id]").last.get_attribute("value")
    page.click("button[name=rating][value='5']")
    assert page.locator("form[action$=undo] input[name=id]").get_attribute("value") == id
    page.click("form[action$=undo] button")
    assert f"id={id}" in page.url
    page.goto(base + "/console/try")
    page.fill("textarea[name=message]", "Where is my parcel?")
    page.click("button:has-text('Ask')")
    assert all(page.locator("[data-model] pre").all_inner_texts()), "no answer without scripts"
    for path in ("/console", "/console/drift", "/console/runs", "/console/compare"):
        assert page.goto(base + path).status == 200
    context.close()


def on_a_phone(browser, base, axe, shots):
    """Nothing is wider than a small phone."""
    eyes = Eyes(browser.new_context(viewport={"width": 360, "height": 740}, has_touch=True), base, axe, shots)
    for path in ("/console", "/console/review", "/console/compare", "/console/drift", "/console/runs", "/console/try"):
        eyes.go(path)
        wide = eyes.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert wide <= 0, f"{path} is {wide} pixels wider than a phone"
        eyes.shot(f"phone, {path.rsplit('/', 1)[-1]}")
    eyes.context.close()


def with_keys(browser, base, retune, axe, shots):
    """From the first key on nobody is let in without one."""
    made = {role: json.loads(retune.run("keys", "create", "--name", role, "--role", role, "--json")) for role in ("admin", "rater", "app")}
    key = {role: made[role]["key"] for role in made}
    until = time.monotonic() + 30
    while True:
        try:
            api(base, "/v1/models", wanted=401)
            break
        except AssertionError:
            assert time.monotonic() < until, "keys are not asked for"
            time.sleep(0.2)

    context = browser.new_context()
    eyes = Eyes(context, base, axe, shots)
    page = eyes.page
    eyes.go("/console/runs")
    assert "/console/sign-in" in page.url, page.url
    eyes.check("sign-in")

    def sign_in(text):
        page.fill("input[name=key]", text)
        page.click("button:has-text('Sign in')")
        page.wait_for_load_state("load")

    sign_in("rt-abcd1234-" + "0" * 64)
    assert "Incorrect API key" in page.inner_text("[role=alert]")
    sign_in(key["app"])
    assert "is an app's" in page.inner_text("[role=alert]")
    eyes.check("sign-in, refused")
    sign_in(key["rater"])
    assert "Not with this key" in page.inner_text("main"), page.inner_text("main")
    eyes.check("forbidden")
    eyes.go("/console")
    assert page.url.endswith("/console/review"), page.url
    assert page.locator("nav a").all_inner_texts() == ["Review", "Compare"]
    cookie = next(c for c in context.cookies() if c["name"] == "retune_console")
    assert cookie["httpOnly"] and cookie["sameSite"] == "Lax" and key["rater"] not in cookie["value"]

    def post(path, form, headers=None):
        return context.request.post(base + path, form=form, headers=headers or {}, max_redirects=0)

    token = page.get_attribute("form.who input[name=token]", "value")
    id = page.locator("input[name=id]").last.get_attribute("value")
    said = {"task": "triage", "id": id, "rating": "3"}
    assert post("/console/review", said).status == 403, "a form without a token is taken"
    assert post("/console/review", said | {"token": "0" * 64}).status == 403
    assert post("/console/review", said | {"token": token}, {"sec-fetch-site": "cross-site"}).status == 403
    assert post("/console/adapters/triage@1/rollback", {"token": token, "reason": "x", "champion": "triage@1", "seq": "1"}).status == 403
    assert post("/console/review", said | {"token": token}).status == 303
    forged = cookie["value"][:-1] + ("0" if cookie["value"][-1] != "0" else "1")
    stranger = browser.new_context()
    stranger.add_cookies([cookie | {"value": forged}])
    assert "/sign-in" in stranger.request.get(base + "/console/review").url
    stranger.close()

    headers = context.request.get(base + "/console/review").headers
    policy = headers["content-security-policy"]
    assert "script-src 'self'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy, policy
    assert headers["x-content-type-options"] == "nosniff" and headers["cache-control"] == "no-store"

    # A key that is taken back ends its sessions.
    retune.run("keys", "revoke", made["rater"]["id"])
    until = time.monotonic() + 30
    while "/sign-in" not in context.request.get(base + "/console/review").url:
        assert time.monotonic() < until, "a revoked key still sits at the console"
        time.sleep(0.2)
    eyes.go("/console/drift")
    sign_in(key["admin"])
    assert page.url.endswith("/console/drift"), page.url
    page.click("button:has-text('Sign out')")
    page.wait_for_load_state("load")
    eyes.go("/console")
    assert "/sign-in" in page.url
    log = (retune.folder / "browser.log").read_text()
    assert not any(text in log for text in key.values()), "a key is in the log"
    eyes.quiet("with keys")
    assert not eyes.complaints, eyes.complaints
    context.close()


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--retune", required=True, help="the program")
    arguments.add_argument("--axe", required=True, help="axe-core's axe.min.js")
    arguments.add_argument("--chromium", default=shutil.which("chromium"), help="the browser")
    arguments.add_argument("--shots", help="a folder for pictures")
    arguments.add_argument("--store", help="a folder that the demo has filled: it is copied")
    given = arguments.parse_args()
    axe = pathlib.Path(given.axe).read_text()
    if given.shots:
        pathlib.Path(given.shots).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="retune-browser-") as folder:
        retune = Retune(given.retune, f"{folder}/demo")
        if given.store:
            shutil.copytree(given.store, retune.folder)
        else:
            say("the demo plays")
            played = retune.demo(7)
            assert played["promoted"], played
        with retune.up() as base, sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=given.chromium, args=["--no-sandbox"])
            ids = hostile_traffic(base)
            traffic(retune, base, 40)
            pairs(retune, base)
            eyes = Eyes(browser.new_context(viewport={"width": 1200, "height": 800}), base, axe, given.shots)
            complaints = []
            for step, of in [
                (every_page, (eyes, base)), (hostile_texts, (eyes, base, ids)), (review_by_keyboard, (eyes, base, retune)),
                (compare, (eyes, retune)), (alarm, (eyes, base)), (failures, (eyes, base)), (trial, (eyes, base)), (decide, (eyes, base)), (training, (eyes, retune, base)),
                (without_scripts, (browser, base)), (on_a_phone, (browser, base, axe, given.shots)),
                (with_keys, (browser, base, retune, axe, given.shots)),
            ]:
                say(step.__doc__ or step.__name__)
                step(*of)
                complaints += eyes.complaints
                eyes.complaints = []
            browser.close()
    assert not complaints, "\n".join(complaints)
    print("the console holds")


if __name__ == "__main__":
    sys.exit(main())
