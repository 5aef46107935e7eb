"""A bucket on this machine: what gcsfs, TensorStore and google-cloud-storage ask of the JSON API, kept in memory.

    with served("test") as address, ...      environment(address) points all three at it

`python tests/bucket.py test 9023` serves one until it is ended.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

PLACE = r"(?:/upload|/download)?/storage/v1/b/([^/]+)(?:/o(?:/([^/]+)(/rewriteTo/.*)?)?)?"
EXACTLY, UNLESS = "ifGenerationMatch", "ifGenerationNotMatch"


def environment(address: str) -> dict[str, str]:
    """What to set so that clients go to a server, without credentials, and fail at once where there is none."""
    return {
        "STORAGE_EMULATOR_HOST": address,
        "TENSORSTORE_GCS_HTTP_URL": address,
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
        "NO_GCE_CHECK": "true",
    }


class Handler(BaseHTTPRequestHandler):
    """Answers for the objects of `server.objects`: `{name: (generation, content)}`."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Any

    def log_message(self, *args: Any) -> None:
        """Say nothing."""

    def handle_all(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        with self.server.lock:
            status, headers, content = self.answer(self.command, self.path, self.headers, body)
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PUT = do_DELETE = handle_all  # noqa: N815 - names that http.server calls

    def answer(self, method: str, target: str, headers: Any, body: bytes) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and content."""
        url = urlsplit(target)
        query = {key: values[0] for key, values in parse_qs(url.query, keep_blank_values=True).items()}
        if url.path.startswith("/batch"):
            return self.batch(headers, body)
        if status := self.server.refusing or 403 * (self.server.read_only and method != "GET"):
            return status, {}, json.dumps({"error": {"code": status, "message": "not with these rights"}}).encode()
        place = re.fullmatch(PLACE, url.path)
        if place is None or place[1] != self.server.bucket:
            return 404, {}, b"Not Found"
        if url.path.startswith("/upload"):
            return self.upload(query, headers, body)
        if place[2] is not None:
            return self.of_object(method, unquote(place[2]), place[3], query, headers)
        return self.listed(query) if url.path.endswith("/o") else (200, {}, json.dumps({"name": place[1]}).encode())

    def batch(self, headers: Any, body: bytes) -> tuple[int, dict[str, str], bytes]:
        """Many requests in one, as gcsfs deletes."""
        found = re.findall(rb"Content-ID: ?<?([^>\r\n]+)>?.*?(DELETE|GET|POST) (\S+) HTTP", body, re.DOTALL)
        parts = []
        for name, method, target in found:
            status, _, content = self.answer(method.decode(), target.decode(), headers, b"")
            head = f"--batch_7\r\nContent-Type: application/http\r\nContent-ID: <response-{name.decode()}>\r\n\r\n"
            parts.append(f"{head}HTTP/1.1 {status} -\r\nContent-Length: {len(content)}\r\n\r\n".encode() + content)
        return 200, {"Content-Type": 'multipart/mixed; boundary=batch_7'}, b"\r\n".join([*parts, b"--batch_7--"])

    def upload(self, query: dict[str, str], headers: Any, body: bytes) -> tuple[int, dict[str, str], bytes]:
        """An object that comes alone, behind its name, or in parts to an address that is told first."""
        name = query.get("name")
        if query["uploadType"] == "resumable" and "upload_id" not in query:
            name = quote(name or json.loads(body)["name"], safe="")
            self.server.generation += 1
            goes_on = f"{self.server.address}{urlsplit(self.path).path}?uploadType=resumable&name={name}"
            return 200, {"Location": f"{goes_on}&upload_id={self.server.generation}"}, b"{}"
        if query["uploadType"] == "resumable":
            body = self.server.parts.pop(query["upload_id"], b"") + body
            if headers.get("Content-Range", "").endswith("/*"):
                self.server.parts[query["upload_id"]] = body
                return 308, {"Range": f"bytes=0-{len(body) - 1}"}, b""
        if query["uploadType"] == "multipart":
            mark = re.search(r'boundary="?([^";]+)', headers["Content-Type"])
            assert mark is not None
            _, about, part = body.split(b"--" + mark[1].encode(), 2)
            name = json.loads(about.split(b"\n\n", 1)[1])["name"]
            body = part.split(b"\n\n", 1)[1].rpartition(b"\n--" + mark[1].encode())[0]
        assert name is not None
        if self.unmet(name, query):
            return 412, {}, b"{}"
        return 200, {}, self.keep(name, body)

    def keep(self, name: str, content: bytes) -> bytes:
        """A new generation of an object; what is said of it."""
        self.server.generation += 1
        self.server.objects[name] = (self.server.generation, content)
        return json.dumps(self.described(name)).encode()

    def unmet(self, name: str, query: dict[str, str]) -> bool:
        """Whether an object is not of the generation that is asked for."""
        return EXACTLY in query and int(query[EXACTLY]) != self.server.objects.get(name, (0, b""))[0]

    def described(self, name: str) -> dict[str, str]:
        """What is said of an object."""
        generation, content = self.server.objects[name]
        digest = base64.b64encode(hashlib.md5(content).digest()).decode()
        about = {"name": name, "bucket": self.server.bucket, "size": str(len(content)), "md5Hash": digest}
        return about | {"generation": str(generation), "metageneration": "1", "updated": "2000-01-01T00:00:00.000Z"}

    def of_object(
        self, method: str, name: str, copied: str | None, query: dict[str, str], headers: Any
    ) -> tuple[int, dict[str, str], bytes]:
        """One object: read, described, copied or deleted."""
        if name not in self.server.objects:
            return 404, {}, b"Not Found"
        generation, content = self.server.objects[name]
        if self.unmet(name, query):
            return 412, {}, b"{}"
        if method == "DELETE":
            del self.server.objects[name]
            return 204, {}, b""
        if copied is not None:
            about = json.loads(self.keep(unquote(copied.rpartition("/o/")[2]), content))
            return 200, {}, json.dumps({"done": True, "resource": about}).encode()
        if query.get("alt") != "media":
            return 200, {}, json.dumps(self.described(name)).encode()
        if query.get(UNLESS) == str(generation):
            return 304, {}, b""
        said, status, part = {"x-goog-generation": str(generation)}, 200, content
        if (wanted := re.fullmatch(r"bytes=(\d*)-(\d*)", headers.get("Range") or "")) and any(wanted.groups()):
            first = int(wanted[1]) if wanted[1] else max(0, len(content) - int(wanted[2]))
            part = content[first : int(wanted[2]) + 1 if wanted[1] and wanted[2] else None]
            said["Content-Range"] = f"bytes {first}-{first + len(part) - 1}/{len(content)}"
            status = 206 if part else 416
        return status, said, part

    def listed(self, query: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
        """Names that begin alike, and those up to a delimiter once."""
        prefix, mark, items, folders = query.get("prefix", ""), query.get("delimiter"), [], set()
        for name in sorted(self.server.objects):
            if not name.startswith(prefix) or not query.get("startOffset", "") <= name < query.get("endOffset", "~~"):
                continue
            head, found, _ = name[len(prefix) :].partition(mark) if mark else ("", "", "")
            folders |= {prefix + head + found} if found else set()
            items += [] if found else [self.described(name)]
        return 200, {}, json.dumps({"items": items, "prefixes": sorted(folders)}).encode()


@contextmanager
def served(bucket: str, port: int = 0) -> Iterator[ThreadingHTTPServer]:
    """A server of one empty bucket, with `objects`, `refusing`, a status to answer everything with, and `read_only`."""
    server: Any = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.bucket, server.objects, server.parts, server.generation, server.refusing = bucket, {}, {}, 1000, 0
    server.read_only, server.lock, server.address = False, threading.RLock(), f"http://127.0.0.1:{server.server_port}"
    server.handle_error = lambda *request: None  # clients that are killed
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


if __name__ == "__main__":
    with served(sys.argv[1], int(sys.argv[2])) as started:
        print(started.address, flush=True)  # type: ignore[attr-defined]
        threading.Event().wait()
