"""Makes tests/golden/huggingface: tiny random models of every family, as `transformers` saves them, with what they do.

    bash scripts/benchmarks/setup_environment.sh
    .venv-benchmark/bin/python scripts/make_golden_huggingface.py

For each: PyTorch's logits of three pairs, and what `generate` makes of 100 sources, greedily and with four beams.
Every parameter is random at first, also biases and the scales of norms, so that each of them matters. A little training
on a made-up task, words for words, makes outputs differ between sources and between languages, repeat little, and end
at different lengths, which is checked here.
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import (
    M2M100Config,
    M2M100ForConditionalGeneration,
    MarianConfig,
    MarianMTModel,
    MBartConfig,
    MBartForConditionalGeneration,
    MT5Config,
    MT5ForConditionalGeneration,
    T5Config,
    T5ForConditionalGeneration,
    UMT5Config,
    UMT5ForConditionalGeneration,
)
from transformers.models.t5.modeling_t5 import T5Attention

GOLDEN = Path(__file__).resolve().parent.parent / "tests" / "golden" / "huggingface"
VOCABULARY, SOURCES, LONGEST, STEPS = 70, 100, 24, 800
LANGUAGES = (60, 61, 62)  # of M2M100 and mBART; of MADLAD-400, in the source only
WORDS = range(4, 44)  # what sources are made of

BART = {
    "vocab_size": VOCABULARY,
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "max_position_embeddings": 64,
}
MARIAN = BART | {
    "activation_function": "swish",
    "scale_embedding": True,
    "pad_token_id": VOCABULARY - 1,
    "decoder_start_token_id": VOCABULARY - 1,
    "eos_token_id": 0,
    "forced_eos_token_id": 0,
}
TOLD = BART | {"pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2, "forced_eos_token_id": None}
T5 = {
    "vocab_size": VOCABULARY,
    "d_model": 16,
    "d_kv": 6,
    "num_heads": 3,
    "d_ff": 24,
    "num_layers": 2,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 12,
    "decoder_start_token_id": 0,
}
MADLAD = T5 | {"pad_token_id": 1, "eos_token_id": 2}
GATED = {"feed_forward_proj": "gated-gelu"}


@dataclass(frozen=True)
class Golden:
    """A model, and how it is told languages."""

    model: torch.nn.Module
    own_output: bool = False  # T5 and its kin: published with an output layer of their own
    forced: bool = False  # source and target begin with languages
    prefixed: bool = False  # the source begins with that of the target

    sinusoids: bool = False  # in its state
    zero_start: bool = False  # as published: the decoder starts from a zero embedding

    @property
    def languages(self) -> tuple[int, ...]:
        return LANGUAGES[:2] if self.forced or self.prefixed else LANGUAGES[:1]

    @property
    def ids(self) -> tuple[int, int, int]:
        """Of padding, the end, and the start of the decoder."""
        config = self.model.config
        return config.pad_token_id, config.eos_token_id, config.decoder_start_token_id


def models() -> dict[str, Golden]:
    """By folder."""
    two = MARIAN | {"vocab_size": VOCABULARY + 5, "decoder_vocab_size": VOCABULARY}
    return {
        "marian": Golden(MarianMTModel(MarianConfig(**MARIAN)), sinusoids=True, zero_start=True),
        "marian_gelu": Golden(
            MarianMTModel(MarianConfig(**MARIAN | {"activation_function": "gelu", "scale_embedding": False})),
            sinusoids=True,
        ),
        "marian_two": Golden(
            MarianMTModel(MarianConfig(**two, share_encoder_decoder_embeddings=False)), sinusoids=True, zero_start=True
        ),
        "t5": Golden(T5ForConditionalGeneration(T5Config(**T5))),
        "t5_1_1": Golden(
            T5ForConditionalGeneration(T5Config(**T5 | GATED, num_decoder_layers=1, tie_word_embeddings=False)), True
        ),
        "mt5": Golden(MT5ForConditionalGeneration(MT5Config(**T5 | GATED)), True),
        "umt5": Golden(UMT5ForConditionalGeneration(UMT5Config(**T5 | GATED)), True),
        "madlad": Golden(
            T5ForConditionalGeneration(T5Config(**MADLAD | GATED, tie_word_embeddings=False)), True, prefixed=True
        ),
        "m2m100": Golden(M2M100ForConditionalGeneration(M2M100Config(**TOLD)), forced=True),
        "mbart": Golden(MBartForConditionalGeneration(MBartConfig(**TOLD, scale_embedding=True)), forced=True),
    }


def randomise(golden: Golden) -> None:
    model = golden.model
    if golden.own_output:
        model.lm_head.weight = torch.nn.Parameter(torch.empty(VOCABULARY, 16))
    for key, tensor in model.state_dict(keep_vars=True).items():
        if golden.sinusoids and "embed_positions" in key:
            continue
        scale = 1.0 if "norm" in key and "weight" in key else 0.0
        tensor.data = scale + 0.25 * torch.randn(tensor.shape)


def train(golden: Golden, random: np.random.Generator) -> None:
    """Each word becomes another one, of the language; where there are several, its own word comes first."""
    model, (pad, end, start) = golden.model, golden.ids
    languages = golden.languages
    dictionaries = {language: random.permutation(WORDS) for language in languages}
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    steps = STEPS * len(languages)
    if golden.sinusoids:  # as OPUS-MT has it
        model.final_logits_bias.data[0, pad] = 0
    rates = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (steps - step) / steps * 2))
    for step in range(steps):
        language = languages[step % len(languages)]
        sources = some_sources(random, 64)
        first = [WORDS[-1] + 1 + languages.index(language)] * (len(languages) > 1)
        targets = [[*first, *dictionaries[language][source - WORDS[0]], end] for source in sources]
        before = [start, language] if golden.forced else [start]
        ids, mask = inputs(golden, sources, language)
        labels = padded([[-100] * (len(before) - 1) + target for target in targets], -100)
        given = padded([before + target[:-1] for target in targets], pad)
        logits = model(input_ids=ids, attention_mask=mask, decoder_input_ids=given).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rates.step()
        if golden.zero_start:
            model.get_decoder().embed_tokens.weight.data[pad] = 0
    model.generation_config.forced_eos_token_id = None


def some_sources(random: np.random.Generator, count: int) -> list[np.ndarray]:
    return [random.choice(WORDS, n) for n in random.integers(2, 11, count)]


def padded(rows: Sequence[Sequence[int]], filler: int) -> torch.Tensor:
    width = max(map(len, rows))
    return torch.tensor([[*row, *[filler] * (width - len(row))] for row in rows])


def inputs(golden: Golden, sources: Sequence[np.ndarray], language: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Padded ids and their mask."""
    pad, end, _ = golden.ids
    before = [LANGUAGES[-1]] if golden.forced else [language] if golden.prefixed else []
    rows = [[*before, *source, end] for source in sources]
    return padded(rows, pad), padded([[1] * len(row) for row in rows], 0)


def generated(
    golden: Golden, sources: Sequence[np.ndarray], language: int, beams: int
) -> tuple[np.ndarray, np.ndarray]:
    """What is chosen after the prompt, [sources, LONGEST], and by how much it scores more than the second of the beams.

    Padded with -1 after the end; padding is never produced.
    """
    pad, end, start = golden.ids
    ids, mask = inputs(golden, sources, language)
    prompt = [start, language] if golden.forced else [start]
    out = golden.model.generate(
        input_ids=ids,
        attention_mask=mask,
        decoder_input_ids=torch.tensor([prompt] * len(sources)),
        generation_config=transformers.GenerationConfig(
            max_new_tokens=LONGEST,
            num_beams=beams,
            num_return_sequences=min(beams, 2),
            output_scores=True,
            return_dict_in_generate=True,
            do_sample=False,
            early_stopping="never" if beams > 1 else False,
            suppress_tokens=[pad],
            renormalize_logits=True,
            pad_token_id=pad,
            eos_token_id=end,
            decoder_start_token_id=start,
        ),
    )
    lead = out.sequences_scores.reshape(-1, 2).diff()[:, 0].abs().numpy() if beams > 1 else np.ones(len(sources))
    chosen = out.sequences.numpy()[:: min(beams, 2), len(prompt) :]
    found = np.full((len(sources), LONGEST), -1)
    for row, tokens in zip(found, chosen, strict=True):
        length = int(np.argmax(tokens == end)) + 1 if end in tokens else LONGEST
        row[:length] = tokens[:length]
    return found, lead


def check(name: str, greedy: np.ndarray, end: int) -> None:
    """Outputs [languages, sources, LONGEST] that tell the models, the sources and the languages apart."""
    lengths, rows = (greedy >= 0).sum(-1), greedy.reshape(-1, LONGEST)
    found = {
        "ended": np.mean((greedy == end).any(-1)),
        "different": np.mean([len({tuple(row) for row in of_language}) / SOURCES for of_language in greedy]),
        "distinct tokens": np.mean([len(set(row[row >= 0])) / (row >= 0).sum() for row in rows]),
        "deviation of lengths": lengths.std(),
        "another language differs": (greedy[0] != greedy[-1]).any(-1).mean() if len(greedy) > 1 else 1.0,
    }
    print(name, {word: round(float(value), 2) for word, value in found.items()})
    least = dict(zip(found, (0.9, 0.5, 0.5, 1.0, 0.5), strict=True))
    assert all(found[word] >= least[word] for word in found), name


def logits(golden: Golden, random: np.random.Generator) -> dict[str, np.ndarray]:
    """Of three pairs of random ids, teacher-forced, not trained on."""
    pad, _, start = golden.ids
    lengths = [(7, 9), (4, 6), (1, 2)]
    source, target = (
        padded([random.integers(3, VOCABULARY - 1, n) for n in ns], pad) for ns in zip(*lengths, strict=True)
    )
    given = torch.cat([torch.full((3, 1), start), target[:, :-1]], 1)
    with torch.no_grad():
        found = golden.model(
            input_ids=source,
            attention_mask=padded([[1] * m for m, _ in lengths], 0),
            decoder_input_ids=given,
        ).logits.numpy()
    return {"source": source.numpy(), "target": target.numpy(), "lengths": np.array(lengths), "logits": found}


def save(name: str, golden: Golden, arrays: dict[str, np.ndarray]) -> None:
    """As published: what only newer transformers write is left out, and MADLAD-400 has its embedding once."""
    folder = GOLDEN / name
    shutil.rmtree(folder, ignore_errors=True)
    golden.model.save_pretrained(folder)
    if name in ("t5_1_1", "madlad"):
        config = json.loads((folder / "config.json").read_text())
        del config["scale_decoder_outputs"]
        (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}, indent=1) + "\n")
    if name == "madlad":
        tensors = load_file(folder / "model.safetensors")
        tensors["decoder.embed_tokens.weight"] = tensors.pop("shared.weight")
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    small = {key: a.astype(np.float32 if a.dtype.kind == "f" else np.int16) for key, a in arrays.items()}
    np.savez_compressed(folder / "golden.npz", **small)


def main() -> None:
    transformers.logging.disable_progress_bar()
    for name, golden in models().items():
        torch.manual_seed(0)
        random = np.random.default_rng(0)
        randomise(golden)
        train(golden, random)
        golden.model.eval()
        sources = some_sources(random, 2 * SOURCES)
        _, lead = generated(golden, sources, golden.languages[0], 4)
        sources = [sources[i] for i in np.flatnonzero(lead > 1e-3)[:SOURCES]]  # others are matters of rounding
        greedy = np.stack([generated(golden, sources, language, 1)[0] for language in golden.languages])
        check(name, greedy, golden.ids[1])
        beams, _ = generated(golden, sources, golden.languages[0], 4)
        translations = {"sources": padded(sources, -1).numpy(), "greedy": greedy, "beams": beams}
        save(name, golden, logits(golden, random) | translations)
    distances = torch.arange(-300, 301)
    buckets = {
        f"{'causal' if causal else 'both'}_{n}_{far}": T5Attention._relative_position_bucket(
            distances, bidirectional=not causal, num_buckets=n, max_distance=far
        )
        for causal in (True, False)
        for n, far in ((8, 12), (32, 128), (64, 200))
    }
    np.savez_compressed(GOLDEN / "buckets.npz", distances=distances, **buckets)
    note = {
        "command": ".venv-benchmark/bin/python scripts/make_golden_huggingface.py",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "numpy": np.__version__,
    }
    (GOLDEN / "made_by.json").write_text(json.dumps(note, indent=1) + "\n")


if __name__ == "__main__":
    main()
