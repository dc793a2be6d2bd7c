"""A headless Chromium for tests of pages, driven through the pipe of its DevTools protocol."""

import json
import os
import shutil
import subprocess
import tempfile

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def find_browser():
    return next((path for path in map(shutil.which, NAMES) if path), None)


class Browser:
    """One process; each page is a tab of its own."""

    def __init__(self):
        self.folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        to_browser, self.output = os.pipe()
        self.input, from_browser = os.pipe()
        # The browser reads its file descriptor 3 and writes 4, through a shell since they may be taken here.
        command = f'exec "$@" 3<&{to_browser} 4>&{from_browser}'
        arguments = ["--headless", "--remote-debugging-pipe", "--disable-gpu", "--no-first-run", "--disable-extensions",
                     "--disable-dev-shm-usage", "--disable-background-networking", "--window-size=1300,1200",
                     f"--user-data-dir={self.folder.name}"]
        if os.geteuid() == 0:
            arguments.append("--no-sandbox")  # which cannot be had as root
        self.process = subprocess.Popen(["bash", "-c", command, "bash", find_browser(), *arguments],
                                        pass_fds=(to_browser, from_browser), stderr=subprocess.DEVNULL)
        os.close(to_browser)
        os.close(from_browser)
        self.received = b""
        self.number = 0
        self.tabs = {}

    def close(self):
        self.call("Browser.close")
        self.process.wait()
        os.close(self.output)
        os.close(self.input)
        self.folder.cleanup()

    def message(self):
        while b"\0" not in self.received:
            piece = os.read(self.input, 1 << 16)
            if not piece:
                raise RuntimeError("the browser has ended")
            self.received += piece
        text, self.received = self.received.split(b"\0", 1)
        return json.loads(text)

    def call(self, method, session=None, **parameters):
        self.number += 1
        request = {"id": self.number, "method": method, "params": parameters}
        if session:
            request["sessionId"] = session
        os.write(self.output, json.dumps(request).encode() + b"\0")
        while True:
            message = self.message()
            if message.get("id") == self.number:
                if "error" in message:
                    raise RuntimeError(f"{method}: {message['error']['message']}")
                return message["result"]
            if message.get("sessionId") in self.tabs:
                self.tabs[message["sessionId"]].note(message["method"], message["params"])

    def open(self, url):
        return Tab(self, url)


class Tab:
    """`problems` are what the page has said on its console or thrown, `requests` the addresses that it asked for."""

    def __init__(self, browser, url):
        self.browser = browser
        self.problems = []
        self.requests = []
        target = browser.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = browser.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        browser.tabs[self.session] = self
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.call("Page.navigate", url=url)

    def note(self, method, parameters):
        if method in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"):
            self.problems.append(json.dumps(parameters))
        elif method == "Network.requestWillBeSent":
            self.requests.append(parameters["request"]["url"])

    def call(self, method, **parameters):
        return self.browser.call(method, self.session, **parameters)

    def evaluate(self, expression):
        """The value of an expression of JavaScript; a promise is waited for."""
        result = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in result:
            raise RuntimeError(f"{expression}: {result['exceptionDetails']}")
        return result["result"].get("value")

    def press(self, key, shift=False):
        for kind in ("rawKeyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, modifiers=8 if shift else 0,
                      windowsVirtualKeyCode={"PageUp": 33, "PageDown": 34, "End": 35, "Home": 36, "ArrowLeft": 37,
                                             "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}[key])

    def mouse(self, kind, x, y, pressed=False):
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left" if pressed else "none",
                  buttons=1 if pressed else 0, clickCount=1 if pressed else 0)
