"""A Grow step on disk: the rows that the algorithm asks for, and the same bytes however often it was interrupted."""

import json
import os
import shutil
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import filelock
import numpy as np
import pytest

from rest.data.batches import Examples
from rest.data.shards import SCHEMA
from rest.errors import UserError
from rest.folder import open_stage, seed_for
from rest.grow import FurtherSamples, GrowSettings, grow, grow_sources, open_dataset, rescore
from rest.identity import describe
from rest.learning.mesh import MachineSettings
from rest.policy.beam import BeamSettings, translate
from rest.policy.policy import token_log_probs
from rest.policy.sampler import SamplingOverrides, SamplingSettings, sample
from rest.reward.guards import Guards
from rest.reward.reference_based import SentenceChrF
from rest.reward.reward import Reward

SAMPLING = SamplingSettings(temperature=0.8, max_target_tokens=12)
MACHINE = MachineSettings(rows=24)
SETTINGS = GrowSettings(samples_per_source=3, sources_per_shard=8)


def words(sources, hypotheses, references):
    return np.array([len(y.split()) for y in hypotheses], np.float32)


REWARD = Reward(words, (0.0, 10.0))


@pytest.fixture(scope="module")
def train(corpus, policy):
    """20 sources, so that the third shard is shorter; ids are not positions."""
    short = [row for row, ids in enumerate(policy.encode_sources(corpus.train.sources)) if len(ids) <= 16]
    return corpus.train.take(short[3:23])


HOT = SamplingOverrides(temperature=1.5, epsilon=0.01)
RICH = replace(SETTINGS, further=(FurtherSamples(2, HOT), FurtherSamples(1)), beams=2)


def make(folder, policy, train, reward=REWARD, settings=SETTINGS, g=1):
    """Enter, make and finish the stage."""
    with open_stage(folder, {"grow": settings, "g": g}) as stage:
        grow(stage, policy, [train], reward, settings, SAMPLING, g=g, seed=0, machine=MACHINE)
    return open_dataset(folder)


def contents(folder):
    """Bytes of all that a dataset is."""
    return {path.name: path.read_bytes() for path in [*folder.glob("part-*"), folder / "manifest.json"]}


def rows(dataset):
    return [row for table in dataset.batches(SCHEMA.names) for row in table.to_pylist()]


@pytest.fixture(scope="module")
def dataset(lively, train, tmp_path_factory):
    return make(tmp_path_factory.mktemp("run") / "grow-1", lively, train)


def test_every_source_has_its_human_pair_and_then_its_samples(dataset, train):
    found = rows(dataset)
    assert dataset.rows == len(found) == 20 * 4
    assert [row["source_id"] for row in found] == [i for i in train.ids for _ in range(4)]
    assert [row["sample_index"] for row in found] == [-1, 0, 1, 2] * 20
    assert [row["origin"] for row in found] == ["reference", *["sample"] * 3] * 20
    assert [row["source"] for row in found] == [x for x in train.sources for _ in range(4)]
    assert [shard.rows for shard in dataset.manifest.shards] == [32, 32, 16]


def test_samples_are_stored_as_they_were_drawn(dataset, lively, train):
    found = rows(dataset)
    own = seed_for(0, "grow")
    drawn = sample(lively, train.sources, train.ids, 3, SAMPLING, seed=own, grow_step=1, machine=MACHINE)
    assert {row["finish"] for row in found if row["origin"] == "sample"} == {"eos", "length"}
    for i in range(20):
        for k in range(3):
            row = found[4 * i + 1 + k]
            assert row["tokens"] == drawn.tokens[i][k].tolist()
            assert row["hypothesis"] == drawn.texts[i][k]
            assert row["finish"] == ("eos" if drawn.finished[i, k] else "length")
            assert (row["tokens"][-1] == lively.tokenizer.eos_id) == (row["finish"] == "eos")
            np.testing.assert_allclose(row["log_probs"], drawn.log_probs[i][k], atol=1e-5)
            np.testing.assert_allclose(row["behaviour_log_probs"], drawn.behaviour_log_probs[i][k], atol=1e-5)


def test_human_pairs_are_tokenised_and_have_no_log_probabilities(dataset, lively, train):
    human = [row for row in rows(dataset) if row["origin"] == "reference"]
    ids = lively.encode_references(train.references)
    for row, reference, tokens in zip(human, train.references, ids, strict=True):
        assert row["hypothesis"] == reference and row["tokens"] == tokens.tolist()
        assert row["finish"] == "eos" and row["log_probs"] is row["behaviour_log_probs"] is None


def test_every_row_is_scored_and_guarded(dataset):
    found = rows(dataset)
    raw = words(None, [row["hypothesis"] for row in found], None)
    assert [row["raw_score"] for row in found] == raw.tolist()
    np.testing.assert_allclose([row["reward"] for row in found], np.clip(raw / 10, 0, 1), rtol=1e-6)
    flags = Guards().flags([row["source"] for row in found], [row["hypothesis"] for row in found])
    assert [row["flags"] for row in found] == flags
    assert dataset.manifest.clipped == (raw > 10).sum() > 0


def test_the_stage_reports_the_dataset(dataset):
    result = json.loads((dataset.folder / "stage.json").read_text())["result"]
    assert result["rows"] == 80 and result["samples"] == 60
    assert result["reward"] == dataset.manifest.reward
    assert result["reward"]["samples"]["rows"] == 60 and result["reward"]["references"]["rows"] == 20


def alike(sources, hypotheses, references):
    return np.full(len(hypotheses), 0.5, np.float32)


def test_a_reward_that_tells_no_sample_from_another_is_warned_of(lively, train, tmp_path, capsys):
    warning = "grow 1: warning: every sample has the same reward"
    make(tmp_path / "alike", lively, train.take(slice(0, 2)), Reward(alike))
    assert warning in capsys.readouterr().err
    make(tmp_path / "words", lively, train.take(slice(0, 2)))
    assert warning not in capsys.readouterr().err


def test_the_manifest_names_what_made_the_dataset_and_nothing_of_the_machine(dataset, lively):
    manifest = dataset.manifest
    assert manifest.identities == {
        "policy": lively.identity,
        "reward": REWARD.identity,
        "tokenizer": lively.tokenizer.identity,
    }
    assert manifest.seed == 0 and manifest.scale == (0.0, 10.0)
    assert manifest.settings["grow"]["samples_per_source"] == 3
    text = (dataset.folder / "manifest.json").read_text()
    assert "/" not in text and "time" not in text
    dataset.verify()


class Interrupted(BaseException):
    pass


def counted(stop_after: int = 99):
    """The reward `words`, the rows of each of its calls, and an end to them that it was not asked for."""
    calls = []

    def function(sources, hypotheses, references):
        if len(calls) == stop_after:
            raise Interrupted
        calls.append(len(hypotheses))
        return words(sources, hypotheses, references)

    function.identity = describe(words)
    return Reward(function, REWARD.scale), calls


@pytest.mark.parametrize("damage", ["none", "truncated", "flipped", "empty"])
def test_an_interrupted_step_goes_on_to_the_same_bytes(dataset, lively, train, tmp_path, damage):
    folder = tmp_path / "grow-1"
    with pytest.raises(Interrupted):
        make(folder, lively, train, counted(stop_after=1)[0])
    assert not folder.exists()
    with pytest.raises(UserError, match="no such grow step"):
        open_dataset(folder)
    [shard] = (tmp_path / ".grow-1.partial").glob("part-*.parquet")
    whole = shard.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 3] ^= 0xFF
    shard.write_bytes({"none": whole, "truncated": whole[:-50], "flipped": bytes(flipped), "empty": b""}[damage])
    reward, calls = counted()
    resumed = make(folder, lively, train, reward)
    assert calls == ([32, 16] if damage == "none" else [32, 32, 16])  # only a damaged shard is made again
    assert contents(resumed.folder) == contents(dataset.folder)


def test_the_same_step_made_twice_gives_the_same_bytes(dataset, lively, train, tmp_path):
    assert contents(make(tmp_path / "grow-1", lively, train).folder) == contents(dataset.folder)


def test_sources_without_references_have_samples_only(lively, train, tmp_path):
    bare = replace(train.take(slice(0, 8)), references=None)
    found = make(tmp_path / "grow-1", lively, bare)
    assert [row["sample_index"] for row in rows(found)] == [0, 1, 2] * 8
    assert found.manifest.reward["references"] == {"rows": 0}


@pytest.fixture(scope="module")
def rich(lively, train, tmp_path_factory):
    """Three samples of one distribution, two of another, one more of the first, and two of beam search."""
    return make(tmp_path_factory.mktemp("rich") / "grow-1", lively, train, settings=RICH)


def test_samples_of_further_distributions_stand_beside_those_of_the_first_and_change_none(rich, dataset, lively, train):
    found = rows(rich)
    assert rich.rows == len(found) == 20 * 9
    assert [row["sample_index"] for row in found] == list(range(-1, 8)) * 20
    assert [row["origin"] for row in found] == ["reference", *["sample"] * 6, *["beam"] * 2] * 20
    assert [row for row in found if row["sample_index"] < 3] == rows(dataset)  # to the last bit
    own, hot = seed_for(0, "grow"), HOT.of(SAMPLING)
    drawn = sample(lively, train.sources, train.ids, 2, hot, seed=own, grow_step=1, first_index=3, machine=MACHINE)
    assert [row["tokens"] for row in found if row["sample_index"] in (3, 4)] == [
        y.tolist() for of_source in drawn.tokens for y in of_source
    ]
    for row, mu in zip(
        (row for row in found if row["sample_index"] in (3, 4)),
        (mu for of_source in drawn.behaviour_log_probs for mu in of_source),
        strict=True,
    ):
        np.testing.assert_allclose(row["behaviour_log_probs"], mu, atol=1e-5)


def test_more_samples_of_the_same_distribution_are_those_that_a_larger_n_would_draw(lively, train, tmp_path):
    part = train.take(slice(0, 8))
    more = replace(SETTINGS, samples_per_source=1, further=(FurtherSamples(2),))
    settings = {"a": more, "b": SETTINGS}
    found = {name: rows(make(tmp_path / name, lively, part, settings=s)) for name, s in settings.items()}
    assert [row["tokens"] for row in found["a"]] == [row["tokens"] for row in found["b"]]


def test_the_n_best_of_beam_search_stand_after_the_samples(rich, lively, train, batch):
    found = [row for row in rows(rich) if row["origin"] == "beam"]
    settings = BeamSettings(2, max_target_tokens=12)
    assert [row["hypothesis"] for row in found[::2]] == translate(lively, train.sources, settings)
    pairs = Examples(
        lively.encode_sources([row["source"] for row in found]), [np.asarray(row["tokens"]) for row in found]
    )
    for row, log_probs in zip(found, token_log_probs(lively, pairs, batch), strict=True):
        assert row["behaviour_log_probs"] is None
        assert (row["tokens"][-1] == lively.tokenizer.eos_id) == (row["finish"] == "eos")
        np.testing.assert_allclose(row["log_probs"], log_probs, atol=1e-4)
    assert {row["finish"] for row in found} == {"eos", "length"}
    assert all(a["tokens"] != b["tokens"] for a, b in zip(found[::2], found[1::2], strict=True))


def test_the_length_penalty_of_beam_search_is_the_one_given(rich, lively, train, tmp_path):
    part, penalty = train.take(slice(0, 8)), BeamSettings(length_penalty=-1.0)
    with open_stage(tmp_path / "grow-1", {"grow": RICH}) as stage:
        grow(stage, lively, [part], REWARD, RICH, SAMPLING, g=1, seed=0, beam=penalty, machine=MACHINE)
    best = [row["hypothesis"] for row in rows(open_dataset(tmp_path / "grow-1")) if row["sample_index"] == 6]
    assert best == translate(lively, part.sources, replace(penalty, beams=2, max_target_tokens=12))
    assert best != [row["hypothesis"] for row in rows(rich) if row["sample_index"] == 6][:8]


def test_samples_and_beam_search_are_counted_apart(rich):
    result = json.loads((rich.folder / "stage.json").read_text())["result"]
    assert result["rows"] == 180 and result["samples"] == 120 and result["beam"] == 40
    found = rows(rich)
    for part, origin in (("samples", "sample"), ("references", "reference"), ("beam", "beam")):
        rewards = [row["reward"] for row in found if row["origin"] == origin]
        assert result["reward"][part]["rows"] == len(rewards)
        assert result["reward"][part]["mean"] == pytest.approx(np.mean(rewards), abs=1e-6)


def test_an_interrupted_step_with_beam_search_goes_on_to_the_same_bytes(rich, lively, train, tmp_path):
    with pytest.raises(Interrupted):
        make(tmp_path / "grow-1", lively, train, counted(stop_after=2)[0], RICH)
    assert len(list((tmp_path / ".grow-1.partial").glob("part-*.parquet"))) == 2
    reward, calls = counted()
    assert contents(make(tmp_path / "grow-1", lively, train, reward, RICH).folder) == contents(rich.folder)
    assert calls == [36]


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        (lambda: GrowSettings(beams=-1), "beams must be at least 0, not -1"),
        (lambda: FurtherSamples(0), "grow.further: samples_per_source must be at least 1, not 0"),
    ],
)
def test_what_cannot_be_drawn_is_refused(settings, why):
    with pytest.raises(UserError, match=why):
        settings()


def test_source_text_is_sampled_beside_the_training_text(dataset, lively, train, tmp_path):
    text = replace(train.take(slice(0, 12)), name="text", ids=np.arange(12) + (1 << 40), references=None)
    with open_stage(tmp_path / "grow-1", {"grow": SETTINGS}) as stage:
        grow(stage, lively, [train, text], REWARD, SETTINGS, SAMPLING, g=1, seed=0, machine=MACHINE)
    found = rows(open_dataset(tmp_path / "grow-1"))
    assert found[:80] == rows(dataset)
    assert [row["source_id"] for row in found[80:]] == [i for i in text.ids for _ in range(3)]
    assert {row["sample_index"] for row in found[80:]} == {0, 1, 2}
    # what is drawn depends on the id, not on the text alone
    assert [row["tokens"] for row in found[80:83]] != [row["tokens"] for row in found[1:4]]


def test_sources_are_drawn_from_all_text_alike(corpus):
    text = replace(corpus.train, name="text", ids=corpus.train.ids + (1 << 40), references=None)
    both = grow_sources([corpus.train, text], 200, 1, seed=0)
    assert [split.name for split in both] == ["train", "text"] and sum(map(len, both)) == 200
    assert 60 < len(both[0]) < 140
    assert set(both[0].ids) < set(corpus.train.ids) and set(both[1].ids) < set(text.ids)


def test_grow_needs_some_text():
    with pytest.raises(UserError, match="nothing to sample for"):
        GrowSettings(training_text=False)


PROCESS = """
import sys
from pathlib import Path

import numpy as np

from rest.data.corpus import Split
from rest.folder import open_stage
from rest.grow import FurtherSamples, GrowSettings, grow
from rest.learning.mesh import MachineSettings
from rest.policy.policy import Policy
from rest.policy.sampler import SamplingOverrides, SamplingSettings
from rest.reward.reward import Reward

def words(sources, hypotheses, references):
    return np.array([len(y.split()) for y in hypotheses], np.float32)

folder = Path(sys.argv[1])
with np.load(folder / "train.npz") as file:
    train = Split("train", file["ids"], file["sources"].tolist(), file["references"].tolist())
hot = SamplingOverrides(temperature=1.5, epsilon=0.01)
further = (FurtherSamples(2, hot), FurtherSamples(1))
settings = GrowSettings(samples_per_source=3, further=further, beams=2, sources_per_shard=2)
sampling, machine = SamplingSettings(temperature=0.8, max_target_tokens=12), MachineSettings(rows=24)
reward = Reward(words, (0.0, 10.0))
(folder / f"ready-{sys.argv[2]}").touch()
while len(list(folder.glob("ready-*"))) < 2:  # so that both are at work at once
    pass
with open_stage(folder / "grow-1", {"grow": settings}, shared=True) as stage:
    if not stage.finished:
        policy = Policy.load(folder / "policy")
        grow(stage, policy, [train], reward, settings, sampling, g=1, seed=0, machine=machine)
"""


def test_two_processes_at_once_give_the_rows_of_one(rich, lively, train, tmp_path):
    lively.save(tmp_path / "policy")
    np.savez(tmp_path / "train.npz", ids=train.ids, sources=train.sources, references=train.references)
    (tmp_path / "process.py").write_text(PROCESS)
    command = [sys.executable, str(tmp_path / "process.py"), str(tmp_path)]
    here = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    processes = [subprocess.Popen([*command, str(k)], stderr=subprocess.PIPE, text=True, env=here) for k in range(2)]
    errors = [process.communicate()[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    found = open_dataset(tmp_path / "grow-1")
    found.verify()
    ours, theirs = rows(found), rows(rich)
    for row, other in zip(ours, theirs, strict=True):
        for name in ("log_probs", "behaviour_log_probs"):  # shards of another size: equal but for the last bit
            a, b = row.pop(name), other.pop(name)
            assert (a is None and b is None) or np.allclose(a, b, atol=1e-5)
    assert ours == theirs
    journals = list(found.folder.glob("journal*/metrics.jsonl"))
    shards = [json.loads(line)["step"] for path in journals for line in path.read_text().splitlines()]
    assert sorted(shards) == list(range(1, 11))  # each was made once
    assert not list(tmp_path.glob(".grow-1.locks"))


def test_a_shard_that_another_process_holds_is_left_to_it(dataset, lively, train, tmp_path):
    lock = filelock.FileLock(tmp_path / ".grow-1.locks" / "00000.lock", thread_local=False)
    lock.acquire()
    made = threading.Thread(target=make, args=(tmp_path / "grow-1", lively, train))
    made.start()
    partial = tmp_path / ".grow-1.partial"
    while len(list(partial.glob("part-*.parquet"))) < 2:
        assert made.is_alive()
    assert not (partial / "part-00000-of-00003.parquet").exists()
    lock.release()  # the other process has died without making it
    made.join()
    assert contents(tmp_path / "grow-1") == contents(dataset.folder)


def test_human_pairs_can_be_left_out(dataset, lively, train, tmp_path):
    found = make(tmp_path / "grow-1", lively, train, settings=replace(SETTINGS, human_pairs=False))
    assert rows(found) == [row for row in rows(dataset) if row["origin"] == "sample"]


def test_a_reward_gets_the_reference_of_each_row(lively, train, tmp_path):
    seen = []

    def watch(sources, hypotheses, references):
        seen.append(list(zip(sources, references, strict=True)))
        return np.full(len(hypotheses), 0.5)

    make(tmp_path / "grow-1", lively, train.take(slice(0, 8)), Reward(watch))
    pairs = list(zip(train.sources[:8], train.references[:8], strict=True))
    assert seen == [[pair for pair in pairs for _ in range(4)]]


def test_another_grow_step_draws_other_samples(dataset, lively, train, tmp_path):
    other = make(tmp_path / "grow-2", lively, train, g=2)
    texts = [[row["hypothesis"] for row in rows(d) if row["origin"] == "sample"] for d in (dataset, other)]
    assert texts[0] != texts[1]


def test_sources_are_drawn_anew_for_each_grow_step_in_the_order_of_the_corpus(corpus):
    settings = GrowSettings(sources=50)
    first, second = (grow_sources([corpus.train], settings.sources, g, seed=0)[0] for g in (1, 2))
    for drawn in (first, second):
        assert len(drawn) == len(set(drawn.ids.tolist())) == 50
        assert (np.diff(drawn.ids) > 0).all()
        by_id = dict(zip(corpus.train.ids.tolist(), corpus.train.references, strict=True))
        assert drawn.references == [by_id[i] for i in drawn.ids.tolist()]
    assert first.ids.tolist() != second.ids.tolist()
    assert grow_sources([corpus.train], settings.sources, 1, seed=0)[0].ids.tolist() == first.ids.tolist()
    assert grow_sources([corpus.train], settings.sources, 1, seed=1)[0].ids.tolist() != first.ids.tolist()


def test_another_reward_is_a_column_beside_the_shards(dataset, tmp_path):
    folder = tmp_path / "grow"
    shutil.copytree(dataset.folder, folder)
    copy = open_dataset(folder)
    rescore(copy, Reward(letters, (0.0, 200.0)), "letters")
    hypotheses = [y for batch in copy.batches(["hypothesis"]) for y in batch["hypothesis"].to_pylist()]
    np.testing.assert_allclose(copy.columns(["letters"])["letters"], [len(y) / 200 for y in hypotheses], rtol=1e-6)
    assert open_dataset(folder).identity == dataset.identity
    rescore(copy, Reward(letters, (0.0, 200.0)), "letters")  # it is there already
    with pytest.raises(UserError, match="letters was made with other settings"):
        rescore(copy, Reward(letters, (0.0, 100.0)), "letters")


class AboveTheOthers:
    """How many words a hypothesis has more than the samples of its source on average."""

    compares = True
    identity = "above the others"

    def __call__(self, sources, hypotheses, references, groups):
        words = np.array([len(y.split()) for y in hypotheses], np.float32)
        peers = [groups.peers & (groups.ids == i) for i in groups.ids]
        return np.array([own - words[others].mean() for own, others in zip(words, peers, strict=True)])


def test_a_reward_that_compares_sees_the_samples_of_each_source(rich, lively, train, tmp_path):
    reward = Reward(AboveTheOthers(), (-20.0, 20.0))
    found = rows(make(tmp_path / "grow-1", lively, train, reward, RICH))
    for at in range(0, len(found), 9):
        words = [len(row["hypothesis"].split()) for row in found[at : at + 9]]
        wanted = np.array(words) - np.mean(words[1:7])  # neither the human pair nor what beam search found
        np.testing.assert_allclose([row["raw_score"] for row in found[at : at + 9]], wanted, rtol=1e-5)
    shutil.copytree(rich.folder, tmp_path / "rich")
    scored_later = open_dataset(tmp_path / "rich")
    rescore(scored_later, reward, "above")
    np.testing.assert_array_equal(scored_later.columns(["above"])["above"], [row["reward"] for row in found])


def test_a_reward_of_references_scores_later_what_it_would_have_scored_at_once(rich, lively, train, tmp_path):
    shutil.copytree(rich.folder, tmp_path / "rich")
    scored_later, reward = open_dataset(tmp_path / "rich"), Reward(SentenceChrF(), (0.0, 100.0))
    rescore(scored_later, reward, "chrf")
    found = rows(rich)
    by_id = dict(zip(train.ids.tolist(), train.references, strict=True))
    wanted = reward(
        [row["source"] for row in found],
        [row["hypothesis"] for row in found],
        [by_id[row["source_id"]] for row in found],
    )
    chrf = scored_later.columns(["chrf"])["chrf"]
    np.testing.assert_array_equal(chrf, wanted.reward)
    assert (chrf[::9] == 1).all()  # of the references themselves
    bare = make(tmp_path / "bare", lively, train.take(slice(0, 8)), settings=replace(SETTINGS, human_pairs=False))
    with pytest.raises(UserError, match="reference"):
        rescore(bare, reward, "chrf")


def letters(sources, hypotheses, references):
    return np.array([len(y) for y in hypotheses], np.float32)


@pytest.mark.parametrize("sources", [0, 300, 10_000])
def test_all_sources_are_taken_when_none_or_too_many_are_asked_for(corpus, sources):
    assert grow_sources([corpus.train], sources, 1, seed=0) == [corpus.train]
