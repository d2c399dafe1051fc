"""Write what nats-server needs of the token's Secret, in its own form, whatever characters the token is made of.

Read from the environment as it is, a token such as 20m or one with a # in it would be taken for something else.
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
# The server reads JSON, but not its escapes for what is beyond ASCII.
lines = [f"{name}: {json.dumps(value, ensure_ascii=False)}\n" for name, value in values.items()]
Path("/run/nats/access.conf").write_text("".join(lines), encoding="utf-8")
