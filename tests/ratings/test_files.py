"""Readers of human ratings: hand-worked scores, the traps of real files, and bad input."""

import gzip
import json
import os
from collections import Counter
from pathlib import Path

import pytest

from rest.errors import UserError
from rest.ratings.files import MLQEPE, MQM, DirectAssessments, MQMWeights, Rankings, Votes

HEADER = "system\tdoc\tdoc_id\tseg_id\trater\tsource\ttarget\tcategory\tseverity"
MISTAKE, PUNCTUATION = "Accuracy/Mistranslation", "Fluency/Punctuation"


def mqm(folder, *lines, header=HEADER):
    """An MQM file of (system, segment, rater, target, category, severity)."""
    path = folder / "mqm_tiny.tsv"
    rows = [
        "\t".join([system, "doc1", segment, segment, rater, f"source {segment}", target, category, severity])
        for system, segment, rater, target, category, severity in lines
    ]
    path.write_text("\n".join([header, *rows, ""]), encoding="utf-8")
    return path


def test_penalties_add_up_for_each_rater_and_are_averaged(tmp_path):
    path = mqm(
        tmp_path,
        ("A", "1", "r1", "ein <v>Wort</v>", MISTAKE, "Major"),
        ("A", "1", "r1", "<v>ein</v> Wort", "Style/Awkward", "Minor"),
        ("A", "1", "r2", "ein Wort<v>.</v>", PUNCTUATION, "Minor"),
        ("A", "1", "r3", "ein Wort", "No-error", "No-error"),
        ("B", "1", "r1", "gar nichts", "Non-translation!", "Major"),
        ("B", "2", "r1", "zwei", "Source error", "Minor"),
        ("B", "2", "r1", "zwei", PUNCTUATION, "Major"),
        ("B", "2", "r1", "zwei", MISTAKE, "Neutral"),
    )
    ratings = MQM(path, "en-de").load()
    assert ratings.scores.tolist() == pytest.approx([-(6 + 0.1 + 0) / 3, -25, -6], abs=1e-6)
    assert ratings.systems == ["A", "B", "B"]
    assert ratings.sources == ["source 1", "source 1", "source 2"]
    assert ratings.groups.tolist() == [0, 0, 1]
    assert ratings.kinds == [("mqm_tiny", "en-de")] * 3
    assert ratings.documents == ["doc1"] * 3
    assert ratings.references == [None] * 3
    by_rater = MQM(path).load_by_rater()
    assert list(zip(by_rater.raters, by_rater.scores.tolist(), strict=True))[:3] == [
        ("r1", -6),
        ("r2", -0.1),
        ("r3", 0),
    ]


def test_tenths_that_add_up_to_the_same_are_tied(tmp_path):
    lines = [("A", "1", "r", "x", PUNCTUATION, "Minor")] * 3 + [("B", "1", "r", "y", "Three", "Minor")]
    weights = MQMWeights(minor=0.3)
    assert MQM(mqm(tmp_path, *lines), weights=weights).load().scores.tolist() == [-0.3, -0.3]


def test_the_text_is_that_of_a_line_without_error_else_of_most_raters_else_the_shortest(tmp_path):
    path = mqm(
        tmp_path,
        ("A", "1", "r1", "sound", "no-error", "no-error"),
        ("A", "1", "r2", "<v>corrected</v>", MISTAKE, "Minor"),
        ("A", "1", "r3", "corrected", MISTAKE, "Minor"),
        ("B", "1", "r1", "by one rater", MISTAKE, "Minor"),
        ("B", "1", "r1", "by one rater ", MISTAKE, "Minor"),  # lines do not count, raters do
        ("B", "1", "r2", "by two raters", MISTAKE, "Minor"),
        ("B", "1", "r3", "by two raters", MISTAKE, "Minor"),
        ("C", "1", "r1", "longer text", MISTAKE, "Minor"),
        ("C", "1", "r2", "text", MISTAKE, "Minor"),
        ("D", "1", "r1", "one <v> text</v>", MISTAKE, "Minor"),
    )
    assert MQM(path).load().hypotheses == ["sound", "by two raters", "text", "one text"]
    assert MQM(path, drop_ambiguous=True).load().hypotheses == ["one text"]


def test_a_human_translation_becomes_the_reference_and_systems_are_left_out(tmp_path):
    path = mqm(
        tmp_path,
        ("ref", "1", "r1", "gut", "No-error", "No-error"),
        ("A", "1", "r1", "schlecht", MISTAKE, "Major"),
        ("A", "2", "r1", "schlecht", MISTAKE, "HOTW-test"),
        ("B", "1", "r1", "falsch", MISTAKE, "Major"),
    )
    ratings = MQM(path, reference_system="ref", exclude_systems=("B",)).load()
    assert (ratings.systems, ratings.all_references) == (["A"], ["gut"])
    with pytest.raises(UserError, match="no system 'refB'"):
        MQM(path, reference_system="refB").load()
    with pytest.raises(UserError, match="none is left"):
        MQM(path, exclude_systems=("ref", "A", "B")).load()


def test_strict_and_mild_raters_are_put_on_one_scale(tmp_path):
    lines = [
        (system, "1", rater, system, MISTAKE, severity)
        for rater, severities in (("strict", ("Major", "Minor")), ("mild", ("Minor", "Neutral")))
        for system, severity in zip("AB", severities, strict=True)
    ]
    assert MQM(mqm(tmp_path, *lines), standardise_raters=True).load().scores.tolist() == [-1, 1]


def test_bad_mqm_names_the_line(tmp_path):
    with pytest.raises(UserError, match=r"mqm_tiny.tsv, line 2: severity is 'Grave'"):
        MQM(mqm(tmp_path, ("A", "1", "r", "t", MISTAKE, "Grave"))).load()
    with pytest.raises(UserError, match=r"line 1: no column 'rater'; the columns, parted by tabs, are 'system'"):
        MQM(mqm(tmp_path, header=HEADER.replace("rater", "judge"))).load()
    with pytest.raises(UserError, match=r"line 2: 10 columns, but the first line names 9"):
        MQM(mqm(tmp_path, ("A", "1", "r", "a\tb", MISTAKE, "Minor"))).load()
    with pytest.raises(UserError, match="no rating in it"):
        MQM(mqm(tmp_path)).load()
    with pytest.raises(UserError, match="does not exist"):
        MQM(tmp_path / "nothing.tsv").load()


# Direct assessments


def table(folder, *rows, name="da.tsv"):
    path = folder / name
    path.write_text("\n".join("\t".join(row) for row in rows) + "\n", encoding="utf-8")
    return path


def test_a_table_is_read_by_the_names_of_its_columns(tmp_path):
    path = table(
        tmp_path,
        ("lp", "score", "source", "mt", "ref", "article", "who"),
        ("de-en", "10", 'a "quoted', "x", "r", "d1", "1"),
        ("de-en", "30", 'a "quoted', "x", "r", "d1", "2"),
        ("fi-en", "5", "b", "y", "", "d2", "1"),
    )
    columns = DirectAssessments(
        path, hypothesis="mt", reference="ref", document="article", rater="who", language_pairs="lp"
    )
    ratings = columns.load()
    assert ratings.scores.tolist() == [20, 5]
    assert ratings.sources == ['a "quoted', "b"]
    assert ratings.references == ["r", None]
    assert ratings.language_pairs == ["de-en", "fi-en"]
    assert ratings.documents == ["d1", "d2"]


def test_mlqe_pe_is_read_from_a_gzip_file(tmp_path):
    path = tmp_path / "en-de.dev.tsv.gz"
    names = "index\toriginal\ttranslation\tscores\tmean\tz_scores\tz_mean\tmodel_scores\tdoc"
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.write(f"{names}\n0\tone\teins\t[1]\t1.0\t[0.5]\t0.5\t-0.1\tArticle\n")
    ratings = MLQEPE(path, "en-de").load()
    assert (ratings.scores.tolist(), ratings.documents, ratings.sets) == ([0.5], ["Article"], ["en-de.dev"])


@pytest.mark.parametrize("score", ["", "good", "nan", "inf"])
def test_a_score_that_is_no_number_names_line_column_and_value(tmp_path, score):
    path = table(tmp_path, ("source", "hypothesis", "score"), ("a", "b", "1"), ("a", "b", score))
    with pytest.raises(UserError, match=rf"da.tsv, line 3: score is '{score}', not a finite number"):
        DirectAssessments(path).load()


def test_rows_without_a_source_are_refused_or_dropped(tmp_path):
    path = table(tmp_path, ("source", "hypothesis", "score"), ("", "b", "1"), ("a", "b", "2"))
    with pytest.raises(UserError, match="line 2: source is empty"):
        DirectAssessments(path).load()
    assert DirectAssessments(path, drop_empty_sources=True).load().scores.tolist() == [2]


# Votes and rankings


def lines(folder, *objects):
    path = folder / "judged.jsonl"
    path.write_text("".join((o if isinstance(o, str) else json.dumps(o)) + "\n" for o in objects), encoding="utf-8")
    return path


def test_votes_are_shares_of_thumbs_up(tmp_path):
    votes = [(True, "x"), (False, "x"), ("up", "x"), (1, "y"), (-1, "z"), ("down", "z"), (0, "z")]
    ratings = Votes(lines(tmp_path, *({"source": "s", "hypothesis": h, "vote": v} for v, h in votes))).load()
    assert ratings.hypotheses == ["x", "y", "z"]
    assert ratings.scores.tolist() == [0.666667, 1, 0]
    assert ratings.groups.tolist() == [0, 0, 0]


def test_rankings_score_the_share_of_answers_beaten(tmp_path):
    path = lines(
        tmp_path,
        {"source": "s", "answers": ["best", ["tied", "too"], "worst"], "rater": "anna", "reference": "r"},
        "",
        {"source": "s", "answers": ["a", "b"]},
    )
    ratings = Rankings(path, "de-en").load()
    assert ratings.hypotheses == ["best", "tied", "too", "worst", "a", "b"]
    assert ratings.scores.tolist() == [1, 0.5, 0.5, 0, 1, 0]
    assert ratings.groups.tolist() == [0, 0, 0, 0, 1, 1]  # two people's rankings are not compared with each other
    assert ratings.raters == ["anna"] * 4 + [""] * 2
    assert ratings.references == ["r"] * 4 + [None] * 2


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "line 1: not valid JSON"),
        ("[]", "no JSON object"),
        ({"answers": ["a", "b"]}, "source is None, not a text"),
        ({"source": " ", "answers": ["a", "b"]}, "source is ' '"),
        ({"source": "s"}, "answers is None"),
        ({"source": "s", "answers": ["a"]}, r"answers is \['a'\], not a list of two texts"),
        ({"source": "s", "answers": ["a", 3]}, "answers is"),
        ({"source": "s", "answers": ["a", ["b", "a"]]}, "answers has 'a' more than once"),
        ({"source": "s", "answers": ["a", "b"], "document": 7}, "document is 7, not a text"),
    ],
)
def test_bad_rankings(tmp_path, line, said):
    with pytest.raises(UserError, match=said):
        Rankings(lines(tmp_path, line)).load()


@pytest.mark.parametrize("vote", [None, 2, "yes", [1], 0.5])
def test_bad_votes(tmp_path, vote):
    with pytest.raises(UserError, match=r"judged.jsonl, line 1: vote is"):
        Votes(lines(tmp_path, {"source": "s", "hypothesis": "h", "vote": vote})).load()


# Real data


@pytest.fixture
def data():
    if "REST_DATA" not in os.environ:
        pytest.skip("the environment variable REST_DATA does not name a folder with mqm and mlqe-pe")
    return Path(os.environ["REST_DATA"])


@pytest.mark.parametrize(
    ("name", "translations", "different"),
    [
        ("ted_ende", 5_992, 0),
        ("ted_zhen", 6_420, 0),
        ("newstest2020_ende", 11_390, 0),
        ("newstest2020_zhen", 15_960, 0),
        ("newstest2021_ende", 8_529, 0),
        ("newstest2021_zhen", 7_755, 12),
    ],
)
def test_the_published_averages_come_out(data, name, translations, different):
    ratings = MQM(data / "mqm" / f"mqm_{name}.tsv.gz").load()
    assert len(ratings) == translations
    with gzip.open(data / "mqm" / f"avg_seg_scores_{name}.tsv.gz", "rt", encoding="utf-8") as file:
        published = [line.rstrip("\n").split("\t") for line in file][1:]
    # of each document and system, since the files number segments in ways of their own
    ours, theirs = Counter(), Counter()
    rated = {(system, document) for system, document, _, _ in published}
    for system, document, score in zip(ratings.systems, ratings.documents, ratings.scores.tolist(), strict=True):
        if (system, document) in rated:
            ours[system, document, round(score, 5)] += 1
    for system, document, _, score in published:
        theirs[system, document, round(float(score), 5) + 0.0] += 1
    assert (theirs - ours).total() == different


def test_mlqe_pe(data):
    ratings = MLQEPE(data / "mlqe-pe" / "en-de.train.tsv.gz", "en-de").load()
    assert (len(ratings), len(set(ratings.documents)), len(set(ratings.sources))) == (7_000, 3_882, 7_000)


def test_mlqe_pe_as_it_is_published_names_no_documents(tmp_path):
    path = table(tmp_path, ("index", "original", "translation", "z_mean"), ("0", "a", "b", "0.5"))
    ratings = MLQEPE(path).load()
    assert (ratings.scores.tolist(), ratings.documents) == ([0.5], [""])
