"""A server on this machine that behaves as badly as a test wants."""

import base64
import hashlib
import http.server
import re
import threading
from functools import partial


class Server(http.server.ThreadingHTTPServer):
    """Serves files, and does to its answers what `mischief` says.

    Attributes:
        files: path to content.
        mischief: called with the path, the answer's headers and its body; gives both again.
        redirects: path to address.
        asked: (path, range) of every request.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.asked, self.has_md5, self.has_etag = {}, [], True, True
        self.status, self.mischief = None, lambda path, headers, body: (headers, body)
        self.redirects = {}
        threading.Thread(target=partial(self.serve_forever, poll_interval=0.01), daemon=True).start()

    @property
    def address(self):
        return f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        server, path = self.server, self.path.lstrip("/")
        wanted = self.headers.get("Range")
        server.asked.append((path, wanted))
        if path in server.redirects:
            self.send_response(302)
            self.send_header("Location", server.redirects[path])
            self.send_header("Content-Length", "0")
            return self.end_headers()
        if server.status is not None or path not in server.files:
            return self.send_error(server.status or 404)
        content = server.files[path]
        tag = '"' + hashlib.sha256(content).hexdigest()[:16] + '"'
        begin, status = 0, 200
        if wanted and self.headers.get("If-Range", tag) == tag:  # a range that nothing restrains is given (RFC 9110)
            begin, status = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1]), 206
            if begin >= len(content):
                return self.send_error(416)
        headers = {"Content-Length": str(len(content) - begin)}
        if status == 206:
            headers["Content-Range"] = f"bytes {begin}-{len(content) - 1}/{len(content)}"
        if server.has_etag:
            headers["ETag"] = tag
        if server.has_md5:
            headers["Content-MD5"] = base64.b64encode(hashlib.md5(content).digest()).decode()
        headers, body = server.mischief(path, headers, content[begin:])
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
        return None

    def log_message(self, *_):
        pass
