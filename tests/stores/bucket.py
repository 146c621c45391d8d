"""A store in a bucket: two servers write to it without talking to each other, one is killed, one loses its lease,
and the bucket fails in every way.

    python tests/stores/bucket.py --retune target/release/retune --s3s s3s-fs
    python tests/stores/bucket.py --retune target/release/retune --s3s s3s-fs --google
    python tests/stores/bucket.py --retune target/release/retune --azurite azurite-blob

The bucket is s3s-fs, S3 over real HTTP on a folder, or Azurite, Microsoft's own stand-in for Azure's blobs, behind a proxy that can
answer 500, say nothing, or refuse. Google has no stand-in that knows its XML API whole; since that API is S3's but for its headers, the
proxy puts Google's into S3's words (`--google`). At the end each finished exchange is in the table once.
"""

import argparse
import base64
import contextlib
import email.utils
import hashlib
import hmac
import http.client
import http.server
import json
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

from machine import Machine, until

BUCKET = "logs"
KEY, SECRET = "retune", "not-a-secret"
# Of every Azurite: https://learn.microsoft.com/azure/storage/common/storage-use-azurite
ACCOUNT = "devstoreaccount1"
ACCOUNT_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


class Faults:
    """What the proxy does to every request: nothing, `500`, `silent` (it hangs until the fault is over), `refused`."""

    kind = None


class Proxy(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    upstream = None
    to_upstream = staticmethod(lambda headers: headers)
    to_client = staticmethod(lambda headers: headers)
    # Held by who creates an object: s3s-fs looks whether there is one, and then writes, which providers do in one step.
    creating = contextlib.nullcontext()

    def any(self):
        length = int(self.headers.get("content-length") or 0)
        body = self.rfile.read(length)
        if Faults.kind == "refused":
            self.close_connection = True
            return
        if Faults.kind == "silent":
            while Faults.kind == "silent":
                time.sleep(0.05)
            self.close_connection = True
            return
        if Faults.kind == "500":
            self.answer(500, {}, b"<Error><Code>InternalError</Code></Error>")
            return
        headers = list(Proxy.to_upstream(self.headers.items()))
        creates = any(name.lower() == "if-none-match" for name, _ in headers)
        with Proxy.creating if creates else contextlib.nullcontext():
            status, headers, body = self.forward(headers, body)
        self.answer(status, dict(Proxy.to_client(headers)), body)

    def forward(self, headers, body):
        upstream = http.client.HTTPConnection(*Proxy.upstream)
        upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in headers:
            upstream.putheader(name, value)
        upstream.endheaders(body)
        answer = upstream.getresponse()
        try:
            return answer.status, answer.getheaders(), answer.read()
        finally:
            upstream.close()

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = any

    def answer(self, status, headers, body):
        self.send_response_only(status)
        for name, value in headers.items():
            if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                self.send_header(name, value)
        length = headers.get("content-length", "0") if self.command == "HEAD" else str(len(body))
        self.send_header("content-length", length)
        self.end_headers()
        if self.command != "HEAD":
            # Whoever asked may be killed by now, or have given up.
            with contextlib.suppress(ConnectionError):
                self.wfile.write(body)

    def log_message(self, *_):
        pass


class Slow(Proxy):
    """For a machine whose work takes long, and which cannot say that it still has its lease."""

    has_lease, is_cut_off = threading.Event(), threading.Event()

    def any(self):
        if "leases" not in self.path:
            # Below the time after which a request is given up.
            time.sleep(15 if self.has_lease.is_set() else 0)
        elif self.is_cut_off.is_set():
            self.close_connection = True
            return
        elif self.command == "PUT":
            self.has_lease.set()
        super().any()

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = any


@contextlib.contextmanager
def serving(proxy):
    """The URL at which it serves."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), proxy)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class S3:
    """By s3s-fs."""

    keys = ["--access-key", KEY, "--secret-key", SECRET]

    def __init__(self, program, folder):
        root, self.port = folder / "objects", free_port()
        (root / BUCKET).mkdir(parents=True)
        self.command = [program, "--host", "127.0.0.1", "--port", str(self.port), *self.keys, str(root)]

    def begin(self):
        Proxy.creating = threading.Lock()

    @staticmethod
    def environment(endpoint):
        return {
            "RETUNE_STORE__URL": f"s3://{BUCKET}/retune",
            "AWS_ENDPOINT": endpoint,
            "AWS_ALLOW_HTTP": "true",
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": "us-east-1",
        }


class Google(S3):
    """By s3s-fs, which is told in its own words what Google's headers say: https://docs.cloud.google.com/storage/docs/xml-api/reference-headers"""

    keys = []

    def begin(self):
        super().begin()
        Proxy.to_upstream, Proxy.to_client = self.to_s3, self.to_google

    @staticmethod
    def to_s3(headers):
        for name, value in headers:
            match name.lower():
                case "x-goog-if-generation-match":
                    assert value == "0", "the store's objects are created if absent, and never replaced on a condition"
                    yield "if-none-match", "*"
                case "authorization":
                    assert value.startswith("Bearer"), value
                case _:
                    yield name, value

    @staticmethod
    def to_google(headers):
        yield from headers
        yield "x-goog-generation", str(time.time_ns() // 1000)

    @staticmethod
    def environment(endpoint):
        key = {"gcs_base_url": endpoint, "disable_oauth": True, "client_email": "", "private_key": "", "private_key_id": ""}
        return {"RETUNE_STORE__URL": f"gs://{BUCKET}/retune", "GOOGLE_SERVICE_ACCOUNT_KEY": json.dumps(key), "GOOGLE_ALLOW_HTTP": "true"}


class Azure:
    """By Azurite."""

    def __init__(self, program, folder):
        self.port = free_port()
        self.command = [program, "--blobPort", str(self.port), "--location", str(folder / "objects"), "--silent", "--disableTelemetry", "--skipApiVersionCheck"]

    def begin(self):
        """Makes the container: https://learn.microsoft.com/rest/api/storageservices/authorize-with-shared-key"""
        headers = {"x-ms-date": email.utils.formatdate(usegmt=True), "x-ms-version": "2024-11-04"}
        signed = "PUT" + "\n" * 12 + "".join(f"{name}:{value}\n" for name, value in headers.items())
        signed += f"/{ACCOUNT}/{ACCOUNT}/{BUCKET}\nrestype:container"
        digest = hmac.new(base64.b64decode(ACCOUNT_KEY), signed.encode(), hashlib.sha256).digest()
        headers["authorization"] = f"SharedKey {ACCOUNT}:{base64.b64encode(digest).decode()}"
        url = f"http://127.0.0.1:{self.port}/{ACCOUNT}/{BUCKET}?restype=container"
        urllib.request.urlopen(urllib.request.Request(url, headers=headers, method="PUT"), timeout=10).close()

    @staticmethod
    def environment(endpoint):
        return {"RETUNE_STORE__URL": f"az://{BUCKET}/retune", "AZURE_STORAGE_USE_EMULATOR": "true", "AZURITE_BLOB_STORAGE_URL": endpoint}


@contextlib.contextmanager
def bucket(provider, folder):
    """What a server needs in its environment to reach it, through faults."""
    log = open(folder / "bucket.log", "w")
    child = subprocess.Popen(provider.command, stdout=log, stderr=log)
    Proxy.upstream = ("127.0.0.1", provider.port)
    try:
        for _ in range(100):
            with contextlib.suppress(OSError), socket.create_connection(Proxy.upstream, 1):
                break
            assert child.poll() is None, (folder / "bucket.log").read_text()
            time.sleep(0.1)
        provider.begin()
        with serving(Proxy) as url:
            yield provider.environment(url)
    finally:
        Faults.kind = None
        child.kill()
        child.wait()


def adapter(folder):
    """A PEFT folder for the model inside the program, that changes nothing: its B is zero."""
    model = json.loads((Path(__file__).parents[2] / "models/pocket/config.json").read_text())
    hidden, heads, layers, rank = model["hidden_size"], model["num_attention_heads"], model["num_hidden_layers"], 2
    width = model.get("head_dim") or hidden // heads
    header, data = {}, b""
    for layer in range(layers):
        name = f"base_model.model.model.layers.{layer}.self_attn.q_proj.lora_"
        for part, shape, value in (("A", (rank, hidden), 0.01), ("B", (heads * width, rank), 0.0)):
            count = shape[0] * shape[1]
            header[f"{name}{part}.weight"] = {"dtype": "F32", "shape": shape, "data_offsets": (len(data), len(data) + 4 * count)}
            data += struct.pack("<f", value) * count
    folder.mkdir()
    text = json.dumps(header).encode()
    (folder / "adapter_model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": rank, "target_modules": ["q_proj"], "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--retune", required=True)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--s3s", help="the program s3s-fs")
    which.add_argument("--azurite", help="the program azurite-blob")
    parser.add_argument("--google", action="store_true", help="the program s3s-fs as if it were Google's")
    parser.add_argument("--keep", action="store_true", help="leave the folder, and say where it is")
    args = parser.parse_args()
    if args.google and args.azurite:
        parser.error("--google goes with --s3s")
    retune = str(Path(args.retune).resolve())
    folder = Path(tempfile.mkdtemp(prefix="retune-bucket-"))
    if args.azurite:
        provider = Azure(args.azurite, folder)
    else:
        provider = (Google if args.google else S3)(args.s3s, folder)
    machines = []
    try:
        with bucket(provider, folder) as environment:
            machines += [Machine(retune, folder / name, environment).start() for name in ("one", "two")]
            play(folder, *machines)
            lose_a_lease(provider, *machines)
        print(f"a bucket ({type(provider).__name__}): shared, lost and found, and nothing lost or doubled")
    except BaseException:
        for machine in machines:
            print((machine.folder / "log").read_text()[-3000:])
        raise
    finally:
        for machine in machines:
            if machine.child.poll() is None:
                machine.kill()
        if args.keep:
            print(folder)
        else:
            shutil.rmtree(folder)


def play(folder, one, two):
    sent = [machine.ask(f"Where is order {n}?") for n in range(5) for machine in (one, two)]
    # Either takes feedback on the other's answers, at once, and knows an invented id.
    assert [two.feedback(sent[0], 5), one.feedback(sent[1], 1)] == [201, 201]
    forged = sent[0][:-1] + ("0" if sent[0][-1] != "0" else "1")
    assert one.feedback(forged, 5) == 404

    # An adapter that one brings answers at the other.
    one.run("adapter", "import", "--task", "triage", str(adapter(folder / "lora")))
    until(lambda: "triage@1" in str(two.get("/v1/models")[1]), "the other server knows the adapter")
    sent.append(two.ask("Hello", "triage@1"))
    until(lambda: set(one.ids()) >= set(sent), "one machine sees the other's rows")

    # The bucket is away, in three ways: apps are answered, and feedback is taken; the rows wait.
    for fault, seconds in (("500", 8), ("silent", 30), ("refused", 8)):
        Faults.kind = fault
        began = time.monotonic()
        while time.monotonic() - began < seconds:
            asked = time.monotonic()
            sent.append(one.ask(f"{fault} {len(sent)}"))
            assert one.feedback(sent[-1], 4) == 201
            assert time.monotonic() - asked < 5, "an app waited for the bucket"
            time.sleep(0.5)
        Faults.kind = None
        until(lambda: set(two.ids()) >= set(sent), f"rows are in the table after {fault}", 120)

    # Killed while the bucket is away, restarted on the same folder: what it answered is there.
    Faults.kind = "500"
    sent += [one.ask(f"last words {n}") for n in range(3)]
    one.kill()
    Faults.kind = None
    one.start()
    until(lambda: set(two.ids()) >= set(sent), "rows of a killed server are in the table", 120)

    # Forgotten on one machine while the other still has rows in its log: nobody sees them again.
    hers = [machine.ask(f"Ann's {n}", user="ann@example.org") for n in range(3) for machine in (one, two)]
    done = json.loads(one.run("ledger", "forget", "--user", "ann@example.org", "--json"))
    assert done["exchanges"] <= len(hers) and done["unread"] == [], done
    assert two.feedback(hers[0], 1) == 201
    until(lambda: not set(two.ids()) & set(hers), "what was in the other machine's log is forgotten too")

    # Stopped, each publishes what it has; then all is there, once.
    sent += [machine.ask("the end") for machine in (one, two)]
    assert [machine.kill(signal.SIGTERM) for machine in (one, two)] == [0, 0]
    ids = two.ids()
    assert ids == {id: 1 for id in sent}, (len(ids), len(sent), [n for n in ids.values() if n > 1], set(sent) - set(ids))
    said = two.sql("select count(*) as n, count(distinct request_id) as exchanges from feedback")[0]
    assert said["n"] == said["exchanges"] > 2, said
    # A server that was stopped while it merged files keeps its lease until that is over.
    until(lambda: two.try_to("ledger", "compact"), "files are merged", 150)
    assert_whole(two, ids)
    assert not list((folder / "one/local/wal").glob("*/*.wal")), "rows are left in a log"


def lose_a_lease(provider, one, two):
    """While one machine merges files it cannot renew its lease; another takes that, and the first ends where it is."""
    ids = two.ids()
    with serving(Slow) as url:
        command = [one.retune, "ledger", "compact"]
        env = one.env | provider.environment(url)
        slow = subprocess.Popen(command, cwd=one.folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        try:
            until(Slow.has_lease.is_set, "one machine has the lease")
            # What it does to get it is over.
            time.sleep(5)
            Slow.is_cut_off.set()
            until(lambda: two.try_to("ledger", "compact"), "its lease is over", 150)
            Slow.is_cut_off.clear()
            said = slow.communicate(timeout=60)[1]
        finally:
            slow.kill()
    assert slow.returncode == 1 and "somebody else has taken the right" in said, (slow.returncode, said)
    assert_whole(two, ids)


def assert_whole(machine, ids):
    verified = json.loads(machine.run("ledger", "verify", "--json").splitlines()[-1])
    assert verified["problems"] == 0 and verified["rows"] >= len(ids), verified
    assert machine.ids() == ids


if __name__ == "__main__":
    main()
