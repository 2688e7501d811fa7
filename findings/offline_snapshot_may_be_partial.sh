#!/usr/bin/env bash
# One would guess: since huggingface_hub raises IncompleteSnapshotError, snapshot_download without network gives a complete
# directory or an error, for patterns as for everything.
# True (huggingface_hub 2.4.0): it can tell only where an earlier snapshot_download of the same commit left the list of the
# repository's files (trees/). What single downloads have cached (hf_hub_download, and so a tokenizer or a config loaded by
# name) is returned as the whole model, without weights and without a warning. After one snapshot_download of the small files
# alone the same call raises.
# Why it matters: a node or a batch job that is offline and has only seen the tokenizer gets a "model" that fails much later.
# Fetch every part of a model through snapshot_download, or look for its weights.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check "huggingface_hub==2.4.0"
cd "$work"
cat > serve.py <<'PYTHON'
import hashlib, json, sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "a" * 40
FILES = {"config.json": b"{}", "model.safetensors": b"weights"}


class Hub(BaseHTTPRequestHandler):
    def do_GET(self):
        path, headers, status = self.path.split("?")[0], {}, 200
        oid = lambda data: hashlib.sha1(data).hexdigest()
        if "/tree/" in path:
            body = json.dumps([{"type": "file", "path": f, "size": len(d), "oid": oid(d)} for f, d in FILES.items()]).encode()
        elif path.startswith("/api/"):
            body = json.dumps({"id": "owner/name", "sha": COMMIT, "siblings": []}).encode()
        else:
            body = FILES[path.rsplit("/", 1)[-1]]
            headers = {"ETag": f'"{oid(body)}"', "X-Repo-Commit": COMMIT}
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, *args):
        pass


server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
print(server.server_port, flush=True)
server.serve_forever()
PYTHON
"$work/venv/bin/python" serve.py > port &
server=$!
trap 'kill $server; rm -rf "$work"' EXIT
until [ -s port ]; do sleep 0.1; done
export HF_HUB_OFFLINE=0 HF_ENDPOINT="http://127.0.0.1:$(cat port)" NO_PROXY=127.0.0.1 HF_HUB_DISABLE_XET=1
cat > ask.py <<'PYTHON'
import os, sys
from pathlib import Path

import huggingface_hub
from huggingface_hub import hf_hub_download, snapshot_download

what = sys.argv[1]
if what == "one file, online":
    hf_hub_download("owner/name", "config.json")
elif what == "small files, online":
    snapshot_download("owner/name", allow_patterns=["*.json"])
else:
    try:
        directory = snapshot_download("owner/name", local_files_only=True)
        print("everything, offline ->", sorted(os.listdir(directory)))
    except Exception as error:
        print("everything, offline ->", type(error).__name__)
PYTHON
ask() { HF_HOME="$work/$1" "$work/venv/bin/python" ask.py "$2"; }
"$work/venv/bin/python" -c "import huggingface_hub; print('huggingface_hub', huggingface_hub.__version__)"
echo "after hf_hub_download of config.json:"
ask one "one file, online" && ask one "offline" | tee first
echo "after snapshot_download of *.json:"
ask small "small files, online" && ask small "offline" | tee second
grep -qF "['config.json']" first
grep -qF "IncompleteSnapshotError" second
