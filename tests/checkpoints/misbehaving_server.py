"""A local HTTP server that misbehaves as a test asks."""

import base64
import hashlib
import http.server
import re
import threading
from functools import partial


class Server(http.server.ThreadingHTTPServer):
    """Serves files, modifying its responses with `modify`.

    Attributes:
        files: path to content.
        modify: called with the path, the response's headers and body; returns the headers and body to send.
        redirects: path to URL.
        requests: (path, range) of every request.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.requests, self.has_md5, self.has_etag = {}, [], True, True
        self.status, self.modify = None, lambda path, headers, body: (headers, body)
        self.redirects = {}
        threading.Thread(target=partial(self.serve_forever, poll_interval=0.01), daemon=True).start()

    @property
    def address(self):
        return f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        server, path = self.server, self.path.lstrip("/")
        requested_range = self.headers.get("Range")
        server.requests.append((path, requested_range))
        if path in server.redirects:
            self.send_response(302)
            self.send_header("Location", server.redirects[path])
            self.send_header("Content-Length", "0")
            return self.end_headers()
        if server.status is not None or path not in server.files:
            return self.send_error(server.status or 404)
        content = server.files[path]
        etag = '"' + hashlib.sha256(content).hexdigest()[:16] + '"'
        begin, status = 0, 200
        # RFC 9110: without If-Range the range applies.
        if requested_range and self.headers.get("If-Range", etag) == etag:
            begin, status = int(re.fullmatch(r"bytes=(\d+)-", requested_range)[1]), 206
            if begin >= len(content):
                return self.send_error(416)
        headers = {"Content-Length": str(len(content) - begin)}
        if status == 206:
            headers["Content-Range"] = f"bytes {begin}-{len(content) - 1}/{len(content)}"
        if server.has_etag:
            headers["ETag"] = etag
        if server.has_md5:
            headers["Content-MD5"] = base64.b64encode(hashlib.md5(content).digest()).decode()
        headers, body = server.modify(path, headers, content[begin:])
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
        return None

    def log_message(self, *_):
        pass
