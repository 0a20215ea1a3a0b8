"""An HTTP/1 server on the standard library: says what it heard, takes and gives bytes, echoes over WebSocket.

It is as lax as such servers are, and reads fields as WSGI does, so that a spelling that it would take for an identity is
found in `identities`.
"""
import base64, hashlib, json, socketserver, sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
import socket

class Server(ThreadingHTTPServer):
    address_family = socket.AF_INET6
    daemon_threads = True
    request_queue_size = 128

    def server_bind(self):
        self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        socketserver.TCPServer.server_bind(self)

class App(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *words):
        pass

    def body(self):
        sha, size, trailers = hashlib.sha256(), 0, []
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            while True:
                n = int(self.rfile.readline().split(b";")[0], 16)
                if n == 0:
                    break
                data = self.rfile.read(n)
                sha.update(data); size += n
                self.rfile.readline()
            while (line := self.rfile.readline().strip()):
                trailers.append(line.decode("latin-1"))
        else:
            left = int(self.headers.get("Content-Length", 0))
            while left and (data := self.rfile.read(min(left, 65536))):
                sha.update(data); size += len(data); left -= len(data)
        return sha.hexdigest(), size, trailers

    def heard(self):
        sha, size, trailers = self.body()
        lines = ["%s: %s" % pair for pair in self.headers.items()] + trailers
        key = "HTTP_X_FORWARDED_CLIENT_CERT"
        env = lambda line: "HTTP_" + "".join(c if c.isalnum() else "_" for c in line.split(":")[0].strip()).upper()
        return {"method": self.command, "path": self.path, "lines": lines, "sha256": sha, "size": size,
                "identities": [line for line in lines if env(line) == key], "port": self.client_address[1]}

    def answer(self):
        if self.headers.get("Upgrade", "").lower() == "websocket":
            return self.websocket()
        heard = self.heard()
        if self.path.startswith("/bytes/"):
            n = int(self.path.split("/")[2])
            self.send_response(200); self.send_header("Content-Length", str(n)); self.end_headers()
            block = bytes(range(256)) * 256
            for at in range(0, n, len(block)):
                self.wfile.write(block[: min(len(block), n - at)])
            return
        if self.path.startswith("/status/"):
            self.send_response(int(self.path.split("/")[2])); self.end_headers()
            return
        body = (json.dumps(heard) + "\n").encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_POST = do_PUT = do_HEAD = do_OPTIONS = do_BREW = do_CONNECT = answer

    def websocket(self):
        key = self.headers["Sec-WebSocket-Key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        self.send_response(101)
        self.send_header("Upgrade", "websocket"); self.send_header("Connection", "Upgrade")
        self.send_header("Sec-WebSocket-Accept", base64.b64encode(hashlib.sha1(key.encode()).digest()).decode())
        self.end_headers()
        self.close_connection = True
        while len(head := self.rfile.read(2)) == 2:
            length = head[1] & 127
            if length == 126:
                length = int.from_bytes(self.rfile.read(2), "big")
            mask, data = self.rfile.read(4), self.rfile.read(length)
            data = bytes(b ^ mask[i % 4] for i, b in enumerate(data))
            size = bytes([len(data)]) if len(data) < 126 else b"\x7e" + len(data).to_bytes(2, "big")
            self.wfile.write(bytes([head[0]]) + size + data)
            if head[0] & 15 == 8:
                return

Server(("::", int(sys.argv[1])), App).serve_forever()
