"""What an instance takes: measured, and used wherever a limit is judged by it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from app.cli.doctor.instance import Role
from app.runtime.slots import count_task_workers
from app.task_settings import MIB

if TYPE_CHECKING:
    from app.cli.doctor.context import Context

# Resident memory on x86-64 Linux after photos of 0.5 Mpx without landmarks: 115 to 120 MB a worker, of the API and of
# tasks alike; a master and its exporter share most of theirs with it; the nats-server took 33 MB with nothing to do.
WORKER_BYTES = 120 * MIB
MASTERS_BYTES = 100 * MIB
QUEUE_BYTES = 64 * MIB
# A photo that is decoded, and the copy that it is laid out in.
BYTES_PER_PIXEL = 4
# A worker of the API has 2 threads and one for each of WORK_THREADS, the nats-server some 8 and a few for each core.
THREADS_EACH, THREADS_BESIDE = 4, 24


def count_api_workers(context: Context) -> int:
    """Count the workers of the API that an instance here has."""
    return 0 if context.instance.role is Role.WORKER else context.settings.workers


def count_own_task_workers(context: Context) -> int:
    """Count the processes of an instance here that work on tasks."""
    is_here = context.settings.is_queue_embedded or context.instance.role is Role.WORKER
    return count_task_workers(context.settings) if is_here else 0


def count_processes(context: Context) -> int:
    """Count the worker processes of an instance here, of both kinds."""
    return count_api_workers(context) + count_own_task_workers(context)


def needed_memory(context: Context) -> int:
    """Return the bytes that an instance here takes once each worker has found a face."""
    beside = MASTERS_BYTES + (QUEUE_BYTES if context.settings.is_queue_embedded else 0)
    return beside + WORKER_BYTES * count_processes(context)


def most_memory(context: Context) -> int:
    """Return the bytes that it may take with every place taken by the largest body and the largest picture."""
    settings = context.settings
    bodies = settings.max_concurrency * settings.max_body_bytes * count_api_workers(context)
    pictures = BYTES_PER_PIXEL * settings.max_image_pixels * settings.work_threads * count_processes(context)
    return needed_memory(context) + bodies + pictures


def needed_threads(context: Context) -> int:
    """Return the processes and threads that an instance here takes, as the kernel counts both."""
    return THREADS_BESIDE + (THREADS_EACH + context.settings.work_threads) * count_processes(context)
