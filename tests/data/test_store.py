"""The scored dataset on disk: same rows back, same bytes, damage named, open to other tools."""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rest.data import shards, store
from rest.data.shards import SCHEMA, shard_name, shard_rows, write_shard
from rest.data.store import ScoredDataset, write_manifest
from rest.errors import UserError

SCALE = (-4.0, 4.5)  # of the raw scores that `made` gives, from -5 to 5
SCALARS = ["source_id", "sample_index", "raw_score", "reward"]


def made(seed: int, sources: int, samples: int = 3, beams: int = 0) -> dict[str, list]:
    """Columns of `sources` sources, each with its samples, what beam search found, and then its human pair."""
    rng = np.random.default_rng(seed)
    columns: dict[str, list] = {name: [] for name in SCHEMA.names}
    for source in range(sources):
        for index in [*range(samples + beams), -1]:
            length = int(rng.integers(1, 6))
            log_probs = None if index == -1 else -rng.random(length, np.float32)
            reward = float(np.float32(rng.random()))
            row = [
                1000 * seed + source,
                index,
                "reference" if index == -1 else "sample" if index < samples else "beam",
                f"Zwei Männer\u2028 {source}",
                "" if source == 1 else f"two men {source} {index}",
                rng.integers(2, 32_000, length).astype(np.int32),
                log_probs,
                None if log_probs is None or index >= samples else log_probs * np.float32(1.25),
                "length" if index == 0 else "eos",
                reward * 10 - 5,
                reward,
                "copies,too_long" if index == 1 else "copies" if index == 2 and source == 0 else "",
            ]
            for name, value in zip(SCHEMA.names, row, strict=True):
                columns[name].append(value)
    return columns


def complete(folder: Path, sizes: tuple[int, ...] = (5, 0, 4)) -> ScoredDataset:
    folder.mkdir(parents=True, exist_ok=True)
    for index, sources in enumerate(sizes):
        write_shard(folder, index, len(sizes), made(index, sources))
    settings, identities = {"temperature": 0.8}, {"policy": "p"}
    write_manifest(folder, settings=settings, identities=identities, seed=7, scale=SCALE)
    return ScoredDataset.open(folder)


@pytest.fixture
def dataset(tmp_path, monkeypatch) -> ScoredDataset:
    """36 rows in three shards, one of them empty, of small row groups."""
    for module in (shards, store):
        monkeypatch.setattr(module, "ROW_GROUP", 6)
    return complete(tmp_path / "grow-1")


def all_rows(sizes: tuple[int, ...] = (5, 0, 4)) -> dict[str, list]:
    parts = [made(index, sources) for index, sources in enumerate(sizes)]
    return {name: [value for part in parts for value in part[name]] for name in SCHEMA.names}


def test_rows_come_back_as_written(dataset):
    expected = all_rows()
    table = pa.concat_tables(dataset.batches(SCHEMA.names))
    assert table.schema == SCHEMA
    for name, values in expected.items():
        found = table[name].to_pylist()
        for row, (a, b) in enumerate(zip(found, values, strict=True)):
            assert (a is None) == (b is None), (name, row)
            if b is not None:
                np.testing.assert_array_equal(a, np.float32(b) if name == "raw_score" else b)


def test_scalar_columns_come_as_numpy(dataset):
    expected = all_rows()
    names = [*SCALARS, "is_reference", "is_sample", "is_truncated", "is_flagged", "length", "flags", "origin"]
    columns = dataset.columns(names)
    assert list(columns) == names and dataset.rows == 36
    for name in SCALARS:
        assert columns[name].dtype == SCHEMA.field(name).type.to_pandas_dtype()
        np.testing.assert_array_equal(columns[name], np.array(expected[name], columns[name].dtype))
    assert columns["is_reference"].tolist() == [i == -1 for i in expected["sample_index"]]
    assert columns["is_sample"].tolist() == [i >= 0 for i in expected["sample_index"]]
    assert columns["is_truncated"].tolist() == [f == "length" for f in expected["finish"]]
    assert columns["is_flagged"].tolist() == [f != "" for f in expected["flags"]]
    assert columns["length"].tolist() == [len(t) for t in expected["tokens"]]
    assert columns["flags"].tolist() == expected["flags"]
    assert columns["origin"].tolist() == expected["origin"]
    with pytest.raises(ValueError, match="tokens is list<item: int32>, not a scalar column"):
        dataset.columns(["tokens"])
    with pytest.raises(UserError, match="has no column 'rewards'; it has source_id"):
        dataset.columns(["rewards"])


def test_the_manifest_counts_and_describes(dataset):
    manifest = json.loads((dataset.folder / "manifest.json").read_text())
    expected = all_rows()
    reward = np.array(expected["reward"])
    samples = reward[np.array(expected["sample_index"]) >= 0]
    assert [shard["rows"] for shard in manifest["shards"]] == [20, 0, 16]
    assert manifest["rows"] == 36 and manifest["seed"] == 7
    raw = np.array(expected["raw_score"], np.float32)
    assert manifest["scale"] == list(SCALE)
    assert manifest["clipped"] == ((raw < SCALE[0]) | (raw > SCALE[1])).sum() > 0
    assert manifest["flagged"] == {"copies": 11, "too_long": 9}
    assert manifest["reward"]["all"]["rows"] == 36 and manifest["reward"]["references"]["rows"] == 9
    assert manifest["reward"]["samples"]["mean"] == pytest.approx(samples.mean())
    assert manifest["reward"]["samples"]["std"] == pytest.approx(samples.std())
    assert manifest["reward"]["all"]["quantiles"]["0.95"] == pytest.approx(np.quantile(reward, 0.95))
    assert len(manifest["reward"]["all"]["quantiles"]) == 19
    assert set(manifest["packages"]) == {"rest", "jax", "numpy", "pyarrow"}
    assert store.Manifest.from_json(manifest) == dataset.manifest


def test_what_beam_search_found_is_told_apart_from_samples(tmp_path):
    columns = made(0, 4, beams=2)
    write_shard(tmp_path, 0, 1, columns)
    manifest = write_manifest(tmp_path, settings={}, identities={}, seed=0, scale=SCALE)
    found = ScoredDataset.open(tmp_path)
    rows = [row for batch in found.batches(["origin", "log_probs", "behaviour_log_probs"]) for row in batch.to_pylist()]
    assert [row["origin"] for row in rows] == columns["origin"]
    assert [row["behaviour_log_probs"] is None for row in rows] == [row["origin"] != "sample" for row in rows]
    assert [row["log_probs"] is None for row in rows] == [row["origin"] == "reference" for row in rows]
    kinds = found.columns(["is_sample", "is_reference"])
    assert kinds["is_sample"].sum() == 12 and kinds["is_reference"].sum() == 4 and len(rows) == 24
    assert {part: of["rows"] for part, of in manifest.reward.items()} == {
        "all": 24, "samples": 12, "references": 4, "beam": 8
    }  # fmt: skip
    of_beam = [reward for reward, origin in zip(columns["reward"], columns["origin"], strict=True) if origin == "beam"]
    assert manifest.reward["beam"]["mean"] == pytest.approx(np.mean(of_beam))


def test_a_dataset_of_before_beam_search_still_opens(dataset):
    path = dataset.folder / "manifest.json"
    old = json.loads(path.read_text()) | {"schema_version": 1}
    path.write_text(json.dumps(old))
    assert ScoredDataset.open(dataset.folder).columns(["is_sample"])["is_sample"].sum() == 27
    assert "beam" not in old["reward"]


def test_the_same_columns_give_the_same_bytes_in_whatever_form(tmp_path):
    a, b = complete(tmp_path / "a", (3,)), complete(tmp_path / "b", (3,))
    assert a.identity == b.identity
    columns = made(0, 3)
    arrow = {name: pq.read_table(a.folder / shard_name(0, 1))[name] for name in SCHEMA.names}
    numbers = {name: np.array(columns[name]) for name in SCALARS}
    for other in (columns | numbers, columns | arrow):
        write_shard(tmp_path, 0, 1, other)
        assert (tmp_path / shard_name(0, 1)).read_bytes() == (a.folder / shard_name(0, 1)).read_bytes()
    assert not list(tmp_path.rglob("*.writing"))


def test_a_shard_is_made_again_unless_all_of_it_can_be_read(tmp_path):
    path = tmp_path / shard_name(0, 1)
    assert shard_rows(path) is None
    write_shard(tmp_path, 0, 1, made(0, 3))
    assert shard_rows(path) == 12
    content = path.read_bytes()
    for damaged in (content[:-1], content[:200] + bytes([content[200] ^ 255]) + content[201:], b""):
        path.write_bytes(damaged)
        assert shard_rows(path) is None


def test_a_folder_without_manifest_is_not_complete(tmp_path):
    write_shard(tmp_path, 0, 2, made(0, 2))
    (tmp_path / f".{shard_name(1, 2)}.0a1b2c3d.writing").write_bytes(b"PAR1")
    with pytest.raises(UserError, match="is not a complete scored dataset"):
        ScoredDataset.open(tmp_path)
    with pytest.raises(UserError, match=r"part-00001-of-00002.parquet is missing"):
        write_manifest(tmp_path, settings={}, identities={}, seed=0, scale=(0.0, 1.0))
    write_shard(tmp_path, 1, 2, made(1, 2))
    write_manifest(tmp_path, settings={}, identities={}, seed=0, scale=(0.0, 1.0))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["manifest.json", shard_name(0, 2), shard_name(1, 2)]


def test_a_missing_shard_is_named(dataset):
    (dataset.folder / shard_name(2, 3)).unlink()
    with pytest.raises(UserError, match=r"part-00002-of-00003.parquet is missing"):
        ScoredDataset.open(dataset.folder)
    with pytest.raises(UserError, match=r"part-00002-of-00003.parquet is missing"):
        dataset.columns(["reward"])


def test_a_truncated_shard_is_named(dataset):
    path = dataset.folder / shard_name(0, 3)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"part-00000-of-00003.parquet is damaged: it has \d+ bytes, not"):
        ScoredDataset.open(dataset.folder)


def test_an_unreadable_footer_is_named(dataset):
    path = dataset.folder / shard_name(0, 3)
    content = path.read_bytes()
    path.write_bytes(content[:-200] + bytes(200))
    with pytest.raises(UserError, match=r"part-00000-of-00003.parquet cannot be read, it may be damaged"):
        ScoredDataset.open(dataset.folder)


def test_any_damaged_byte_is_found_and_the_shard_named(dataset):
    """By `verify` always; by reading always as well, unless the rows read are still the ones written."""
    path = dataset.folder / shard_name(0, 3)
    content = path.read_bytes()
    names = list(SCHEMA.names)
    whole = pa.concat_tables(dataset.batches(names))
    for place in range(0, len(content), 97):
        path.write_bytes(content[:place] + bytes([content[place] ^ 0x55]) + content[place + 1 :])
        with pytest.raises(UserError, match=r"part-00000-of-00003.parquet"):
            dataset.verify()
        try:
            assert pa.concat_tables(dataset.batches(names)).equals(whole)
        except UserError as error:
            assert "part-00000-of-00003.parquet" in str(error)
    path.write_bytes(content)
    dataset.verify()


def test_a_manifest_of_another_kind_is_refused(dataset):
    path = dataset.folder / "manifest.json"
    good = json.loads(path.read_text())
    for content, message in [
        ("{", "manifest.json is damaged"),
        ("[]", "has schema_version None"),
        (json.dumps(good | {"schema_version": 99}), "has schema_version 99, and this version reads 1 to 2"),
        (json.dumps({"schema_version": 1}), "is not that of a scored dataset"),
    ]:
        path.write_text(content)
        with pytest.raises(UserError, match=message):
            ScoredDataset.open(dataset.folder)


@pytest.mark.parametrize(
    "column, row, value, message",
    [
        (
            "reward",
            5,
            float("nan"),
            r"reward must be a number in \[0, 1\], but is nan at source_id 1, sample_ind",
        ),
        ("reward", 4, 1.5, r"part-00000-of-00001.parquet: reward must be .* but is 1.5 at source_id 1"),
        ("raw_score", 0, float("inf"), r"raw_score must be a finite number, but is inf at source_id 0"),
    ],
)
def test_a_reward_that_is_no_reward_is_named(tmp_path, column, row, value, message):
    columns = made(0, 2)
    columns[column][row] = value
    with pytest.raises(UserError, match=message):
        write_shard(tmp_path, 0, 1, columns)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "column, row, value, message",
    [
        ("finish", 1, "stop", "row 1 breaks the rule: finish is eos or length"),
        ("log_probs", 0, None, "row 0 breaks the rule: log_probs is null where origin is reference, elsewhere one"),
        ("log_probs", 3, [0.5], "row 3 breaks the rule: log_probs is null where origin is reference"),
        ("sample_index", 0, -1, "row 0 breaks the rule: sample_index is -1 exactly for references"),
        ("hypothesis", 2, None, "row 2 breaks the rule: hypothesis is never null"),
    ],
)
def test_rows_that_break_the_contract_are_refused(tmp_path, column, row, value, message):
    columns = made(0, 1)
    columns[column][row] = value
    with pytest.raises(ValueError, match=message):
        write_shard(tmp_path, 0, 1, columns)


def test_a_full_disk_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(UserError, match=r"part-00000-of-00001.parquet cannot be written: the disk is full"):
        write_shard(tmp_path, 0, 1, made(0, 1))
    assert not list(tmp_path.iterdir())


def test_kept_rows_are_memory_mapped_and_made_once(dataset, tmp_path):
    mask = dataset.columns(["reward"])["reward"] > 0.6
    names = ["source_id", "tokens", "log_probs", "source"]
    whole = pa.concat_tables(dataset.batches(names))
    before = pa.total_allocated_bytes()
    table = dataset.keep(mask, names, tmp_path / "cache")
    assert pa.total_allocated_bytes() - before < 1000
    assert table.equals(whole.filter(pa.array(mask)))
    (path,) = (tmp_path / "cache").glob("*.arrow")
    stamp = path.stat().st_mtime_ns
    assert dataset.keep(mask, names, tmp_path / "cache").equals(table) and path.stat().st_mtime_ns == stamp
    content = path.read_bytes()
    path.unlink()
    dataset.keep(mask, names, tmp_path / "cache")
    assert path.read_bytes() == content
    dataset.keep(~mask, names, tmp_path / "cache")
    dataset.keep(mask, names[:2], tmp_path / "cache")
    assert len(list((tmp_path / "cache").glob("*.arrow"))) == 3
    assert len(dataset.keep(np.zeros(36, np.bool_), names, tmp_path / "cache")) == 0
    with pytest.raises(ValueError, match=r"the mask has shape \(3,\), not \(36,\)"):
        dataset.keep(np.ones(3, np.bool_), names, tmp_path / "cache")


def test_of_several_that_keep_the_same_rows_one_writes_them(dataset, tmp_path, monkeypatch):
    written, replacing, mask = [], shards.replacing, np.arange(36) % 2 == 0
    monkeypatch.setattr(shards, "replacing", lambda path: written.append(path) or replacing(path))

    def keep(_: int) -> pa.Table:
        return dataset.keep(mask, ["source_id", "tokens"], tmp_path)

    with ThreadPoolExecutor(4) as threads:
        tables = list(threads.map(keep, range(4)))
    assert len(written) == 1 and all(table.equals(tables[0]) for table in tables)
    left = written[0].with_name(f".{written[0].name}.0.writing")  # by a process that was killed
    left.write_bytes(b"half")
    written[0].unlink()
    assert keep(0).equals(tables[0]) and not left.exists()


def test_a_damaged_cache_is_named(dataset, tmp_path):
    mask = np.ones(36, np.bool_)
    dataset.keep(mask, ["reward"], tmp_path / "cache")
    (path,) = (tmp_path / "cache").glob("*.arrow")
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(UserError, match=r"\.arrow cannot be read, it may be damaged"):
        dataset.keep(mask, ["reward"], tmp_path / "cache")


@settings(max_examples=20, deadline=None)
@given(st.sets(st.integers(0, 35)))
def test_chosen_rows_come_in_order(tmp_path_factory, chosen):
    folder = tmp_path_factory.getbasetemp() / "chosen"
    dataset = ScoredDataset.open(folder) if folder.exists() else complete(folder)
    rows = np.array(sorted(chosen), np.int64)
    found = [row for batch in dataset.batches(["source_id", "sample_index"], rows) for row in batch.to_pylist()]
    expected = all_rows()
    assert [(r["source_id"], r["sample_index"]) for r in found] == [
        (expected["source_id"][row], expected["sample_index"][row]) for row in rows
    ]


def test_rows_must_rise_and_exist(dataset):
    for rows in ([3, 3], [5, 2], [-1], [36]):
        with pytest.raises(ValueError, match=r"rows must rise and lie in \[0, 36\)"):
            list(dataset.batches(["reward"], np.array(rows)))


def test_sidecar_columns(dataset, tmp_path):
    scores = np.linspace(0, 1, 36, dtype=np.float32)
    dataset.sidecars.write("reward_2", scores, {"reward": "chrf"})
    log_probs = all_rows()["log_probs"]
    parts = (log_probs[:20], [], log_probs[20:])
    dataset.sidecars.write("anchor_log_probs", iter(parts), {})
    again = ScoredDataset.open(dataset.folder)
    assert again.identity == dataset.identity and again.sidecars.names == ["anchor_log_probs", "reward_2"]
    np.testing.assert_array_equal(again.columns(["reward_2"])["reward_2"], scores)
    np.testing.assert_array_equal(again.columns(["reward_2", "reward"])["reward_2"], scores)
    found = pa.concat_tables(again.batches(["anchor_log_probs"]))["anchor_log_probs"]
    assert found.type == pa.list_(pa.float32())
    assert found.to_pylist() == [None if row is None else row.tolist() for row in log_probs]
    kept = again.keep(scores > 0.5, ["tokens", "anchor_log_probs"], tmp_path / "cache")
    assert kept["anchor_log_probs"].to_pylist() == found.to_pylist()[18:]
    again.verify()


def test_a_sidecar_is_whole_unique_and_of_this_dataset(dataset):
    with pytest.raises(ValueError):
        dataset.sidecars.write("values", [np.zeros(20), np.zeros(0)], {})
    with pytest.raises(ValueError, match=r"part-00000-of-00003.parquet: double \[19\], not \[20\]"):
        dataset.sidecars.write("values", iter([np.zeros(19)]), {})
    assert dataset.sidecars.names == [] and not list((dataset.folder / "columns").iterdir())
    dataset.sidecars.write("values", np.zeros(36, np.float32), {})
    with pytest.raises(UserError, match="exists already"):
        dataset.sidecars.write("values", np.zeros(36, np.float32), {})
    for taken in ("reward", "length", "../x"):
        with pytest.raises(UserError, match="cannot be used"):
            dataset.sidecars.write(taken, np.zeros(36, np.float32), {})
    path = dataset.folder / "columns" / "values" / shard_name(2, 3)
    content = path.read_bytes()
    path.write_bytes(content[:20] + bytes([content[20] ^ 1]) + content[21:])
    with pytest.raises(UserError, match=r"values/part-00002-of-00003.parquet"):
        dataset.verify()
    path.write_bytes(content)
    write_manifest(dataset.folder, settings={}, identities={}, seed=8, scale=(0.0, 1.0))
    with pytest.raises(UserError, match="was made for another dataset"):
        ScoredDataset.open(dataset.folder).columns(["values"])


def test_it_opens_in_pandas(dataset):
    pandas = pytest.importorskip("pandas")
    frame = pandas.concat([pandas.read_parquet(p) for p in sorted(dataset.folder.glob("part-*.parquet"))])
    expected = all_rows()
    assert frame["hypothesis"].tolist() == expected["hypothesis"]
    assert frame[frame.origin == "sample"].groupby("source_id").size().eq(3).all()
    assert frame["tokens"].iloc[0].tolist() == expected["tokens"][0].tolist()
    assert frame["log_probs"].isna().sum() == 9


def test_it_opens_in_hugging_face_datasets(dataset, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    files = sorted(str(path) for path in dataset.folder.glob("part-*.parquet"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True)
    datasets.disable_progress_bars()
    loaded = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path / "hf"))
    expected = all_rows()
    assert loaded.column_names == SCHEMA.names and len(loaded) == 36
    assert loaded[3]["log_probs"] is None and loaded[0]["tokens"] == expected["tokens"][0].tolist()
    np.testing.assert_array_equal(loaded["reward"], expected["reward"])
