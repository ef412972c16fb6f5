"""One Grow step: x ~ D, y ~ π(·|x), N samples per source; D_g = samples ∪ D, every row scored by R (Algorithm 1).

Samples may come from several distributions, and the n-best list of beam search may join them: no filter finds what
nothing proposed.

While a shard is scored and written, the next one is sampled in a thread of its own, one thread a device. Any number of
processes may work on one step, those of one run or others: each takes the next shard that is missing and that no other
has locked, and waits for nobody.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import filelock
import numpy as np

from rest import processes
from rest.data.corpus import Split
from rest.data.shards import shard_name, shard_rows, write_shard
from rest.data.store import Manifest, ScoredDataset, write_manifest
from rest.errors import UserError, refuse_below
from rest.folder import StageFolder, discard, seed_for
from rest.journal import Journal, progress, say
from rest.learning.mesh import MachineSettings
from rest.policy.beam import BeamSettings, n_best
from rest.policy.drawn import drawn_before
from rest.policy.policy import Policy
from rest.policy.sampler import Hypotheses, Places, SamplingOverrides, SamplingSettings, sample
from rest.reward.guards import Guards
from rest.reward.reward import Groups, Reward


@dataclass(frozen=True)
class FurtherSamples:
    """Samples from another distribution than Grow's own."""

    samples_per_source: int
    sampling: SamplingOverrides = field(default_factory=SamplingOverrides)
    """What they are drawn from otherwise than the others."""

    def __post_init__(self) -> None:
        if self.samples_per_source < 1:
            raise UserError(f"grow.further: samples_per_source must be at least 1, not {self.samples_per_source}")


@dataclass(frozen=True)
class GrowSettings:
    """What one Grow step draws."""

    sources: int = 0
    """Sources per Grow step, drawn anew for each; 0: all."""
    samples_per_source: int = 8
    """N."""
    sampling: SamplingOverrides = field(default_factory=SamplingOverrides)
    """What is drawn from otherwise than the experiment's `sampling`."""
    further: tuple[Any, ...] = ()  # FurtherSamples
    """Each draws more samples for every source, from another distribution."""
    beams: int = 0
    """Add the n-best list of beam search with so many beams, which has the length penalty of evaluation's; 0: none."""
    sources_per_shard: int = 1024
    """A shard is the unit of resuming and of reproducibility."""
    training_text: bool = True
    """Sample for the sources of the training text, D."""
    text: Path | None = None
    """Further sources, one a line (gzip where named .gz), that nobody has translated: samples only."""
    human_pairs: bool = True
    """Join the sources' human pairs to the samples: D_g = samples ∪ D."""
    guards: Guards = field(default_factory=Guards)

    def __post_init__(self) -> None:
        refuse_below("grow.", self, {"sources": 0, "samples_per_source": 1, "sources_per_shard": 1, "beams": 0})
        if not self.training_text and self.text is None:
            raise UserError("training_text is off and text names no file, so there is nothing to sample for")

    @property
    def samples(self) -> int:
        """Samples per source, of all distributions."""
        return self.samples_per_source + sum(more.samples_per_source for more in self.further)

    def distributions(self, sampling: SamplingSettings) -> list[tuple[int, SamplingSettings]]:
        """How many samples per source are drawn from what; the first is `sampling` itself."""
        further = [(more.samples_per_source, more.sampling.of(sampling)) for more in self.further]
        return [(self.samples_per_source, sampling), *further]


def grow_sources(splits: list[Split], count: int, g: int, seed: int) -> list[Split]:
    """So many sources for Grow step g out of all splits, in the order of the text; 0: all."""
    total = sum(map(len, splits))
    if not count or count >= total:
        return splits
    rng = np.random.default_rng(seed_for(seed, "grow sources", g))
    chosen = np.sort(rng.choice(total, count, replace=False))
    starts = np.cumsum([0, *map(len, splits)])
    cuts = np.split(chosen, np.searchsorted(chosen, starts[1:-1]))
    taken = [split.take(rows - start) for split, rows, start in zip(splits, cuts, starts, strict=False)]
    return [split for split in taken if len(split)]


def grow(
    stage: StageFolder,
    policy: Policy,
    splits: list[Split],
    reward: Reward,
    settings: GrowSettings,
    sampling: SamplingSettings,
    *,
    g: int,
    seed: int,
    beam: BeamSettings | None = None,
    before: ScoredDataset | None = None,
    machine: MachineSettings | None = None,
) -> None:
    """Make the shards that are missing, then the manifest, and finish the stage.

    `beam` says the length penalty of `settings.beams`; what they find is as long as samples may be. `before` is a
    dataset with the same draws and another reward: they are not drawn again. The sources of a shard come from one
    split. UserError if the disk is full or the reward cannot score; what is written stays, and the
    same call goes on.
    """
    size = settings.sources_per_shard
    splits = grow_sources(splits, settings.sources, g, seed)
    parts = [split.take(slice(at, at + size)) for split in splits for at in range(0, len(split), size)]
    shards = _Shards(stage, [_rows(part, settings) for part in parts])
    search = replace(beam or BeamSettings(), beams=settings.beams or 1, max_target_tokens=sampling.max_target_tokens)
    rows = [len(part) * (settings.samples + settings.beams) for part in parts]

    def draw(shard: int, place: Any, ended: Callable[[int], None]) -> Hypotheses:
        if before is not None:
            return drawn_before(before, shard, policy.tokenizer)
        part = parts[shard]
        draws = partial(sample, policy, part.sources, part.ids, seed=seed_for(seed, "grow"), grow_step=g)
        found, first = [], 0
        for n, distribution in settings.distributions(sampling):
            found.append(draws(n, distribution, first_index=first, machine=machine, place=place, ended=ended))
            first += n
        if settings.beams:
            found.append(n_best(policy, part.sources, search, machine=machine, place=place, ended=ended))
        return Hypotheses.beside(found)

    with (
        processes.alone(),
        _Following(stage, f"grow {g}", shards, rows) as follow,
        closing(_sampled(shards, draw, follow.drawn, machine)) as drawn,
    ):
        stage.refuse_changed()  # from here on a process with other settings is refused
        for shard, hypotheses in drawn:
            columns = scored_columns(policy, parts[shard], hypotheses, reward, settings)
            write_shard(stage.path, shard, len(parts), columns)
            shards.release(shard)
            follow.written(shard, columns, hypotheses)

    def finish() -> None:
        with stage.alone():
            discard(shards.locks)  # all shards are made
            if stage.finished:  # by another process; this one's journal may have made the old name again
                discard(stage.partial)
                return
            identities = {"policy": policy.identity, "reward": reward.identity, "tokenizer": policy.tokenizer.identity}
            manifest = write_manifest(
                stage.path, settings=stage.settings, identities=identities, seed=seed, scale=reward.range
            )
            stage.finish(_result(manifest, g))

    processes.wait_for_all()  # their journals are closed
    processes.first(finish)
    processes.visible(stage.final)
    stage.finished = True


def _result(manifest: Manifest, g: int) -> dict[str, Any]:
    """What is recorded of the stage; it is told too."""
    means, others = manifest.reward, ""
    for part, name in (("beam", "outputs of beam search"), ("references", "human pairs")):
        if rows := means.get(part, {}).get("rows", 0):
            others += f", of {rows} {name} {means[part]['mean']:.4f}"
    samples, beam = means["samples"]["rows"], means.get("beam", {}).get("rows", 0)
    say(f"grow {g}: {samples} samples, mean reward {means['samples']['mean']:.4f}{others}")
    if samples > 1 and means["samples"]["min"] == means["samples"]["max"]:
        say(f"grow {g}: warning: every sample has the same reward, so there is nothing to choose by")
    return {"rows": manifest.rows, "samples": samples, **({"beam": beam} if beam else {}), "reward": means}


class _Shards:
    """Which shards are missing, and which of them this process has locked."""

    def __init__(self, stage: StageFolder, rows: list[int]) -> None:
        self._stage, self._rows = stage, rows
        first, step = processes.preferred()  # where each of several processes begins with others
        self._missing = sorted(range(len(rows)), key=lambda shard: (shard % step != first, shard))
        self._own = {shard for shard in self._missing if shard % step == first}
        self._held: dict[int, filelock.BaseFileLock] = {}
        self.locks = stage.final.with_name(f".{stage.final.name}.locks")

    def claim(self) -> int | None:
        """Lock the next shard that is missing; None where there is none, or others are making those that are."""
        for shard in list(self._missing):
            if shard in self._held or (self._held and shard not in self._own):  # those of others only when idle
                continue
            lock = filelock.FileLock(self.locks / f"{shard:05d}.lock", timeout=0, thread_local=False)
            try:
                lock.acquire()
            except filelock.Timeout:
                continue
            if not self.made(shard):
                self._held[shard] = lock
                return shard
            self._missing.remove(shard)
            lock.release()
        return None

    def release(self, shard: int) -> None:
        """The shard is on disk."""
        self._missing.remove(shard)
        self._held.pop(shard).release()

    def give_up(self) -> None:
        """Leave what is locked to other processes."""
        for shard in list(self._held):
            self._held.pop(shard).release()

    @property
    def all_made(self) -> bool:
        self._missing = [shard for shard in self._missing if not self.made(shard)]
        return not self._missing

    def made(self, shard: int) -> bool:
        """Whether the shard is on disk, whole."""
        name = shard_name(shard, len(self._rows))
        # in this order: another process may give the folder its final name in between
        return shard_rows(self._stage.path / name) == self._rows[shard] or self._stage.final.exists()


class _Stopped(Exception):
    """Raised in a thread that samples, when what it draws is not wanted any more."""


def _sampled(
    shards: _Shards,
    draw: Callable[[int, Any, Callable[[int], None]], Hypotheses],
    drawn: Callable[[int], None],
    machine: MachineSettings | None,
) -> Generator[tuple[int, Hypotheses]]:
    """Each shard that this process gets hold of, while the next are being sampled; ends when all are made."""
    places, stop = Places(machine), threading.Event()

    def ended(rows: int) -> None:
        if stop.is_set():
            raise _Stopped
        drawn(rows)

    def sampled(shard: int) -> Hypotheses:
        with places.lent() as place:
            return draw(shard, place, ended)

    pending: deque[tuple[int, Future[Hypotheses]]] = deque()
    with ThreadPoolExecutor(places.count) as threads:
        try:
            while True:
                shard = shards.claim()
                if shard is not None:
                    pending.append((shard, threads.submit(sampled, shard)))
                if pending and (shard is None or len(pending) > places.count):
                    done, future = pending.popleft()
                    yield done, future.result()
                elif shard is None:
                    if shards.all_made:
                        return
                    time.sleep(0.5)  # other processes are making the rest, and one may die
        finally:
            stop.set()
            for _, future in pending:
                future.cancel()
            shards.give_up()


class _Following:
    """The journal and the progress bar of this process."""

    def __init__(self, stage: StageFolder, title: str, shards: _Shards, samples: list[int]) -> None:
        self._began, self._lock = time.perf_counter(), threading.Lock()
        self._samples, self._tokens, self._steps, self._reward = 0, 0, 0, 0.0
        self._shown = sum(n for shard, n in enumerate(samples) if shards.made(shard))  # by an earlier process
        self._bar, self._note = progress(title, sum(samples)), ""
        # each of several processes writes its own
        for number in itertools.count(1):
            name = "journal" if number == 1 else f"journal-{number}"
            self._own = filelock.FileLock(shards.locks / f"{name}.lock", timeout=0, thread_local=False)
            with suppress(filelock.Timeout):
                self._own.acquire()
                break
        self._journal = Journal(stage.path / name, len(samples), of_its_own=True)

    def __enter__(self) -> _Following:
        self._handle = self._bar.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._bar.__exit__(*error)
        self._journal.__exit__(*error)
        self._own.release()

    def drawn(self, samples: int) -> None:
        """More hypotheses are whole; called in the threads that sample."""
        with self._lock:
            self._shown += samples
            self._handle.update(self._shown, self._note)

    def written(self, shard: int, columns: dict[str, Any], hypotheses: Hypotheses) -> None:
        """A shard is on disk."""
        samples = np.asarray(columns["origin"]) == "sample"
        self._samples += int(samples.sum())
        self._reward += float(columns["reward"][samples].sum())
        self._tokens += sum(len(y) for of_source in hypotheses.tokens for y in of_source)
        self._steps += hypotheses.decoder_steps
        seconds = time.perf_counter() - self._began
        numbers = {
            "samples_per_second": self._samples / seconds,
            "tokens_per_second": self._tokens / seconds,
            "mean_reward": self._reward / self._samples,
            "useful_steps": self._tokens / max(1, self._steps),  # of none where nothing was drawn anew
        }
        self._journal.record(shard + 1, numbers)
        self._note = (
            f"{numbers['samples_per_second']:.0f} samples/s, {numbers['tokens_per_second']:.0f} tokens/s, "
            f"reward {numbers['mean_reward']:.3f}"
        )
        self.drawn(0)


def _rows(part: Split, settings: GrowSettings) -> int:
    human = settings.human_pairs and part.references is not None
    return len(part) * (settings.samples + settings.beams + human)


def scored_columns(
    policy: Policy, part: Split, hypotheses: Hypotheses, reward: Reward, settings: GrowSettings
) -> dict[str, Any]:
    """The columns of one shard: each source's human pair, then its samples, then what beam search found."""
    human = settings.human_pairs and part.references is not None
    reference_ids = policy.encode_references(part.references) if human and part.references else []
    rows: dict[str, list[Any]] = {
        name: [] for name in ("source_id", "sample_index", "source", "hypothesis", "reference", "tokens")
    }
    log_probs: list[np.ndarray | None] = []
    behaviour: list[np.ndarray | None] = []
    finish: list[str] = []
    for i, source in enumerate(part.sources):
        texts, tokens = list(hypotheses.texts[i]), list(hypotheses.tokens[i])
        finish += ["eos"] * human + ["eos" if ended else "length" for ended in hypotheses.finished[i]]
        log_probs += [None] * human + list(hypotheses.log_probs[i])
        behaviour += [None] * human + list(hypotheses.behaviour_log_probs[i])
        if human and part.references is not None:
            texts, tokens = [part.references[i], *texts], [reference_ids[i], *tokens]
        rows["source_id"] += [int(part.ids[i])] * len(texts)
        rows["sample_index"] += [-1] * human + list(range(len(texts) - human))
        rows["source"] += [source] * len(texts)
        rows["reference"] += ["" if part.references is None else part.references[i]] * len(texts)
        rows["hypothesis"] += texts
        rows["tokens"] += tokens
    references = None if part.references is None else rows["reference"]
    source_id, index = np.asarray(rows["source_id"], np.int64), np.asarray(rows["sample_index"], np.int32)
    origin = np.where(index < 0, "reference", np.where(index < settings.samples, "sample", "beam"))
    scored = reward(rows["source"], rows["hypothesis"], references, Groups(source_id, origin == "sample"))
    return {
        "source_id": source_id,
        "sample_index": index,
        "origin": origin.tolist(),
        "source": rows["source"],
        "hypothesis": rows["hypothesis"],
        "tokens": rows["tokens"],
        "log_probs": log_probs,
        "behaviour_log_probs": behaviour,
        "finish": finish,
        "raw_score": scored.raw,
        "reward": scored.reward,
        "flags": settings.guards.flags(rows["source"], rows["hypothesis"]),
    }


def rescore(dataset: ScoredDataset, reward: Reward, name: str) -> None:
    """Add another reward of every row as a sidecar column; what the shards hold stays. UserError if it is another's.

    It gets the human pairs as references, where a shard has those of all its sources.
    """

    def part(shard: int) -> np.ndarray:
        rows = dataset.shard(shard, ["source_id", "origin", "source", "hypothesis"])
        ids, origin = rows["source_id"].to_numpy(), np.asarray(rows["origin"].to_pylist())
        sources, hypotheses = rows["source"].to_pylist(), rows["hypothesis"].to_pylist()
        human = {i: y for i, y, by in zip(ids, hypotheses, origin, strict=True) if by == "reference"}
        references = [human[i] for i in ids] if len(human) == len(set(ids)) else None
        return reward(sources, hypotheses, references, Groups(ids, origin == "sample")).reward

    dataset.sidecars.write_once(name, part, reward.settings)


def open_dataset(folder: Path) -> ScoredDataset:
    """A complete Grow step's dataset."""
    if not folder.exists():
        raise UserError(f"{folder}: no such grow step; make it with `rest grow`")
    return ScoredDataset.open(folder)
