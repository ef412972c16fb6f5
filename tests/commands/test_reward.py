"""The commands `rest reward evaluate` and `rest reward attack`, and the rewards that they open by name."""

import json
from pathlib import Path

import numpy as np
import pytest

from rest.__main__ import main
from rest.commands.reward import open_reward
from rest.data.batches import BatchSettings
from rest.errors import UserError
from rest.ratings.record import source_keys
from rest.reward.learned.network import SEEN, LearnedReward
from rest.reward.reward import Calibration
from rest.reward.trivial import SourceOverlap

REWARDS = """
from rest.reward.reward import Reward
import numpy as np
def words(sources, hypotheses, references):
    return np.array([len(y.split()) for y in hypotheses])
def letters(sources, hypotheses):
    return np.array([len(y) for y in hypotheses])
shorter = Reward(letters, (9.0, 0.0))
rising, falling = Reward(words, (0.0, 9.0)), Reward(words, (9.0, 0.0))
number = 3
"""


@pytest.fixture
def mine(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(REWARDS)
    return path


@pytest.fixture
def ratings(tmp_path):
    """Forty sources of twenty documents, each translated by two systems."""
    rows = [
        (f"quelle {k}", f"text {k}" + " and more" * s, f"doc{k % 20}", f"system {s}", str((k * 7 + s) % 5))
        for k in range(40)
        for s in range(2)
    ]
    path = tmp_path / "rated.tsv"
    path.write_text(
        "".join("\t".join(row) + "\n" for row in [("source", "hypothesis", "doc", "system", "score"), *rows])
    )
    return ["table", "--path", str(path), "--document", "doc", "--system", "system", "--language-pair", "de-en"]


def test_evaluate_prints_a_table_and_writes_the_numbers(mine, ratings, tmp_path, capsys, policy):
    policy.save(tmp_path / "bc" / "policy")
    out = tmp_path / "made" / "agreement.json"
    flags = ["--against", f"{mine}:falling", "--policy", str(tmp_path), "--resamples", "50", "--out", str(out)]
    main(["reward", "evaluate", f"{mine}:words", *flags, *ratings])
    assert "80 rows, 40 sources, 20 documents, 2 systems" in capsys.readouterr().out
    (found,) = json.loads(out.read_text())["results"]
    assert set(found["rewards"]) == {
        f"{mine}:words", f"{mine}:falling", "log-probability", "constant", "length ratio", "short source",
        "overlap with source",
    }  # fmt: skip
    words, falling = found["rewards"][f"{mine}:words"], found["rewards"][f"{mine}:falling"]
    assert words["pearson"]["value"] == pytest.approx(-falling["pearson"]["value"])
    assert found["resampled"] == "documents"


def test_a_part_is_held_out_by_document(mine, ratings, tmp_path, capsys):
    main(["reward", "evaluate", f"{mine}:words", "--part", "test", "--split.test-share", "0.3", *ratings])
    assert "24 rows, 12 sources, 6 documents" in capsys.readouterr().out


def test_what_a_learned_reward_was_made_with_is_left_out(ratings, tmp_path, capsys, policy):
    network = tmp_path / "run" / "reward" / "network"
    LearnedReward.new(policy, BatchSettings()).save(network, Calibration((0.0, 1.0), (0.0, 1.0)))
    command = ["reward", "evaluate", str(tmp_path / "run"), "--part", "unseen", "--resamples", "20", *ratings]
    with pytest.raises(SystemExit):
        main(command)
    assert "has no seen.npy, which tells what the reward was trained on" in capsys.readouterr().err
    np.save(network / SEEN, source_keys(f"quelle {k}" for k in range(25, 35)))  # of documents 5 to 14
    main(command)
    shown = capsys.readouterr().out
    assert "40 rows, 20 sources, 10 documents, 2 systems" in shown
    assert "less the others, on the same resamples" in shown


def test_what_was_trained_on_is_no_test_whatever_the_text_was_cleaned_like(ratings, tmp_path, capsys, policy):
    run = tmp_path / "run"
    network = run / "reward" / "network"
    LearnedReward.new(policy, BatchSettings()).save(network, Calibration((0.0, 1.0), (0.0, 1.0)))
    (run / "experiment.json").write_text(json.dumps({"cleaning": {"lowercase": True}}))
    loud = Path(ratings[2])  # the same ratings, their sources in capitals
    loud.write_text(loud.read_text().replace("quelle", "QUELLE"))
    np.save(network / SEEN, source_keys(f"quelle {k}" for k in range(10)))  # of documents 0 to 9
    command = ["reward", "evaluate", str(run), "--resamples", "20", "--split.test-share", "0.5", "--split.dev-share"]
    main([*command, "0.1", "--part", "test", *ratings])
    said = capsys.readouterr()
    assert "are of documents that were trained on" in said.out + said.err


def test_attack_prints_a_table_and_writes_the_numbers(mine, ratings, tmp_path, capsys):
    out = tmp_path / "attacks.json"
    main(["reward", "attack", f"{mine}:rising", "--sources", "10", "--out", str(out), *ratings])
    assert "Where the reward was fooled most" in capsys.readouterr().out
    results = {result["attack"]: result for result in json.loads(out.read_text())["results"]}
    assert results["said twice"]["higher"] == 1
    assert results["empty"]["cases"] == 10


def test_a_learned_reward_is_found_in_a_runs_folder(policy, tmp_path):
    saved = LearnedReward.new(policy, BatchSettings())
    saved.save(tmp_path / "run" / "reward" / "network", Calibration((0.0, 1.0), (0.0, 1.0)))
    expected = saved(["ba"], ["ba ba"], None)
    for folder in (tmp_path / "run", tmp_path / "run" / "reward", tmp_path / "run" / "reward" / "network"):
        np.testing.assert_allclose(open_reward(str(folder))(["ba"], ["ba ba"], None), expected, rtol=1e-6)


def test_functions_rewards_and_classes_are_found_by_name(mine, monkeypatch):
    assert isinstance(open_reward("rest.reward.trivial:SourceOverlap"), SourceOverlap)
    assert open_reward(f"{mine}:rising")(["a"], ["b c"], None).tolist() == [2]
    assert open_reward(f"{mine}:falling")(["a"], ["b c"], None).tolist() == [-2]  # lower raw scores are better
    assert open_reward(f"{mine}:letters")(["a"], ["b c"], None).tolist() == [3]  # one that wants no references
    assert open_reward(f"{mine}:shorter")(["a"], ["b c"], None).tolist() == [-3]
    monkeypatch.chdir(mine.parent)
    assert open_reward("mine:words")(["a"], ["b c"], None).tolist() == [2]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nothing", "neither the folder of a run"),
        ("no.such.module:reward", "No module named 'no'"),
        ("rest.reward.trivial:nothing", "no reward of the name 'nothing'"),
        ("{mine}:number", "no reward of the name 'number'"),
        ("absent.py:reward", "no such file"),
    ],
)
def test_a_name_that_is_no_reward(mine, name, said):
    with pytest.raises(UserError, match=said):
        open_reward(name.format(mine=mine))
