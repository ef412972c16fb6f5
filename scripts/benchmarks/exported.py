"""What `rest export` writes of every family, opened by `transformers` and by CTranslate2: the same translations?

    bash scripts/benchmarks/setup_environment.sh
    .venv/bin/python scripts/benchmarks/exported.py

The golden models of tests/golden/huggingface, with the made-up tokenizers of their tests, are read and written by us;
both libraries then translate their 100 sources greedily, which is compared with what PyTorch made of the goldens.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

REPOSITORY = Path(__file__).resolve().parents[2]
GOLDEN, TESTS = REPOSITORY / "tests" / "golden" / "huggingface", REPOSITORY / "tests" / "model" / "families"
LONGEST = 24


def export(out: Path) -> None:
    """Each golden model by its name."""
    sys.path.insert(0, str(TESTS))
    import conftest as made  # how the tests make tokenizers

    from rest.model.families.huggingface import HuggingFaceModel, write
    from rest.policy.policy import Policy

    for name, folder in made.with_tokenizers(out / "read").items():
        known = made.LANGUAGES.get(name)
        source = known[-1] if known and name != "madlad" else None
        model = HuggingFaceModel(folder, source_language=source, target_language=known[0] if known else None)
        policy = Policy.start(model)
        write(out / "written" / name, policy.network, policy.tokenizer)
        prompt = {"source": list(policy.tokenizer.prompt.source), "forced": list(policy.tokenizer.prompt.forced)}
        (out / f"{name}.json").write_text(json.dumps(prompt))


def rows(name: str, prompt: dict, end: int) -> tuple[list[list[int]], list[list[int]]]:
    """Sources as they are fed, and the translations that are wanted, without their ends."""
    with np.load(GOLDEN / name / "golden.npz") as golden:
        sources = [[*prompt["source"], *(int(i) for i in row if i >= 0), end] for row in golden["sources"]]
        return sources, [[int(i) for i in row if i >= 0 and i != end] for row in golden["greedy"][0]]


def by_transformers(folder: Path, sources: list[list[int]], prompt: dict) -> list[list[int]]:
    """With the settings of generation that the folder has, its forced language among them."""
    import torch
    from transformers import AutoModelForSeq2SeqLM

    model = AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    pad, end = model.config.pad_token_id, model.config.eos_token_id
    longest, found = LONGEST + len(prompt["forced"]) + 1, []  # the last may be forced to be an end
    for source in sources:
        out = model.generate(torch.tensor([source]), max_length=None, max_new_tokens=longest)
        chosen = out[0].tolist()[1:]
        assert chosen[: len(prompt["forced"])] == prompt["forced"]
        found.append([i for i in chosen[len(prompt["forced"]) :] if i not in (pad, end)][:LONGEST])
    return found


def by_ctranslate2(folder: Path, sources: list[list[int]], prompt: dict) -> list[list[int]]:
    """Tokens in and out are pieces; its files know a vocabulary for each side."""
    import ctranslate2
    from ctranslate2.converters import TransformersConverter

    with tempfile.TemporaryDirectory() as out:
        TransformersConverter(str(folder)).convert(out, force=True)
        names = [json.loads((Path(out) / file).read_text()) for file in vocabularies(Path(out))]
        translator = ctranslate2.Translator(out, device="cpu", intra_threads=1)
        answers = translator.translate_batch(
            [[names[0][i] for i in source] for source in sources],
            target_prefix=[[names[-1][i] for i in prompt["forced"]]] * len(sources) if prompt["forced"] else None,
            beam_size=1,
            max_decoding_length=LONGEST,
            min_decoding_length=0,
        )
    ids = {piece: i for i, piece in enumerate(names[-1])}
    return [[ids[piece] for piece in answer.hypotheses[0][len(prompt["forced"]) :]] for answer in answers]


def vocabularies(folder: Path) -> list[str]:
    shared = (folder / "shared_vocabulary.json").is_file()
    return ["shared_vocabulary.json"] if shared else ["source_vocabulary.json", "target_vocabulary.json"]


def check(out: Path) -> None:
    """Print how many of the translations are the same."""
    for folder in sorted((out / "written").iterdir()):
        prompt = json.loads((out / f"{folder.name}.json").read_text())
        end = json.loads((folder / "config.json").read_text())["eos_token_id"]
        sources, wanted = rows(folder.name, prompt, end)
        for translate in (by_transformers, by_ctranslate2):
            try:
                found = translate(folder, sources, prompt)
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
