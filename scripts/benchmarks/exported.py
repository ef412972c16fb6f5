"""What `rest export` writes of every family, opened by `transformers` and by CTranslate2: the same translations?

    bash scripts/benchmarks/setup_environment.sh
    .venv/bin/python scripts/benchmarks/exported.py

The golden models of tests/golden/huggingface, with the made-up tokenizers of their tests, are read and written by us;
both libraries then translate their 100 sources greedily, which is compared with what PyTorch made of the goldens.
Beside them `own` and `own_first`, networks of ours with norms last and first, on 100 sentences: compared with ours, and
the tokenizer that `transformers` opens must make the same ids of the text.
"""

import json
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

REPOSITORY = Path(__file__).resolve().parents[2]
GOLDEN, TESTS = REPOSITORY / "tests" / "golden" / "huggingface", REPOSITORY / "tests" / "model" / "families"
LONGEST = 24


def export(out: Path) -> None:
    """Each model by its name, with ids of sources as they are fed and of the translations that are wanted."""
    sys.path.insert(0, str(TESTS))
    import conftest as made  # how the tests make tokenizers

    from rest.folder import write_json
    from rest.model.families.huggingface import HuggingFaceModel, write
    from rest.policy.policy import Policy

    for name, folder in made.with_tokenizers(out / "read").items():
        known = made.LANGUAGES.get(name)
        source = known[-1] if known and name != "madlad" else None
        model = HuggingFaceModel(folder, source_language=source, target_language=known[0] if known else None)
        policy = Policy.start(model)
        write(out / "written" / name, policy.network, policy.tokenizer)
        prompt, end = policy.tokenizer.prompt, policy.tokenizer.eos_id
        with np.load(GOLDEN / name / "golden.npz") as golden:
            sources = [[*prompt.source, *(int(i) for i in row if i >= 0), end] for row in golden["sources"]]
            wanted = [[int(i) for i in row if i >= 0 and i != end] for row in golden["greedy"][0]]
        write_json(out / f"{name}.json", {"sources": sources, "forced": list(prompt.forced), "wanted": wanted})
    export_own(out)


def export_own(out: Path) -> None:
    """Untrained networks of ours, made to listen, with pieces of a made-up language."""
    import jax

    from rest import (
        BeamSettings,
        Cleaning,
        HuggingFaceModel,
        SentencePieceSettings,
        SyntheticCorpus,
        SyntheticLanguage,
        TransformerSettings,
    )
    from rest.folder import write_json
    from rest.model.families.huggingface import write
    from rest.policy.beam import n_best
    from rest.policy.policy import Policy

    text = SyntheticCorpus(SyntheticLanguage(train=300, dev=24, test=100)).load(Cleaning())
    sizes = TransformerSettings(width=64, heads=4, feed_forward=128, encoder_layers=2, decoder_layers=2)
    first = replace(sizes, norm_first=True, positions="fairseq", output_bias=False, zero_start=False)
    for name, settings, start in (("own", sizes, "padding"), ("own_first", first, "eos")):
        pieces = SentencePieceSettings(256, start=start).train([text.train.sources, text.train.references], 0)
        policy = Policy.new(settings, pieces, 1)
        louder = jax.tree.map(lambda leaf: leaf * (3 if leaf.ndim > 1 else 1), policy.network.parameters)
        policy = policy.with_network(policy.network.with_parameters(louder))
        write(out / "written" / name, policy.network, policy.tokenizer)
        found = n_best(policy, text.test.sources, BeamSettings(beams=1, max_target_tokens=LONGEST)).tokens
        theirs = HuggingFaceModel(out / "written" / name).read().tokenizer
        ids = {piece: i for i, piece in enumerate(theirs.pieces)}
        rows = [[ids[pieces.pieces[i]] for i in best if i != pieces.eos_id] for best, *_ in found]
        sources = [[*row, theirs.eos_id] for row in theirs.encode(text.test.sources)]
        task = {"sources": sources, "forced": [], "wanted": rows, "text": text.test.sources}
        write_json(out / f"{name}.json", task)


def by_transformers(folder: Path, task: dict) -> list[list[int]]:
    """With the settings of generation that the folder has, its forced language among them."""
    import torch
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    if "text" in task:
        assert AutoTokenizer.from_pretrained(folder)(task["text"])["input_ids"] == task["sources"], "other ids"
    model = AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    pad, end, forced = model.config.pad_token_id, model.config.eos_token_id, task["forced"]
    longest, found = LONGEST + len(forced) + 1, []  # the last may be forced to be an end
    for source in task["sources"]:
        out = model.generate(torch.tensor([source]), max_length=None, max_new_tokens=longest)
        chosen = out[0].tolist()[1:]
        assert chosen[: len(forced)] == forced
        found.append([i for i in chosen[len(forced) :] if i not in (pad, end)][:LONGEST])
    return found


def by_ctranslate2(folder: Path, task: dict) -> list[list[int]]:
    """Tokens in and out are pieces; its files know a vocabulary for each side."""
    import ctranslate2
    from ctranslate2.converters import TransformersConverter

    sources, forced = task["sources"], task["forced"]
    with tempfile.TemporaryDirectory() as out:
        TransformersConverter(str(folder)).convert(out, force=True)
        names = [json.loads((Path(out) / file).read_text()) for file in vocabularies(Path(out))]
        translator = ctranslate2.Translator(out, device="cpu", intra_threads=1)
        answers = translator.translate_batch(
            [[names[0][i] for i in source] for source in sources],
            target_prefix=[[names[-1][i] for i in forced]] * len(sources) if forced else None,
            beam_size=1,
            max_decoding_length=LONGEST,
            min_decoding_length=0,
        )
    ids = {piece: i for i, piece in enumerate(names[-1])}
    return [[ids[piece] for piece in answer.hypotheses[0][len(forced) :]] for answer in answers]


def vocabularies(folder: Path) -> list[str]:
    shared = (folder / "shared_vocabulary.json").is_file()
    return ["shared_vocabulary.json"] if shared else ["source_vocabulary.json", "target_vocabulary.json"]


def check(out: Path) -> None:
    """Print how many of the translations are the same."""
    for folder in sorted((out / "written").iterdir()):
        task = json.loads((out / f"{folder.name}.json").read_text())
        wanted = task["wanted"]
        for translate in (by_transformers, by_ctranslate2):
            try:
                found = translate(folder, task)
                said = f"{sum(a == b for a, b in zip(found, wanted, strict=True))} of {len(wanted)} the same"
            except Exception as error:  # a converter refuses what it does not know in its own ways
                said = f"cannot: {type(error).__name__}: {str(error).splitlines()[0]}"
            print(f"{folder.name:12} {translate.__name__.removeprefix('by_'):13} {said}", flush=True)


if __name__ == "__main__":
    if sys.argv[1:]:
        check(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as made_here:
            export(Path(made_here))
            subprocess.run([REPOSITORY / ".venv-benchmark" / "bin" / "python", __file__, made_here], check=True)
