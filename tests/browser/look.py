"""What every page of the console has to be, whoever looks at it: accessible, small, quick, and deaf to what was logged."""

import json
import pathlib
import time

from playwright.sync_api import Error

# What a page may weigh with all its files. How soon it is seen depends on the machine: that is told, and no test.
PAGE_BYTES = 200_000


def until(page, script, arg=None, seconds=30):
    """Waits until a function of the page says so: the page's own policy lets nobody but the debugger evaluate text."""
    end = time.monotonic() + seconds
    while True:
        try:
            if page.evaluate(script, arg):
                return
        except Error as error:
            # It went to another page meanwhile.
            if "context was destroyed" not in str(error):
                raise
        assert time.monotonic() < end, f"{page.url}: never came: {script}"
        page.wait_for_timeout(5)


class Eyes:
    """A browser's page, watched for what no page may do."""

    def __init__(self, context, base, axe, shots):
        self.context, self.base, self.axe, self.shots = context, base, axe, shots
        self.page = context.new_page()
        # What ends a step, and what is told at its end.
        self.troubles, self.complaints = [], []
        self.page.on("pageerror", lambda error: self.troubles.append(f"an error in a script: {error}"))
        self.page.on("dialog", self._dialog)
        self.page.on("console", self._console)
        # Text that was logged, and ran.
        self.page.add_init_script("window.pwned = () => { window.wasPwned = true; };")

    def _dialog(self, dialog):
        self.troubles.append(f"a dialog: {dialog.message}")
        dialog.dismiss()

    def _console(self, message):
        if message.type == "error" and "Failed to load resource" not in message.text:
            self.troubles.append(f"the browser complains: {message.text}")

    def go(self, path):
        response = self.page.goto(self.base + path)
        self.settle()
        return response

    def settle(self):
        self.page.wait_for_load_state("load")
        until(self.page, "() => !document.querySelector('.htmx-request, .htmx-swapping, .htmx-settling')")

    def check(self, name):
        """The page as it is now: nobody's text ran, nothing came from elsewhere, axe has no complaint, a picture is taken."""
        page = self.page
        assert not page.evaluate("window.wasPwned === true"), f"{name}: what was logged ran as a script"
        self.quiet(name)
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            self._axe(f"{name}, {scheme}")
        page.emulate_media(color_scheme="light")
        self.shot(name)

    def quiet(self, name):
        assert not self.troubles, f"{name}: {self.troubles}"

    def _axe(self, name):
        self.page.evaluate(self.axe)
        result = self.page.evaluate(
            "axe.run(document, {runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22aa', 'best-practice']})"
        )
        broken = [
            f"{rule['id']} ({rule['help']}): " + "; ".join(node["html"][:160] for node in rule["nodes"][:3])
            for rule in result["violations"]
        ]
        self.complaints += [f"{name}: axe finds {what}" for what in broken]

    def shot(self, name):
        if self.shots:
            file = name.lower().replace(", ", "-").replace(" ", "-")
            self.page.screenshot(path=pathlib.Path(self.shots) / f"{file}.png", full_page=True)

    def weigh(self, path):
        """Bytes of a page with all its files, none of them cached, and the milliseconds until something is seen."""
        page = self.context.browser.new_context(**self.signed_in()).new_page()
        sizes, elsewhere = {}, []

        def took(response):
            if not response.url.startswith((self.base, "data:")):
                elsewhere.append(response.url)
            if response.url.startswith(self.base):
                sizes[response.url] = len(response.body())

        page.on("response", took)
        page.goto(self.base + path)
        page.wait_for_load_state("networkidle", timeout=5_000) if "every" not in page.content() else page.wait_for_timeout(300)
        paint = page.evaluate(
            "new Promise(done => { const seen = performance.getEntriesByName('first-contentful-paint')[0];"
            " seen ? done(seen.startTime) : new PerformanceObserver(list => done(list.getEntries()[0].startTime)).observe({type: 'paint', buffered: true}); })"
        )
        page.context.close()
        assert not elsewhere, f"{path} loads {elsewhere}"
        size = sum(sizes.values())
        assert size <= PAGE_BYTES, f"{path} weighs {size} bytes: {json.dumps(sizes, indent=1)}"
        return size, paint

    def signed_in(self):
        return {"storage_state": self.context.storage_state()}
