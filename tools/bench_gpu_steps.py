"""Contenders in turns on one device, a few steps at a time: speed, memory and losses."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from bench_gpu_device import Device
from bench_steps import SteppedLoop, Train
from bench_work import MODELS, Pair, Work
from torch import Tensor

Numbers = dict[str, dict[str, Any]]  # name of a contender -> its numbers
Keep = Callable[[Numbers], None]
ALONE, RECOMPUTING = "alone", "alone, gradient checkpointing"


@dataclass(frozen=True)
class Pace:
    """The steps of a comparison: `warm_up` and `timed` turns of `block` steps each.

    Within a turn nothing waits for the device but what the contender itself waits for.
    """

    warm_up: int = 1
    timed: int = 4
    block: int = 4

    @property
    def steps(self) -> int:
        return (self.warm_up + self.timed) * self.block

    @property
    def dropped(self) -> int:
        """The steps that are not timed."""
        return self.warm_up * self.block


class BlockLoop(SteppedLoop):
    """A training that rests after every `block` steps, and reads its losses only then."""

    def __init__(self, train: Train, block: int) -> None:
        self.block, self.kept = block, list[float | Tensor]()
        self.cudnn = True  # whether attention may use cuDNN's kernel: a global setting, which a contender may change
        super().__init__(train)

    def end_step(self, model: torch.nn.Module, loss: float | Tensor) -> None:
        self.model = model
        self.kept.append(loss)
        if len(self.kept) % self.block == 0:
            self.rest()


@dataclass
class Taken:
    """Times, memory and losses of a contender's turns; `error` says why it ended early."""

    seconds: list[float] = field(default_factory=list)
    start_s: float = 0.0
    peak_gib: float = 0.0
    resting_gib: float = 0.0
    losses: list[float] = field(default_factory=list)
    error: str | None = None
    out_of_memory: bool = False


class Turns:
    """Contenders that train A, B, C, A, B, C, ..., a block of steps each; one that fails leaves the others alone.

    `start_s` is a contender's time from the beginning to the end of its first turn. Memory is a contender's own: the
    peak in its turns without what the others keep.
    """

    def __init__(self, trains: Mapping[str, Train], device: Device, pace: Pace) -> None:
        self.device, self.pace = device, pace
        self.loops = {name: BlockLoop(train, pace.block) for name, train in trains.items()}
        self.taken = {name: Taken() for name in trains}

    def run(self, after_round: Callable[[], None] = lambda: None) -> dict[str, Taken]:
        """Take all turns; the trainings then rest.

        `after_round` is called whenever every contender has taken the same number of turns.
        """
        for turn in range(self.pace.warm_up + self.pace.timed):
            for name, taken in self.taken.items():
                if taken.error is None:
                    self._turn(self.loops[name], taken, turn)
                    taken.losses = [float(loss) for loss in self.loops[name].kept]
            after_round()
        return self.taken

    def stop(self) -> None:
        """End the trainings, and free their memory."""
        for loop in self.loops.values():
            loop.stop()
        self.device.free()

    def _turn(self, loop: BlockLoop, taken: Taken, turn: int) -> None:
        device = self.device
        device.synchronize()
        before = device.allocated()
        device.reset_peak()
        torch.backends.cuda.enable_cudnn_sdp(loop.cudnn)
        start = time.perf_counter()
        try:
            loop.step()
            device.synchronize()
        except Exception as error:
            taken.error = f"{type(error).__name__}: {error}"[:500]
            taken.out_of_memory = isinstance(error, torch.OutOfMemoryError)
            error.__traceback__ = None  # it holds the tensors of the step
            loop.stop()
            device.free()
            return
        seconds = time.perf_counter() - start
        loop.cudnn = torch.backends.cuda.cudnn_sdp_enabled()
        taken.peak_gib = max(taken.peak_gib, taken.resting_gib + device.peak() - before)
        taken.resting_gib += device.allocated() - before
        if turn == 0:
            taken.start_s = seconds
            taken.peak_gib = 0.0  # loading, and filling the reference store, are not a step
        if turn >= self.pace.warm_up:
            taken.seconds.append(seconds)


def compare(
    trains: Mapping[str, Train],
    work: Work,
    device: Device,
    pace: Pace,
    matmul: float | None,
    pairs: Mapping[str, list[Pair]] | None = None,
    smaller: Mapping[str, Train] | None = None,
    keep: Keep | None = None,
) -> Numbers:
    """Return the numbers of every contender; one that runs out of memory runs alone, then in its smaller form.

    Args:
        trains: the trainings.
        work: their work.
        device: the device.
        pace: the steps.
        matmul: FLOP/s of a large multiplication, if known.
        pairs: what contenders read that do not read the work's pairs in their order.
        smaller: trainings that recompute activations.
        keep: is given the numbers so far after every round of turns, for the case that the process does not live on.
    """
    ordered, forms = work.in_order(), dict.fromkeys(trains, "")
    turns = Turns(trains, device, pace)
    taken = turns.taken

    def found() -> Numbers:
        known = {name: own for name, own in taken.items() if own.seconds or own.error is not None}
        read = {name: (pairs or {}).get(name) or ordered for name in known}
        return {n: numbers(own, work, read[n], pace, matmul) | {"form": forms[n]} for n, own in known.items()}

    def tell() -> None:
        if keep is not None and (known := found()):
            keep(known)

    turns.run(tell)
    if any(own.out_of_memory for own in taken.values()):
        turns.stop()
    for form, others in ((ALONE, trains if len(trains) > 1 else {}), (RECOMPUTING, smaller or {})):
        for name in others:
            if taken[name].out_of_memory:
                again, forms[name] = Turns({name: others[name]}, device, pace), form
                taken |= again.run()
                again.stop()
                tell()
    return found()


def numbers(taken: Taken, work: Work, pairs: list[Pair], pace: Pace, matmul: float | None) -> dict[str, Any]:
    """Speed over the timed turns: pairs, and tokens of prompts and both responses, each once and without padding."""
    if taken.error is not None:
        return {"error": taken.error}
    steps = pace.dropped + len(taken.seconds) * pace.block
    timed = pairs[pace.dropped * work.pairs : steps * work.pairs]
    prompts = sum(len(pair["prompt"]) for pair in timed)
    responses = sum(len(pair["chosen"]) + len(pair["rejected"]) for pair in timed)
    total = sum(taken.seconds)
    return {
        "step_s": [seconds / pace.block for seconds in taken.seconds],
        "median_step_s": statistics.median(taken.seconds) / pace.block,
        "pairs_per_s": len(timed) / total,
        "tokens_per_s": (prompts + responses) / total,
        "share_of_matmul_peak": flops(work, prompts, responses) / total / matmul if matmul else None,
        "peak_gib": taken.peak_gib,
        "start_s": taken.start_s,
        "losses": taken.losses,
    }


def flops(work: Work, prompts: int, responses: int) -> float:
    """The multiplications that the work needs, by weights: 6 FLOP a weight and token, 4 where weights are frozen.

    The head counts for responses only. Attention, recomputation and padding do not count.
    """
    shape = MODELS[work.model]
    width, inner = shape["hidden_size"], shape["intermediate_size"]
    kv = width * shape["num_key_value_heads"] // shape["num_attention_heads"]
    layer = 2 * width * width + 2 * width * kv + 3 * width * inner
    body = shape["num_hidden_layers"] * layer * (prompts + responses)
    return (4 if work.lora else 6) * (body + width * work.vocabulary * responses)
