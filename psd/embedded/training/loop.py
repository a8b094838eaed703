"""Training of the embedded models: ``python -m psd embedded train {vae,prior,reward,selector,evidence,referee}``.

One loop for all of them; what differs (network, loss, shipped format) is a `TrainingTask`.  Batches depend only on
(seed, iteration, rank), so a resumed training is the uninterrupted one.  On a CPU several one-thread processes average
their gradients (``--processes``): on small networks two pinned processes beat one with two threads.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
import time
from contextlib import AbstractContextManager, ExitStack, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from filelock import FileLock, Timeout
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

NAMES = ("vae", "prior", "reward", "selector", "evidence", "referee")


class TrainingTask(Protocol):
    """What is trained.  ``model`` holds every trained parameter; ``ema`` has the same structure."""

    name: str
    model: Any  # an nn.Module
    batch: int  # objects an iteration in all, over all processes
    captions_seen: str  # a sentence for the record: which captions it trains on

    def loss(self, iteration: int, objects: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]: ...

    def ship(self, ema: nn.Module, folder: Path) -> None:
        """Write ``ema`` in the format in which it ships (diffusers/transformers folders, fp16 safetensors)."""
        ...

    def sheet(self, ema: Any, path: Path) -> None:
        """A picture of what the model does now."""
        ...


def learning_rate(iteration: int, total: int, peak: float, *, warmup: int, cooldown: float = 0.25) -> float:
    """Warm-up, plateau, cosine cool-down over the last quarter: the total may be moved while the plateau lasts."""
    if iteration < warmup:
        return peak * (iteration + 1) / warmup
    start = total * (1 - cooldown)
    if iteration < start:
        return peak
    share = min(1.0, (iteration - start) / max(total - start, 1))
    return peak * (0.02 + 0.98 * 0.5 * (1 + torch.cos(torch.tensor(share * torch.pi)).item()))


def batch_generator(seed: int, iteration: int, rank: int) -> torch.Generator:
    return torch.Generator().manual_seed((seed * 1_000_003 + iteration) * 64 + rank)


def fit_task(task: TrainingTask, arguments: argparse.Namespace, *, rank: int = 0, world: int = 1) -> None:
    """Train ``task`` to ``arguments.iterations``; rank 0 keeps EMA, log, checkpoints, sheets and the shipped folder.

    Raises SystemExit while another training writes the same folder.
    """
    folder = Path(arguments.work) / task.name
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        if rank == 0:
            try:
                held.enter_context(FileLock(folder / "lock").acquire(timeout=0))
            except Timeout:
                raise SystemExit(
                    f"{task.name}: another training writes {folder}: wait for its end, or choose another --work"
                ) from None
        fit_in_folder(task, arguments, folder, rank, world)


def fit_in_folder(task: TrainingTask, arguments: argparse.Namespace, folder: Path, rank: int, world: int) -> None:
    """`fit_task` in a folder that no other training writes."""
    device = torch.device(arguments.device)
    model = task.model.to(device)
    ema = copy.deepcopy(model).eval().requires_grad_(False)
    if arguments.compile:
        for part in model.children():
            part.compile(dynamic=False)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=arguments.lr, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    iteration, first, first_warm, spent_s = 0, 0, 0, 0.0
    checkpoint = folder / "checkpoint.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=device, weights_only=True)
        model.load_state_dict(state["model"])
        ema.load_state_dict(state["ema"])
        optimiser.load_state_dict(state["optimiser"])
        iteration = first = state["iteration"]
        spent_s, first_warm = state["spent_s"], state["first_warm"]
    elif arguments.warm_start:
        earlier = read_record(task.name, Path(arguments.warm_start))
        iteration = first = first_warm = earlier["iterations"]  # the schedule starts afresh, the count goes on
        spent_s = earlier.get("seconds", 0.0)
        if iteration >= arguments.iterations:
            raise SystemExit(
                f"--iterations {arguments.iterations}: {task.name} has {iteration} already in {arguments.warm_start}, "
                "which count; ask for more"
            )
    start, last_save, running = time.monotonic(), time.monotonic(), None

    def save_checkpoint(done: int) -> None:
        elapsed = spent_s + time.monotonic() - start
        state = {"model": model.state_dict(), "ema": ema.state_dict(), "optimiser": optimiser.state_dict()}
        torch.save(
            {**state, "iteration": done, "first_warm": first_warm, "spent_s": elapsed}, checkpoint.with_suffix(".tmp")
        )
        os.replace(checkpoint.with_suffix(".tmp"), checkpoint)
        ship_weights(task, ema, Path(arguments.out or folder / "shipped"), done, elapsed, arguments)

    while iteration < arguments.iterations:
        if world > 1 and os.getppid() != arguments.started_by:  # else two trainings would write one checkpoint
            raise SystemExit(f"{task.name}: the process that started this one has ended, and so does this one")
        for group in optimiser.param_groups:
            group["fused"] = True  # a checkpoint made without it brings its own settings along
            group["lr"] = learning_rate(
                iteration - first_warm, arguments.iterations - first_warm, arguments.lr, warmup=arguments.warmup
            )
        generator = batch_generator(arguments.seed, iteration, rank)
        with torch.autocast(device.type, torch.bfloat16, enabled=arguments.bf16), attend_by_products(arguments):
            loss, metrics = task.loss(iteration, task.batch // world, generator)
        loss.backward()
        average_gradients(parameters, world)
        norm = nn.utils.clip_grad_norm_(parameters, 1.0)
        if not torch.isfinite(norm):
            raise FloatingPointError(
                f"{task.name}: gradient norm {norm} at iteration {iteration}; resume with a lower --lr"
            )
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        iteration += 1
        if rank:
            continue
        decay = min(arguments.ema, (1 + iteration) / (10 + iteration))
        with torch.no_grad():
            torch._foreach_lerp_(list(ema.parameters()), list(model.parameters()), 1 - decay)
            for buffer, source in zip(ema.buffers(), model.buffers(), strict=True):
                buffer.copy_(source)
        metrics = {"loss": loss.item(), **metrics}
        running = metrics if running is None else {k: 0.98 * running[k] + 0.02 * v for k, v in metrics.items()}
        if iteration % arguments.log_every == 0:
            speed = (iteration - first) / (time.monotonic() - start)
            eta_min = (arguments.iterations - iteration) / speed / 60
            values = "  ".join(f"{key} {value:.4f}" for key, value in running.items())
            line = f"{task.name} {iteration}/{arguments.iterations}  {values}  {speed:.2f} it/s  ETA {eta_min:.0f} min"
            print(line, flush=True)
        is_late = arguments.stop_after_s is not None and time.monotonic() - start > arguments.stop_after_s
        if (
            is_late
            or time.monotonic() - last_save > arguments.save_s
            or iteration in (arguments.iterations, *arguments.keep)
        ):
            save_checkpoint(iteration)
            last_save = time.monotonic()
            if iteration in arguments.keep:
                ship_weights(
                    task, ema, folder / f"shipped-{iteration}", iteration, last_save - start + spent_s, arguments
                )
        if iteration in arguments.keep or (arguments.sheet_every and iteration % arguments.sheet_every == 0):
            task.sheet(ema, folder / f"sheet-{iteration:06d}.png")
        if is_late:
            print(f"{task.name} {iteration}: stopped after {arguments.stop_after_s:.0f} s, as asked", flush=True)
            break
    if rank == 0:
        task.sheet(ema, folder / f"sheet-{iteration:06d}.png")


def attend_by_products(arguments: argparse.Namespace) -> AbstractContextManager[object]:
    """Attention by plain products in bfloat16 on a CPU: the flash kernel's way back takes a third of the prior's
    iteration there, and three quarters of the referee's (1.76 s with it, 0.69 s without).
    """
    wanted = arguments.bf16 and torch.device(arguments.device).type == "cpu"
    return sdpa_kernel(SDPBackend.MATH) if wanted else nullcontext()


def average_gradients(parameters: list[nn.Parameter], world: int) -> None:
    """All-reduce every gradient as one flat vector."""
    if world == 1:
        return
    gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
    flat = torch.cat([g.flatten() for g in gradients])
    dist.all_reduce(flat)
    flat /= world
    for parameter, gradient in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        # Laid out as the parameter is: the fused optimiser reads both in memory order.
        parameter.grad = torch.empty_like(parameter).copy_(gradient.view_as(parameter))


def ship_weights(
    task: TrainingTask, ema: nn.Module, folder: Path, iterations: int, seconds: float, arguments: argparse.Namespace
) -> None:
    """The shipped folder beside its training record; the model card is made from both by
    `psd.evaluation.shipped.models`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    task.ship(ema, folder)
    earlier = read_record(task.name, Path(arguments.warm_start)) if arguments.warm_start else {}
    before = earlier.get("iterations", 0)
    objects_seen = earlier.get("objects_seen", before * task.batch) + (iterations - before) * task.batch
    record = {
        "model": task.name,
        "iterations": iterations,
        "batch_objects": task.batch,
        "objects_seen": objects_seen,
        "captions": task.captions_seen,
        "parameters": sum(p.numel() for p in ema.parameters()),
        "seed": arguments.seed,
        "lr": arguments.lr,
        "ema": arguments.ema,
        "seconds": round(seconds),
        "hardware": f"{arguments.processes} x {platform.machine()} CPU process"
        if arguments.device == "cpu"
        else arguments.device,
        "torch": torch.__version__.split("+")[0],
    }
    if arguments.warm_start:
        record["history"] = earlier.get("history", "") + arguments.history
    (record_folder(task.name, folder) / "training.json").write_text(json.dumps(record, indent=1) + "\n")


def record_folder(name: str, shipped: Path) -> Path:
    """Where the training record lies in a shipped folder: the autoencoder ships within the prior's, with its own."""
    return shipped / "vae" if name == "vae" else shipped


def read_record(name: str, shipped: Path) -> dict[str, Any]:
    return json.loads((record_folder(name, shipped) / "training.json").read_text(encoding="utf-8"))


def make_task(arguments: argparse.Namespace, rank: int, world: int) -> TrainingTask:
    """The task of ``arguments.model`` for process ``rank`` of ``world``; it loads the shards."""
    from psd.embedded.training import autoencoder, prior, rewards

    if arguments.model == "vae":
        return autoencoder.AutoencoderTask(arguments)
    if arguments.model == "prior":
        return prior.DenoiserTask(arguments, rank, world)
    return rewards.CriticTask(arguments)


def work_process(rank: int, arguments: argparse.Namespace) -> None:
    """One process of a training, with one thread; several of them average their gradients over gloo."""
    torch.set_num_threads(1)
    world = arguments.processes
    if world > 1:
        store = f"file://{(Path(arguments.work) / f'rendezvous-{arguments.model}-{os.getppid()}').resolve()}"
        dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world, timeout=timedelta(hours=2))
    torch.manual_seed(arguments.seed)  # initial weights only, the same on every rank; all else draws from generators
    fit_task(make_task(arguments, rank, world), arguments, rank=rank, world=world)
    if world > 1:
        dist.destroy_process_group()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``python -m psd embedded train``."""
    parser.add_argument("model", choices=NAMES)
    parser.add_argument("--iterations", type=int, required=True, help="train until this many, resumed ones included")
    parser.add_argument("--batch", type=int, default=16, help="objects an iteration, over all processes")
    parser.add_argument("--lr", type=float, default=6e-4)
    parser.add_argument("--warmup", type=int, default=200, help="iterations until the full learning rate")
    parser.add_argument("--ema", type=float, default=0.999)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=1, help="one-thread CPU processes that average gradients")
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--bf16",
        action="store_true",
        help="bfloat16 in the forward pass: twice as fast on a GPU, 1.4 times on a CPU with AMX",
    )
    parser.add_argument("--compile", action="store_true", help="five minutes at the start, then half the time")
    parser.add_argument("--data", default="work/data", help="shards of `python -m psd embedded data`")
    parser.add_argument("--work", default="work/train", help="checkpoints, logs, sheets")
    parser.add_argument("--out", help="where to ship the EMA weights (default: in --work)")
    parser.add_argument("--vae", default="work/train/vae/shipped/vae", help="the autoencoder, for the prior")
    parser.add_argument("--from", dest="warm_start", help="shipped folder to start from, with its iteration count")
    parser.add_argument("--history", default="", help="what the record of a warm start says beside the numbers")
    parser.add_argument("--keep", type=int, nargs="*", default=(), help="iterations whose EMA is kept aside")
    parser.add_argument(
        "--sheet-every", type=int, default=0, help="iterations between pictures of what it does; 0: none"
    )
    parser.add_argument("--save-s", type=float, default=300, help="seconds between checkpoints")
    parser.add_argument(
        "--stop-after-s", type=float, help="save and stop after so many seconds (one process; a later call goes on)"
    )
    parser.add_argument("--decoder-only", action="store_true", help="of the autoencoder: latents stay what they are")
    parser.add_argument("--log-every", type=int, default=50)


def main(arguments: argparse.Namespace) -> int:
    """Trains, or goes on from the last checkpoint in ``--work``, and ships; SystemExit for what does not fit."""
    Path(arguments.work).mkdir(parents=True, exist_ok=True)
    if arguments.stop_after_s is not None and arguments.processes > 1:
        raise SystemExit(f"--stop-after-s is for one process, not {arguments.processes}: they would not stop together")
    arguments.started_by = os.getpid()
    if arguments.processes == 1:
        work_process(0, arguments)
    else:
        torch.multiprocessing.spawn(work_process, args=(arguments,), nprocs=arguments.processes)
    return 0
