"""`rest report --record`: the numbers of a run in one file, with how they were made."""

import json
import shutil

import pytest

from rest.commands.report import report
from rest.errors import UserError
from rest.folder import read_json


def test_a_record_has_the_numbers_of_a_run_and_how_they_were_made(finished, tmp_path, capsys):
    run, record, agreement = tmp_path / "run", tmp_path / "results" / "tiny.json", tmp_path / "agreement.json"
    shutil.copytree(finished, run)
    agreement.write_text(json.dumps({"path": str(tmp_path / "mqm.tsv"), "pearson": 0.5}))
    command = "rest run tests/tiny.py --out DIR"
    report([str(run), "--record", str(record), "--command", command, "--agreement", str(agreement)])
    assert str(record) in capsys.readouterr().out.replace("\n", "")

    found = read_json(record)
    assert found["command"] == command
    assert {"version", "commit", "machine", "packages"} <= set(found)
    assert found["rows"] == read_json(run / "summary.json")
    assert found["settings"]["grow"]["samples_per_source"] == 3
    assert found["stages"]["improve-1-2"] == read_json(run / "improve-1-2" / "stage.json")["result"]
    assert found["stages"]["reward"] == read_json(run / "reward" / "stage.json")["result"]
    pair = "improve-1-2-against-bc"
    assert found["paired"][pair] == read_json(run / "evaluation" / pair / "stage.json")["result"]["tests"]
    assert found["agreement"] == [{"path": "mqm.tsv", "pearson": 0.5}]  # where text lay is nobody's concern


def test_a_run_that_evaluated_no_policy_has_a_record_without_rows(finished, tmp_path):
    run, record = tmp_path / "run", tmp_path / "reward.json"
    for stage in ("bc", "reward"):
        shutil.copytree(finished / stage, run / stage)
    shutil.copy(finished / "experiment.json", run)
    report([str(run), "--record", str(record)])
    found = read_json(record)
    assert set(found["stages"]) == {"bc", "reward"} and "rows" not in found and "agreement" not in found
    assert not (run / "report.html").exists()


def test_what_cannot_be_recorded_is_refused(finished, tmp_path):
    with pytest.raises(UserError, match="name its file with --record"):
        report([str(finished), "--agreement", str(tmp_path / "agreement.json")])
    run = tmp_path / "run"
    shutil.copytree(finished / "bc", run / "bc")
    with pytest.raises(UserError, match=r"experiment\.json: no such file"):
        report([str(run), "--record", str(tmp_path / "record.json")])
    with pytest.raises(UserError, match="no policy has been evaluated"):
        report([str(run)])


def test_a_study_is_no_run(tmp_path):
    (tmp_path / "study.json").write_text("{}")
    with pytest.raises(UserError, match=r"is a study: see its study\.md"):
        report([str(tmp_path)])
