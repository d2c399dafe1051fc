"""Access to a Kubernetes cluster for the end-to-end tests, by its command-line tools."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import yaml

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

POLL_S = 0.25
COMMAND_LIMIT_S = 300
METRICS_PORT = 9000
Json = dict[str, Any]
T = TypeVar("T")
LOAD_LABEL = "facial-service-e2e"


class CommandError(AssertionError):
    """Raised if a command fails; the message has the command and its output."""


def run(*command: str, stdin: str | None = None, limit_s: float = COMMAND_LIMIT_S) -> str:
    """Run a command and return its output.

    Raises:
        CommandError: it failed.
    """
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False, timeout=limit_s)
    if done.returncode:
        raise CommandError(f"{' '.join(command)}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return done.stdout


def wait_for(condition: Callable[[], T], what: str, *, limit_s: float = 120) -> T:
    """Call a condition until its result is true, and return the result; failures count as false.

    Raises:
        TimeoutError: it is not true within the limit.
    """
    deadline = time.monotonic() + limit_s
    trouble: Exception | None = None
    while time.monotonic() < deadline:
        try:
            if found := condition():
                return found
        except (CommandError, KeyError, IndexError, ValueError) as error:
            trouble = error
        time.sleep(POLL_S)
    raise TimeoutError(f"{what}: not within {limit_s:g} s") from trouble


@dataclass(frozen=True)
class Namespace:
    """A namespace of the cluster.

    Attributes:
        name: name of the namespace.
    """

    name: str

    def kubectl(self, *arguments: str, stdin: str | None = None, limit_s: float = COMMAND_LIMIT_S) -> str:
        """Run kubectl in the namespace."""
        return run("kubectl", "--namespace", self.name, *arguments, stdin=stdin, limit_s=limit_s)

    def get(self, kind: str, name: str = "", *, labels: str = "") -> Json:
        """Read an object, or a list of them."""
        chosen = [f"--selector={labels}"] if labels else []
        found: Json = json.loads(self.kubectl("get", kind, *filter(None, [name]), *chosen, "--output=json"))
        return found

    def items(self, kind: str, *, labels: str = "") -> list[Json]:
        """Read all objects of a kind."""
        found: list[Json] = self.get(kind, labels=labels)["items"]
        return found

    def apply(self, *documents: Json) -> None:
        """Apply objects."""
        self.kubectl("apply", "--filename=-", stdin=yaml.safe_dump_all(documents))

    def raw(self, kind: str, name: str, port: str | int, path: str) -> str:
        """Send a GET request to a pod or Service through the API server, which works from everywhere."""
        return run("kubectl", "get", "--raw", f"/api/v1/namespaces/{self.name}/{kind}/{name}:{port}/proxy/{path}")

    def describe(self) -> str:
        """Return objects and recent events, for the report of a failure."""
        pods = self.kubectl("get", "pods,persistentvolumeclaims,horizontalpodautoscalers", "--output=wide")
        events = self.kubectl("get", "events", "--sort-by=.lastTimestamp")
        return f"{pods}\n{events[-6000:]}"

    def evict(self, pod: str) -> None:
        """Request the eviction of a pod, as draining a node does."""
        body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod, "namespace": self.name}}
        path = f"/api/v1/namespaces/{self.name}/pods/{pod}/eviction"
        run("kubectl", "create", "--raw", path, "--filename=-", stdin=json.dumps(body))


@dataclass
class Release:
    """A release of the chart.

    Attributes:
        namespace: its namespace.
        name: name of the release.
        chart: folder of the chart.
        image: `name:tag` of an image on the nodes.
        values: values of the last installation or upgrade.
    """

    namespace: Namespace
    name: str
    chart: Path
    image: str
    values: Json = field(default_factory=dict)

    @property
    def fullname(self) -> str:
        """Prefix of the names of its objects."""
        return f"{self.name}-facial-service"

    def helm(self, *arguments: str, stdin: str | None = None, limit_s: float = COMMAND_LIMIT_S) -> str:
        """Run helm in the namespace."""
        return run("helm", "--namespace", self.namespace.name, *arguments, stdin=stdin, limit_s=limit_s)

    def deploy(self, values: Json | None = None, *, is_waited_for: bool = True, limit_s: int = 180) -> float:
        """Install or upgrade the release; return the seconds until it is ready."""
        self.values = values or {}
        repository, _, tag = self.image.rpartition(":")
        given = {**self.values, "image": {"repository": repository, "tag": tag}}
        # The nodes have no other image, and the service's contains nats-server.
        given["nats"] = {"image": {"repository": ""}, **self.values.get("nats", {})}
        wait = ["--wait", f"--timeout={limit_s}s"] if is_waited_for else []
        start = time.monotonic()
        arguments = ("upgrade", "--install", self.name, str(self.chart), "--values=-", *wait)
        try:
            self.helm(*arguments, stdin=yaml.safe_dump(given), limit_s=limit_s + 30)
        except CommandError as error:
            raise CommandError(f"{error}\n{self.namespace.describe()}") from None
        return time.monotonic() - start

    def pods(self, component: str) -> list[Json]:
        """Return the pods of a component that are not terminating."""
        labels = f"app.kubernetes.io/instance={self.name},app.kubernetes.io/component={component}"
        found = self.namespace.items("pods", labels=labels)
        return [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]

    def ready(self, component: str) -> list[Json]:
        """Return the ready pods of a component."""
        return [pod for pod in self.pods(component) if is_ready(pod)]

    def metrics(self, pod: Json) -> str:
        """Read the metrics of a pod."""
        return self.namespace.raw("pods", pod["metadata"]["name"], METRICS_PORT, "metrics")


@dataclass(frozen=True)
class Node:
    """A node of the cluster.

    Attributes:
        name: name of the node.
    """

    name: str

    def drain(self, release: Release, *, limit_s: int = 120) -> float:
        """Drain the node of a release's pods, as `kubectl drain` does; return the seconds until they are gone.

        Raises:
            CommandError: the drain does not end within the limit.
        """
        start = time.monotonic()
        pods = f"--pod-selector=app.kubernetes.io/instance={release.name}"
        options = ["--ignore-daemonsets", "--delete-emptydir-data", f"--timeout={limit_s}s"]
        run("kubectl", "drain", self.name, pods, *options, limit_s=limit_s + 30)
        return time.monotonic() - start

    def uncordon(self) -> None:
        """Allow pods on the node again."""
        run("kubectl", "uncordon", self.name)

    def is_ready(self) -> bool:
        """Return whether the node is ready."""
        return is_ready(json.loads(run("kubectl", "get", "node", self.name, "--output=json")))

    def is_container(self) -> bool:
        """Return whether the node is a container of this machine, as in kind."""
        if shutil.which("docker") is None:
            return False
        return subprocess.run(["docker", "inspect", self.name], capture_output=True, check=False).returncode == 0

    def kill(self) -> None:
        """Kill everything on the node at once."""
        run("docker", "kill", self.name)

    def start(self) -> None:
        """Start a node that was killed."""
        run("docker", "start", self.name)

    def kill_container(self, pod: str, container: str) -> None:
        """Send SIGKILL to a container of a pod on the node."""
        labels = ["--label", f"io.kubernetes.pod.name={pod}", "--name", container]
        (identifier,) = run("docker", "exec", self.name, "crictl", "ps", "--quiet", *labels).split()
        run("docker", "exec", self.name, "crictl", "stop", "--timeout", "0", identifier)

    def tag_image(self, image: str, other: str) -> None:
        """Give an image of the node another name."""
        names = map(qualify, (image, other))
        run("docker", "exec", self.name, "ctr", "--namespace", "k8s.io", "images", "tag", "--force", *names)


def qualify(image: str) -> str:
    """Return the name of an image with its registry, as containerd stores it."""
    registry, slash, _ = image.partition("/")
    if slash and (not {".", ":"}.isdisjoint(registry) or registry == "localhost"):
        return image
    return f"docker.io/{image}" if slash else f"docker.io/library/{image}"


@dataclass(frozen=True)
class Nodes:
    """The nodes of a cluster with several.

    Attributes:
        observer: node that no test disrupts, where callers run.
        workers: other nodes that pods may run on, at least two unless the observer is one of them.
    """

    observer: Node
    workers: list[Node]


def list_nodes() -> list[Json]:
    """Read all nodes."""
    found: list[Json] = json.loads(run("kubectl", "get", "nodes", "--output=json"))["items"]
    return found


def is_schedulable(node: Json) -> bool:
    """Return whether pods without tolerations may run on a node."""
    effects = {taint["effect"] for taint in node["spec"].get("taints", [])}
    return effects.isdisjoint({"NoSchedule", "NoExecute"})


def require_no_loss(account: Json) -> None:
    """Assert that a load saw no failure, no wrong result, and that every accepted task succeeded once."""
    assert account["failed"] == account["wrong"] == account["duplicated"] == 0, account
    assert account["ended"] == ({"SUCCESS": account["accepted"]} if account["accepted"] else {}), account


def is_ready(item: Json) -> bool:
    """Return whether a pod or node is ready."""
    return any(c["type"] == "Ready" and c["status"] == "True" for c in item["status"].get("conditions", []))


def restarts(pod: Json) -> int:
    """Return the number of container restarts of a pod."""
    return sum(status["restartCount"] for status in pod["status"].get("containerStatuses", []))


class Load:
    """Callers in a pod of the cluster, which report failures as clients see them.

    Args:
        release: release that they call.
        name: name of the pod.
        script: Python script that runs in the pod.
        arguments: arguments of the script.
        labels: labels of the pod.
        node: node on which it runs, regardless of taints; None for any.

    Attributes:
        name: name of the pod.
    """

    def __init__(
        self,
        release: Release,
        name: str,
        script: str,
        *arguments: str,
        labels: dict[str, str] | None = None,
        node: str | None = None,
    ) -> None:
        self._space, self.name = release.namespace, name
        container = {
            "name": "load",
            "image": release.image,
            "command": ["python", "-u", "-c", script, *arguments],
            "resources": {"requests": {"cpu": "10m"}, "limits": {"memory": "512Mi"}},
            "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
            "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
        }
        spec = {
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": 10001,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "volumes": [{"name": "tmp", "emptyDir": {}}],
            "containers": [container],
            **({"nodeName": node} if node else {}),
        }
        metadata = {"name": name, "labels": {"app": LOAD_LABEL, **(labels or {})}}
        self._space.apply({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
        wait_for(self.lines, "the first callers")

    def lines(self) -> list[Json]:
        """Return its output so far, one object per line."""
        return list(_objects(self._space.kubectl("logs", self.name)))

    def wait_answers(self, count: int) -> None:
        """Wait for a number of further responses."""
        before = self._answered()
        wait_for(lambda: self._answered() >= before + count, f"{count} answers")

    def _answered(self) -> int:
        return max((line.get("answered", 0) for line in self.lines()), default=0)

    def stop(self, *, limit_s: float = 180) -> Json:
        """Let it finish its open requests, and return its account."""
        with suppress(CommandError):  # a pod with a fixed number of requests may have ended by itself
            self._space.kubectl("exec", self.name, "--", "touch", "/tmp/stop")
        wait_for(lambda: self._phase() in {"Succeeded", "Failed"}, "the load's end", limit_s=limit_s)
        account = self.lines()[-1]
        assert self._phase() == "Succeeded", account
        self.remove()
        return account

    def remove(self) -> None:
        """Delete the pod."""
        with suppress(CommandError):
            self._space.kubectl("delete", "pod", self.name, "--now", "--ignore-not-found")

    def _phase(self) -> str:
        phase: str = self._space.get("pod", self.name)["status"].get("phase", "")
        return phase


def _objects(text: str) -> Iterator[Json]:
    for line in text.splitlines():
        with suppress(ValueError):
            yield json.loads(line)
