"""`rest init` writes an experiment that loads and fits its text, and other text gets other numbers."""

import gzip
import json
import random
from pathlib import Path

import numpy as np
import pytest

from rest import BLEU, ChrF, Consensus, Mixture, SentenceBLEU
from rest.__main__ import main
from rest.commands.choices import SIZES, Choices, Machine, size_for
from rest.commands.init import init
from rest.data.corpus import Cleaning
from rest.data.survey import Pairs
from rest.errors import UserError
from rest.evaluation.chooser import CorpusMean, MetricOfGreedy
from rest.experiment import load_experiment
from rest.folder import read_json
from rest.model.families.huggingface import HuggingFaceModel
from rest.ratings.files import MLQEPE, MQM, DirectAssessments, Rankings, Votes
from rest.thresholds import PerSourceTop

NOUNS = ["Hund", "Katze", "Haus", "Baum", "Kind", "Mann", "Frau", "Ball", "Tisch", "Berg", "Fluss", "Weg"]
VERBS = ["sieht", "findet", "malt", "sucht", "mag", "trägt", "zeigt", "kennt"]


def lines(n: int, seed: int = 0) -> tuple[list[str], list[str]]:
    """Different sentences and what could be their translations."""
    rng = random.Random(seed)
    sources: dict[str, str] = {}
    while len(sources) < n:
        words = [rng.choice(NOUNS), rng.choice(VERBS), rng.choice(NOUNS), f"und {rng.choice(NOUNS)}"]
        words += [rng.choice(NOUNS) for _ in range(rng.randrange(5))]
        sources[" ".join(words) + "."] = " ".join(word.lower()[::-1] for word in words) + "."
    return list(sources), list(sources.values())


def write(folder: Path, n: int = 300, name: str = "train", seed: int = 0) -> list[str]:
    """Flags that name a source and a target of n lines."""
    sources, targets = lines(n, seed)
    (folder / f"{name}.de").write_text("".join(f"{line}\n" for line in sources))
    (folder / f"{name}.en").write_text("".join(f"{line}\n" for line in targets))
    prefix = "" if name == "train" else f"{name}-"
    return [f"--{prefix}source", str(folder / f"{name}.de"), f"--{prefix}target", str(folder / f"{name}.en")]


def made(folder: Path, *arguments: str):
    """The experiment of an init in folder/mine, and its text."""
    init([str(folder / "mine"), *arguments])
    experiment = load_experiment(str(folder / "mine"))
    return experiment, experiment.corpus.load(experiment.cleaning)


def refused(folder: Path, *arguments: str) -> str:
    with pytest.raises(UserError) as error:
        init([str(folder / "mine"), *arguments])
    assert not (folder / "mine" / "experiment.py").exists()
    assert "\n" not in str(error.value)
    return str(error.value)


def test_text_without_dev_and_test(tmp_path, capsys):
    experiment, corpus = made(tmp_path, *write(tmp_path))
    assert [len(split) for split in (corpus.train, corpus.dev, corpus.test)] == [250, 25, 25]
    parts = [{*corpus.train.sources}, {*corpus.dev.sources}, {*corpus.test.sources}]
    assert len(set.union(*parts)) == 300
    assert experiment.reward == Consensus(Mixture((ChrF(), BLEU()))).reward
    assert experiment.choose == MetricOfGreedy(CorpusMean())
    assert experiment.model.width == SIZES["tiny"].width
    assert experiment.grow.samples_per_source == 2 * 4 and experiment.improve.rule.steps == 2
    # No pair of any split is too long for a row of the tokenizer that the run will train
    tokenizer = experiment.tokenizer.train((corpus.train.sources, corpus.train.references), experiment.seed)
    for split in (corpus.train, corpus.dev, corpus.test):
        longest = [1 + max(map(len, tokenizer.encode(side))) for side in (split.sources, split.references)]
        assert longest[0] <= experiment.batch.source_tokens and longest[1] <= experiment.batch.target_tokens
        assert longest[1] <= experiment.sampling.max_target_tokens
    text = (tmp_path / "mine" / "experiment.py").read_text()
    assert len(text.splitlines()) <= 72 and str(tmp_path / "train") not in text
    assert "train: 250 pairs" in capsys.readouterr().out


def test_the_seed_draws_other_lines(tmp_path):
    flags = write(tmp_path)
    drawn = []
    for seed in ("0", "0", "1"):
        init([str(tmp_path / f"made-{len(drawn)}"), *flags, "--seed", seed])
        drawn.append((tmp_path / f"made-{len(drawn)}" / "text" / "dev.source").read_text())
    assert drawn[0] == drawn[1] != drawn[2]


def test_given_files_stay_where_they_are_and_the_folder_may_move_with_them(tmp_path, monkeypatch):
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    flags = [*write(Path()), *write(Path(), 40, "dev", 1), *write(Path(), 30, "test", 2)]
    init(["mine", *flags])
    assert not (here / "mine" / "text").exists()
    monkeypatch.chdir(tmp_path)
    here.rename("there")
    experiment = load_experiment("there/mine")
    corpus = experiment.corpus.load(experiment.cleaning)
    assert len(corpus.dev) == 40 and len(corpus.test) == 30


@pytest.mark.parametrize("name", ["dev", "test"])
def test_one_split_is_given_and_the_other_drawn_apart_from_it(name, tmp_path, capsys):
    _, corpus = made(tmp_path, *write(tmp_path), *write(tmp_path, 40, name, 0))  # the first 40 lines of train
    given, drawn = (corpus.dev, corpus.test) if name == "dev" else (corpus.test, corpus.dev)
    assert list(given.sources) == lines(40)[0] and len(drawn) == 25
    assert corpus.counts["train"]["in_test"] == 40
    assert not {*drawn.sources} & {*given.sources, *corpus.train.sources}
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()[:3]] == ["train", "dev", "test"]


def test_repeated_uneven_empty_and_long_lines(tmp_path, capsys):
    write(tmp_path)
    for side in ("de", "en"):
        file = tmp_path / f"train.{side}"
        text = file.read_text().splitlines()
        text += text[:60] + ["" if side == "de" else "x", "wort " * 120] + ["a b" if side == "de" else "c " * 40] * 5
        file.write_text("".join(f"{line}\n" for line in text))
    flags = ["--source", str(tmp_path / "train.de"), "--target", str(tmp_path / "train.en")]
    experiment, corpus = made(tmp_path, *flags)
    assert experiment.cleaning.drop_duplicates and experiment.cleaning.max_length_ratio is not None
    dropped = {name: n for name, n in corpus.counts["train"].items() if n and name not in ("read", "kept")}
    assert dropped == {"empty": 1, "too_long": 1, "ratio": 5, "duplicate": 60}
    said = capsys.readouterr().out
    assert "60 pairs that repeat another pair" in said and "5 pairs that differ in length" in said


def test_a_long_line_of_dev_is_kept(tmp_path):
    flags = [*write(tmp_path), *write(tmp_path, 30, "dev", 1)]
    for side in ("de", "en"):
        with (tmp_path / f"dev.{side}").open("a") as file:
            file.write("Hund " * 130 + "\n")
    experiment, corpus = made(tmp_path, *flags)
    assert experiment.cleaning.max_words == 130 and len(corpus.dev) == 31
    assert experiment.batch.source_tokens > 130


def test_packed_chinese(tmp_path):
    write(tmp_path)
    rng = random.Random(0)
    for side in ("zh", "en"):
        with gzip.open(tmp_path / f"train.{side}.gz", "wt", encoding="utf-8") as file:
            for n in range(300):
                text = "".join(chr(0x4E00 + rng.randrange(1500)) for _ in range(12)) if side == "zh" else f"line {n}"
                file.write(text + "\n")
    flags = ["--source", str(tmp_path / "train.en.gz"), "--target", str(tmp_path / "train.zh.gz")]
    experiment, corpus = made(tmp_path, *flags)
    assert len(corpus.train) == 250
    assert experiment.reward == Consensus(Mixture((ChrF(), BLEU(SentenceBLEU("zh"))))).reward
    assert experiment.evaluation.bleu_tokenizer == "zh"
    assert experiment.tokenizer.byte_fallback and experiment.tokenizer.vocabulary_size > 1500
    assert experiment.tokenizer.train((corpus.train.sources, corpus.train.references), 0).vocabulary_size > 1500


@pytest.mark.parametrize(
    ("flags", "products"), [({"amx_bf16", "fpu"}, "bfloat16"), ({"avx512_bf16"}, "bfloat16"), ({"fpu"}, "float32")]
)
def test_cores_that_multiply_bfloat16_faster_are_asked_to(tmp_path, monkeypatch, flags, products):
    monkeypatch.setattr("rest.commands.init.cpu_flags", lambda: flags)
    experiment, _ = made(tmp_path, *write(tmp_path))
    assert experiment.model.products == products
    assert ("multiply bfloat16" in (tmp_path / "mine" / "experiment.py").read_text()) == (products == "bfloat16")
    assert not Machine(2, 1, has_bfloat16=True).rounds  # an accelerator multiplies, not the cores


LAPTOP = Machine(2, 0)


def choices(n: int, machine: Machine = LAPTOP, size: str | None = None) -> Choices:
    """Of n pairs of a few sentences: only their number matters."""
    sources, targets = lines(200)
    train, rest = (Pairs.of(sources[a:b], targets[a:b], Cleaning()) for a, b in ((0, 100), (100, 200)))
    train = train.take(np.arange(n) % 100)
    return Choices(train, rest, rest, machine, SIZES[size or size_for(train, machine)])


def test_more_text_gets_more(monkeypatch):
    monkeypatch.setattr("rest.commands.choices.SHOWN", 100)
    few, some, many = choices(500), choices(6000), choices(29_000)
    assert few.size == SIZES["tiny"] and some.size == many.size == SIZES["small"]
    for name in ("batch_tokens", "bc_steps", "improve_steps"):
        assert getattr(few, name) < getattr(some, name) <= getattr(many, name), name
    assert few.dropout > some.dropout > many.dropout
    sizes = [each.vocabulary.vocabulary_size for each in (few, some, many)]
    assert sizes == [512, 2048, 4096]


def test_an_accelerator_gets_larger_networks_and_batches_in_full_rows(monkeypatch):
    monkeypatch.setattr("rest.commands.choices.SHOWN", 100)
    cpu, gpus = choices(29_000), choices(29_000, Machine(8, 4))
    assert gpus.size == SIZES["base"] and gpus.batch_tokens > cpu.batch_tokens
    assert gpus.batch_tokens % (4 * gpus.row(1)) == 0
    paper = choices(29_000, LAPTOP, "paper")
    assert paper.grow_sources * paper.size.samples <= paper.size.drawn < 29_000 * paper.size.samples


def test_text_that_nobody_has_translated_is_drawn_for_and_learned_beside_all_pairs(tmp_path):
    more = tmp_path / "more.de"
    more.write_text("".join(f"{line}\n" for line in lines(900, 1)[0]) + "\n")
    experiment, _ = made(tmp_path, *write(tmp_path), "--text", str(more))
    assert experiment.grow.text is not None and experiment.grow.text.samefile(more)
    assert not experiment.grow.training_text and not experiment.grow.sources
    assert experiment.improve.human_pairs == "all" and experiment.improve.rule == PerSourceTop((1,))
    assert "of 900 lines that nobody has translated" in (tmp_path / "mine" / "experiment.py").read_text()


def test_text_that_nobody_has_translated_must_be_some(tmp_path):
    more = tmp_path / "more.de"
    more.write_text("\n \n")
    assert refused(tmp_path, *write(tmp_path), "--text", str(more)) == f"{more}: has no line with text"


RATINGS = {
    "table": (["src\tmt\tscore", "a\tb\t1", "a\tc\t2"], DirectAssessments),
    "votes": (
        [json.dumps({"source": "a", "hypothesis": y, "vote": v}) for y, v in (("b", True), ("c", False))],
        Votes,
    ),
    "rankings": ([json.dumps({"source": "a", "answers": ["b", "c"]})], Rankings),
    "mlqe": (["index\toriginal\ttranslation\tz_mean\tdoc", "0\ta\tb\t0.5\td", "1\ta\tc\t0.1\td"], MLQEPE),
    "mqm": (
        [
            "system\tdoc\tdoc_id\tseg_id\trater\tsource\ttarget\tcategory\tseverity",
            "s\td\t1\t1\tr\ta\tb\tNo-error\tNo-error",
            "t\td\t1\t1\tr\ta\tc\tAccuracy\tMajor",
        ],
        MQM,
    ),
}


@pytest.mark.parametrize("kind", RATINGS)
def test_ratings_of_every_kind_are_known_by_their_first_line(kind, tmp_path):
    content, reader = RATINGS[kind]
    (tmp_path / "ratings").write_text("".join(f"{line}\n" for line in content))
    experiment, _ = made(tmp_path, *write(tmp_path), "--ratings", str(tmp_path / "ratings"))
    [file] = experiment.reward.ratings
    assert experiment.reward.negatives == 0.1  # of honest ones alone it learns to like an empty text
    assert type(file) is reader and len(file.load()) == 2


REWARD = """
import numpy as np
from rest import Reward

def length(sources, hypotheses):
    return np.array([len(text) for text in hypotheses], float)

def share(sources, hypotheses, references):
    return np.array([float(a == b) for a, b in zip(hypotheses, references)])

class Ready:
    def __call__(self, sources, hypotheses):
        return length(sources, hypotheses)

scaled = Reward(length, scale=(0.0, 50.0))

def same(sources, hypotheses):
    return np.full(len(hypotheses), 3.0)
"""


@pytest.mark.parametrize("name", ["length", "share", "Ready", "scaled"])
def test_a_reward_of_the_users_gets_the_scale_that_it_has_on_dev(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine_too.py").write_text(REWARD)
    experiment, corpus = made(tmp_path, *write(Path()), "--reward", f"mine_too.py:{name}")
    dev = [len(text) for text in corpus.dev.references]
    expected = {"share": None, "scaled": (0.0, 50.0)}.get(name, (min(dev), max(dev)))
    assert experiment.reward.scale == expected
    scored = experiment.reward(["a"], ["b" * 25], ["b"])
    assert 0 <= scored.reward[0] <= 1


def test_a_published_start(tmp_path):
    folder = Path(__file__).parent.parent / "golden" / "huggingface" / "marian"
    experiment, _ = made(tmp_path, *write(tmp_path), "--start", str(folder))
    assert isinstance(experiment.model, HuggingFaceModel) and Path(experiment.model.folder).samefile(folder)
    assert experiment.bc.train.schedule.learning_rate == 1e-4
    init([str(tmp_path / "hub"), *write(tmp_path), "--start", "Helsinki-NLP/opus-mt-de-en"])
    assert load_experiment(str(tmp_path / "hub")).model.folder == "Helsinki-NLP/opus-mt-de-en"


def test_what_cannot_be(tmp_path):
    flags = write(tmp_path)
    (tmp_path / "short").write_text("a\n")
    assert "does not exist" in refused(tmp_path, "--source", "none", *flags[2:])
    assert "has 1 lines, but" in refused(tmp_path, "--source", str(tmp_path / "short"), *flags[2:])
    assert "only 1 pairs" in refused(tmp_path, "--source", str(tmp_path / "short"), "--target", str(tmp_path / "short"))
    assert refused(tmp_path, *flags, "--size", "big") == "--size big: no such size; there are tiny, small, base, paper"
    assert "belong together" in refused(tmp_path, *flags, "--dev-source", flags[1])
    assert "one reward" in refused(tmp_path, *flags, "--ratings", flags[1], "--reward", "a:b")
    assert "neither JSON nor columns" in refused(tmp_path, *flags, "--ratings", flags[1])
    assert "no such folder" in refused(tmp_path, *flags, "--start", "nowhere")
    assert "has no config.json" in refused(tmp_path, *flags, "--start", str(tmp_path))
    assert "no_such_module" in refused(tmp_path, *flags, "--reward", "no_such_module:f")
    (tmp_path / "mine_three.py").write_text(REWARD)
    assert "gives 3 to every" in refused(tmp_path, *flags, "--reward", f"{tmp_path / 'mine_three.py'}:same")
    (tmp_path / "gap").write_text("a\n\nb\n")
    gap = ["--dev-source", str(tmp_path / "gap"), "--dev-target", str(tmp_path / "gap")]
    assert "gap, line 2: is empty" in refused(tmp_path, *flags, *gap)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes").write_text("mine")
    assert "exists already" in refused(tmp_path, *flags)


def test_text_that_repeats_itself_cannot_be_split(tmp_path):
    for side in ("de", "en"):
        (tmp_path / f"train.{side}").write_text("the same again\n" * 200)
    said = refused(tmp_path, "--source", str(tmp_path / "train.de"), "--target", str(tmp_path / "train.en"))
    assert "only 0 of 200 pairs" in said


TINY = (  # the shapes of tests/tiny.py, whose programs its tests compile too
    "--model.width 32 --model.heads 2 --model.feed-forward 64 --model.encoder-layers 1 --model.decoder-layers 1 "
    "--model.dropout 0.1 --tokenizer.vocabulary-size 256 --batch.batch-tokens 512 --batch.source-tokens 64 "
    "--batch.target-tokens 64 --sampling.max-target-tokens 32 --machine.rows 96 --evaluation.beam.beams 2 "
    "--bc.train.max-steps 4 --bc.train.evaluate-every 2 --grow.sources 16 --grow.samples-per-source 4 "
    "--improve.train.max-steps 2 --improve.train.evaluate-every 2 --evaluation.kl-sources 8 --choose.sources 4"
)


def test_a_folder_is_run_without_a_file_name(tmp_path, capsys):
    """From two files to a report: the run is in DIR/run, with smaller numbers than a user has."""
    init([str(tmp_path / "mine"), *write(tmp_path)])
    main(["run", str(tmp_path / "mine"), *TINY.split()])
    rows = read_json(tmp_path / "mine" / "run" / "summary.json")
    assert {"bc", "rest"} <= {row["policy"] for row in rows}
    assert (tmp_path / "mine" / "run" / "report.html").exists()
