"""Write the token from the Secret to a configuration file of nats-server, quoted.

The server would parse an unquoted token from the environment: 20m as a number, and a # as the start of a comment.
"""

import json
import os
from pathlib import Path
from urllib.parse import quote

token = os.environ["TOKEN"]
hosts = os.environ["HOSTS"].split(",")

values: dict[str, str | list[str]] = {"TOKEN": token}
if len(hosts) > 1:
    user = f"route:{quote(token, safe='')}"
    values["ROUTES"] = [f"nats-route://{user}@{host}:6222" for host in hosts]

os.umask(0o077)
# nats-server reads JSON strings, but not their escapes for non-ASCII characters.
lines = [f"{name}: {json.dumps(value, ensure_ascii=False)}\n" for name, value in values.items()]
Path("/run/nats/access.conf").write_text("".join(lines), encoding="utf-8")
