"""Makes tests/golden/rewards: tiny random checkpoints of published rewards and encoders, and PyTorch's numbers.

    bash scripts/benchmarks/setup_environment.sh
    .venv-benchmark/bin/python scripts/make_golden_rewards.py

The forward passes of MetricX (MT5ForRegression) and of CometKiwi (UnifiedMetric) are written out here from the
published code, on the encoders and decoders of `transformers`. Every parameter is random, also biases and the scales of
norms, so that each of them matters to the scores.
"""

import io
import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
import sentencepiece
import torch
import transformers
import yaml
from convert_cometkiwi import convert
from torch import nn
from transformers import (
    BertConfig,
    BertForPreTraining,
    BertTokenizerFast,
    MT5Config,
    MT5ForConditionalGeneration,
    XLMRobertaConfig,
    XLMRobertaForMaskedLM,
    XLMRobertaModel,
    XLMRobertaXLConfig,
    XLMRobertaXLModel,
)

GOLDEN = Path(__file__).resolve().parent.parent / "tests" / "golden" / "rewards"
SEGMENTS = [  # source, hypothesis, reference
    ("der hund schläft", "the dog sleeps", "the dog is asleep"),
    ("die katze sitzt auf der matte", "the cat sat on the mat", "the cat sits on the mat"),
    ("ja", "", "yes"),
    ("gute nacht  und bis morgen", "good night, see you \u221e", "good night and see you tomorrow"),
    ("ein sehr langer satz " * 90, "a very long line " * 100, "a very long sentence " * 80),
    ("nein", "no, not at all " * 5, "no"),
]
PAIRS = [  # of a BERT whose words these are
    ("the dog sleeps", "der hund schläft"),
    ("a cat", "eine katze sitzt auf der matte"),
    ("good night and see you", "bis morgen"),
    ("no", "nein"),
]
XLMR = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "type_vocab_size": 1,
    "layer_norm_eps": 1e-5,
}
HPARAMS = {
    "class_identifier": "unified_metric",
    "encoder_model": "XLM-RoBERTa",
    "pretrained_model": "tiny",
    "sent_layer": "mix",
    "layer_transformation": "sparsemax_patch",
    "layer_norm": False,
    "hidden_sizes": [12, 8],
    "activations": "Tanh",
    "final_activation": None,
    "input_segments": ["mt", "src"],
    "word_level_training": False,
    "dropout": 0.1,
}


def randomise(model: nn.Module) -> None:
    for name, tensor in model.named_parameters():
        scale = 1.0 if "norm" in name.lower() and name.endswith("weight") else 0.0
        tensor.data = scale + 0.4 * torch.randn(tensor.shape)


def train_pieces(path: Path, ids: dict[str, int]) -> sentencepiece.SentencePieceProcessor:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["candidate: reference: source:", *(text[:60] for row in SEGMENTS for text in row)]),
        model_writer=model,
        vocab_size=60,
        hard_vocab_limit=False,
        normalization_rule_name="identity",  # the usual rules take 240 kB
        num_threads=1,
        minloglevel=2,
        **ids,
    )
    path.write_bytes(model.getvalue())
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def padded(rows: list[list[int]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and attention mask."""
    width = max(map(len, rows)) + 3
    ids = torch.tensor([row + [pad] * (width - len(row)) for row in rows])
    return ids, (torch.arange(width)[None] < torch.tensor([len(row) for row in rows])[:, None]).long()


class MT5ForRegression(MT5ForConditionalGeneration):
    """MetricX, as in metricx23/models.py and metricx24/models.py but for the id of the score."""

    def output(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask)[0]
        start = torch.zeros((input_ids.size(0), 1), dtype=torch.long)
        output = self.decoder(
            input_ids=start, encoder_hidden_states=hidden, encoder_attention_mask=attention_mask, use_cache=False
        )[0]
        return output * (self.model_dim**-0.5) if self.config.tie_word_embeddings else output

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, score_id: int) -> torch.Tensor:
        return torch.clamp(self.lm_head(self.output(input_ids, attention_mask))[:, 0, score_id], 0, 25)


def metricx() -> None:
    folder = GOLDEN / "metricx"
    folder.mkdir()
    pieces = train_pieces(folder / "spiece.model", {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1})
    settings = {"tokenizer_class": "T5Tokenizer", "extra_ids": 0, "eos_token": "</s>", "pad_token": "<pad>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"unk_token": "<unk>"}) + "\n")
    config = MT5Config(
        vocab_size=pieces.vocab_size() + 12,  # as in mT5, more rows than pieces
        d_model=16,
        d_kv=6,
        num_heads=3,
        d_ff=24,
        num_layers=2,
        relative_attention_num_buckets=8,
        relative_attention_max_distance=12,
        decoder_start_token_id=0,
    )
    model = MT5ForRegression(config).eval()
    model.config.tie_word_embeddings = False  # as published; newer transformers would not be told so
    model.lm_head.weight = nn.Parameter(torch.empty(config.vocab_size, config.d_model))
    randomise(model)
    forms = {
        "METRICX_23": (lambda s, h, r: "candidate: " + h + " reference: " + r, 1024),
        "METRICX_23_QE": (lambda s, h, r: "candidate: " + h + " source: " + s, 1024),
        "METRICX_24": (lambda s, h, r: "source: " + s + " candidate: " + h + " reference: " + r, 1536),
        "METRICX_24_QE": (lambda s, h, r: "source: " + s + " candidate: " + h, 1536),
    }
    # as predict.py: cut with the end of sequence counted, then the end of sequence is taken off
    inputs = {
        name: [pieces.encode(make_input(*row))[: longest - 1] for row in SEGMENTS]
        for name, (make_input, longest) in forms.items()
    }
    with torch.no_grad():
        # the score of 12 lies within the range, that of 13 beyond both its ends
        mean = torch.cat([model.output(*padded(rows, 0))[:, 0] for rows in inputs.values()]).mean(0)
        for i, factor in ((12, 3), (13, 30)):
            row = model.lm_head.weight.data[i] * factor
            model.lm_head.weight.data[i] = row + mean * (10 - row @ mean) / (mean @ mean)
        found = {
            name: {
                "rows": rows[:4],
                "lengths": [len(row) for row in rows],
                "scores": {i: model(*padded(rows, 0), i).tolist() for i in (12, 13)},
            }
            for name, rows in inputs.items()
        }
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink()
    (folder / "scores.json").write_text(json.dumps(found) + "\n")


def sparsemax(z: torch.Tensor, dim: int) -> torch.Tensor:
    """By bisection of the threshold, in float64."""
    z = z.double()
    low, high = z.max() - 1, z.max()
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if torch.clamp(z - middle, min=0).sum() > 1 else (low, middle)
    return torch.clamp(z - low, min=0).float()


class LayerwiseAttention(nn.Module):
    """As in comet/modules/layerwise_attention.py, in evaluation."""

    def __init__(self, layers: int, transformation: str, layer_norm: bool) -> None:
        super().__init__()
        self.layer_norm = layer_norm
        self.transform = sparsemax if transformation == "sparsemax" else torch.softmax
        self.scalar_parameters = nn.ParameterList([nn.Parameter(torch.zeros(1)) for _ in range(layers)])
        self.gamma = nn.Parameter(torch.ones(1))
        self.register_buffer("dropout_mask", torch.zeros(layers))
        self.register_buffer("dropout_fill", torch.full((layers,), -1e20))

    def forward(self, tensors: list[torch.Tensor], mask: torch.Tensor) -> torch.Tensor:
        def normalise(x: torch.Tensor) -> torch.Tensor:
            wide, batch = mask.float().unsqueeze(-1), x.size(0)
            count = mask.float().sum(1) * x.size(2)
            mean = ((x * wide).reshape(batch, -1).sum(1) / count).view(batch, 1, 1)
            variance = (((x * wide - mean) * wide) ** 2).reshape(batch, -1).sum(1) / count
            return (x - mean) / torch.sqrt(variance + 1e-12).view(batch, 1, 1)

        weights = self.transform(torch.cat(list(self.scalar_parameters)), dim=0)
        mixed = [w * (normalise(x) if self.layer_norm else x) for w, x in zip(weights, tensors, strict=True)]
        return self.gamma * sum(mixed)


class UnifiedMetric(nn.Module):
    """CometKiwi, as in comet/models/multitask/unified_metric.py, without its encoder's tokenizer."""

    def __init__(self, encoder: nn.Module, hparams: dict) -> None:
        super().__init__()
        self.encoder = nn.Module()
        self.encoder.model = encoder
        layers = encoder.config.num_hidden_layers + 1
        self.layerwise_attention = LayerwiseAttention(layers, hparams["layer_transformation"], hparams["layer_norm"])
        width, modules = encoder.config.hidden_size, []
        for size in hparams["hidden_sizes"]:
            modules += [nn.Linear(width, size), getattr(nn, hparams["activations"])(), nn.Dropout(0.1)]
            width = size
        modules.append(nn.Linear(width, 1))
        if hparams["final_activation"] is not None:
            modules.append(getattr(nn, hparams["final_activation"])())
        self.estimator = nn.Module()
        self.estimator.ff = nn.Sequential(*modules)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        layers = self.encoder.model(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
        return self.estimator.ff(self.layerwise_attention(list(layers), mask)[:, 0, :]).view(-1)


def joined(pieces: sentencepiece.SentencePieceProcessor, sides: list[str]) -> list[int]:
    """As Encoder.prepare_sample and Encoder.concat_sequences join hypothesis and source.

    XLM-R's ids are <s>, <pad>, </s>, <unk>, then SentencePiece's own from its fourth on, moved by one.
    """
    first, second = ([i + 1 if i else 3 for i in pieces.encode(side)][:508] for side in sides)
    return [0, *first, 2, 2, *second, 2][:512]


def cometkiwi(name: str, encoder: nn.Module, config: object, hparams: dict, segments: list, scratch: Path) -> None:
    torch.manual_seed(1)
    source, checkpoint = scratch / f"{name}-encoder", scratch / name
    source.mkdir()
    (checkpoint / "checkpoints").mkdir(parents=True)
    pieces = train_pieces(source / "sentencepiece.bpe.model", {})
    config.vocab_size = pieces.vocab_size() + 2  # <pad> before the pieces, <mask> behind
    config.save_pretrained(source)
    model = UnifiedMetric(encoder(config, add_pooling_layer=False), hparams).eval()
    randomise(model)
    for part in (
        *model.layerwise_attention.scalar_parameters,
        model.estimator.ff[3 * len(hparams["hidden_sizes"])].weight,
    ):
        part.data *= 8  # so that scores differ, and that sparsemax leaves layers out
    rows = [joined(pieces, [hypothesis, text]) for text, hypothesis, _ in segments]
    with torch.no_grad():
        scores = model(*padded(rows, 1)).tolist()
    (checkpoint / "hparams.yaml").write_text(yaml.safe_dump(hparams))
    torch.save({"state_dict": model.state_dict()}, checkpoint / "checkpoints" / "model.ckpt")
    convert(checkpoint, source, GOLDEN / name)
    found = {"scores": scores, "rows": rows[:4], "lengths": [len(row) for row in rows]}
    (GOLDEN / name / "scores.json").write_text(json.dumps(found) + "\n")


def xlmr(name: str, model: nn.Module) -> None:
    """A plain encoder, and the hidden states of all its layers."""
    randomise(model)
    model.eval()
    rows = [np.random.default_rng(n).integers(4, 60, n).tolist() for n in (9, 5, 1, 12)]
    ids, mask = padded(rows, 1)
    with torch.no_grad():
        states = model(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
    folder = GOLDEN / name
    model.save_pretrained(folder)
    train_pieces(folder / "sentencepiece.bpe.model", {})
    np.savez_compressed(folder / "states.npz", ids=ids, mask=mask.bool(), states=torch.stack(states).numpy())


def bert(name: str) -> None:
    """A BERT with the heads of pretraining: hidden states of pairs of texts, and what the pooler makes of them."""
    folder = GOLDEN / name
    folder.mkdir()
    words = sorted({word for pair in PAIRS for text in pair for word in text.split()})
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words, "##s"]) + "\n")
    tokenizer = BertTokenizerFast(str(folder / "vocab.txt"))
    config = BertConfig(**XLMR | {"type_vocab_size": 2, "layer_norm_eps": 1e-12}, vocab_size=40)
    config.max_position_embeddings = 24
    model = BertForPreTraining(config).eval()
    randomise(model)
    given = tokenizer(*zip(*PAIRS, strict=True), return_tensors="pt", padding=True)
    with torch.no_grad():
        found = model.bert(**given, output_hidden_states=True)
    model.save_pretrained(folder)
    np.savez_compressed(
        folder / "states.npz",
        ids=given["input_ids"],
        mask=given["attention_mask"].bool(),
        segments=given["token_type_ids"],
        states=torch.stack(found.hidden_states).numpy(),
        pooled=found.pooler_output.numpy(),
    )


def main() -> None:
    torch.manual_seed(0)
    shutil.rmtree(GOLDEN, ignore_errors=True)
    GOLDEN.mkdir(parents=True)
    (GOLDEN / "segments.json").write_text(json.dumps(SEGMENTS) + "\n")
    metricx()
    with tempfile.TemporaryDirectory() as scratch:
        config = XLMRobertaConfig(**XLMR, max_position_embeddings=514)
        cometkiwi("cometkiwi", XLMRobertaModel, config, HPARAMS, SEGMENTS, Path(scratch))
        hparams = HPARAMS | {
            "layer_transformation": "sparsemax",
            "layer_norm": True,
            "hidden_sizes": [12],
            "activations": "GELU",
            "final_activation": "Sigmoid",
        }
        config = XLMRobertaXLConfig(**XLMR, max_position_embeddings=130)
        short = [row for row in SEGMENTS if len(row[1]) < 200]
        cometkiwi("cometkiwi_xl", XLMRobertaXLModel, config, hparams, short, Path(scratch))
    xlmr("xlmr", XLMRobertaForMaskedLM(XLMRobertaConfig(**XLMR, vocab_size=70, max_position_embeddings=40)))
    config = XLMRobertaXLConfig(**XLMR | {"type_vocab_size": 2}, vocab_size=70, max_position_embeddings=40)
    xlmr("xlmr_xl", XLMRobertaXLModel(config))
    bert("bert")
    versions = {name: module.__version__ for name, module in (("torch", torch), ("transformers", transformers))}
    note = {"command": ".venv-benchmark/bin/python scripts/make_golden_rewards.py", **versions}
    (GOLDEN / "made_by.json").write_text(json.dumps(note | {"sentencepiece": sentencepiece.__version__}) + "\n")


if __name__ == "__main__":
    main()
