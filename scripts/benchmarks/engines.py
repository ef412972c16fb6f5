"""An exported policy, decoded by `rest`, by `transformers` and by CTranslate2: is the BLEU the same?

    bash scripts/benchmarks/setup_environment.sh
    .venv/bin/rest export runs/demo --out exported
    .venv/bin/python scripts/benchmarks/engines.py exported --source test.de --reference test.en

Each reads text and writes text with the tokenizer of the folder, greedily and with four beams. Beam searches differ in
when they stop and in what becomes of hypotheses that were cut, so not all of their translations are the same. Text may
be gzip; `--tokenizer none` is for text that is tokenized. With `taskset -c 0` the seconds are of one core.
"""

import argparse
import gzip
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
BATCH = 32


def read(path: Path, lines: slice) -> list[str]:
    text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return text.decode().removesuffix("\n").split("\n")[lines]


def by_rest(folder: Path, sources: list[str], beams: int, longest: int) -> list[str]:
    from rest import BeamSettings, HuggingFaceModel, Policy
    from rest.policy.beam import translate

    policy = Policy.start(HuggingFaceModel(folder))
    return translate(policy, sources, BeamSettings(beams=beams, length_penalty=1.0, max_target_tokens=longest))


def by_transformers(folder: Path, sources: list[str], beams: int, longest: int) -> list[str]:
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    order = sorted(range(len(sources)), key=lambda i: len(sources[i]))
    found = [""] * len(sources)
    for start in range(0, len(order), BATCH):
        rows = order[start : start + BATCH]
        inputs = tokenizer([sources[i] for i in rows], return_tensors="pt", padding=True)
        chosen = model.generate(**inputs, num_beams=beams, max_length=None, max_new_tokens=longest, length_penalty=1.0)
        for i, text in zip(rows, tokenizer.batch_decode(chosen, skip_special_tokens=True), strict=True):
            found[i] = text
    return found


def by_ctranslate2(folder: Path, sources: list[str], beams: int, longest: int) -> list[str]:
    import ctranslate2
    from ctranslate2.converters import TransformersConverter
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    with tempfile.TemporaryDirectory() as out:
        TransformersConverter(str(folder)).convert(out, force=True)
        translator = ctranslate2.Translator(out, device="cpu", intra_threads=1)
        answers = translator.translate_batch(
            [tokenizer.convert_ids_to_tokens(tokenizer(source)["input_ids"]) for source in sources],
            beam_size=beams,
            length_penalty=1.0,
            max_decoding_length=longest,
            min_decoding_length=0,
            max_batch_size=BATCH,
        )
    ids = [tokenizer.convert_tokens_to_ids(answer.hypotheses[0]) for answer in answers]
    return tokenizer.batch_decode(ids, skip_special_tokens=True)


ENGINES = {"rest": by_rest, "transformers": by_transformers, "ctranslate2": by_ctranslate2}


def answer(engine: str) -> None:
    """What one engine makes of a task on standard input, in the environment that has it."""
    task = json.load(sys.stdin)
    found = {}
    for beams in (1, 4):
        began = time.perf_counter()
        texts = ENGINES[engine](Path(task["folder"]), task["sources"], beams, task["longest"])
        found[str(beams)] = {"texts": texts, "seconds": time.perf_counter() - began}
    sys.__stdout__.write(json.dumps(found))


def compare(flags: argparse.Namespace) -> None:
    """Print a line for each engine and way of decoding."""
    import sacrebleu

    lines = slice(flags.skip, None)
    sources, references = read(flags.source, lines), read(flags.reference, lines)
    task = json.dumps({"folder": str(flags.folder.resolve()), "sources": sources, "longest": flags.longest})
    found = {}
    for engine in ENGINES:
        python = REPOSITORY / (".venv" if engine == "rest" else ".venv-benchmark") / "bin" / "python"
        done = subprocess.run([python, __file__, engine], input=task, stdout=subprocess.PIPE, text=True, check=True)
        found[engine] = json.loads(done.stdout)
    for beams in ("1", "4"):
        for engine, of_engine in found.items():
            texts = of_engine[beams]["texts"]
            bleu = sacrebleu.corpus_bleu(texts, [references], tokenize=flags.tokenizer).score
            same = sum(a == b for a, b in zip(texts, found["rest"][beams]["texts"], strict=True))
            print(
                f"{engine:13} beams {beams}  BLEU {bleu:.2f}  {same} of {len(texts)} as rest  "
                f"{of_engine[beams]['seconds']:.0f} s"
            )


if __name__ == "__main__":
    if sys.argv[1:] and sys.argv[1] in ENGINES:
        answer(sys.argv[1])
    else:
        parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
        parser.add_argument("folder", type=Path)
        parser.add_argument("--source", type=Path, required=True)
        parser.add_argument("--reference", type=Path, required=True)
        parser.add_argument("--skip", type=int, default=0, help="lines of both that are left out at the beginning")
        parser.add_argument("--longest", type=int, default=128, help="tokens of a translation")
        parser.add_argument("--tokenizer", default="13a", help="of sacreBLEU")
        compare(parser.parse_args())
