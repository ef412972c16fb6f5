"""What the benchmarks compare `rest` with: a process a task, asked by JSON lines. Runs in .venv-benchmark,
mbr in .venv-benchmark-mbrs.

A task gets ready from a folder and returns what answers a request. Requests have these fields, tokens being ids, or
pieces for CTranslate2; an answer has, besides its own, the `seconds` it took and the process's peak of `megabytes`.

    generate, ctranslate2    {"sources": [[token, ...], ...], "n": hypotheses a source, "batch": rows at once,
                              "temperature": T, "max": the longest hypothesis, "greedy": bool}
    training                 {"batch_tokens": target positions a batch, "seconds": how long}
    scoring                  {"sources": ..., "targets": ..., "batch_tokens": ..., "kernel": [...], "bias": b}
    mbr                      {"samples": [[text, ...], ...], "metric": "chrf" or "bleu", "word_order": n of chrF++,
                              "aggregate": bool}
"""

import argparse
import json
import random
import sys
import time
from pathlib import Path


def serve(answer) -> None:
    """Answer requests, one a line, until there are no more."""
    for line in sys.stdin:
        request = json.loads(line)
        began = time.perf_counter()
        found = answer(request)
        seconds = time.perf_counter() - began
        print(json.dumps({**found, "seconds": seconds, "megabytes": peak_megabytes()}), flush=True)


def peak_megabytes() -> float:
    """Of this process alone; ru_maxrss begins at what the process that started it had."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def drawn(request: dict, found: list) -> dict:
    """The answer of a system that has drawn these hypotheses; only greedy ones are looked at."""
    kept = found if request["greedy"] else []
    return {"rows": len(found), "tokens": sum(map(len, found)), "found": kept}


def padded(rows: list[list[int]], fill: int):
    import torch

    width = max(map(len, rows))
    return torch.tensor([row + [fill] * (width - len(row)) for row in rows])


def like_lengths(sources: list, targets: list, batch_tokens: int) -> list[list[int]]:
    """Batches of row numbers, shortest first; padded, a batch has at most so many target positions."""
    batches: list[list[int]] = []
    for i in sorted(range(len(targets)), key=lambda i: (len(targets[i]), len(sources[i]))):
        if not batches or (len(batches[-1]) + 1) * len(targets[i]) > batch_tokens:
            batches.append([])
        batches[-1].append(i)
    return batches


def generate(folder: Path, threads: int):
    """MarianMTModel.generate in PyTorch, float32."""
    import torch
    from transformers import MarianMTModel

    torch.set_num_threads(threads)
    model = MarianMTModel.from_pretrained(folder).eval()
    model.generation_config.forced_eos_token_id = None  # at the greatest length it would take the place of a token
    pad, eos = model.config.pad_token_id, model.config.eos_token_id

    @torch.inference_mode()
    def answer(request: dict) -> dict:
        found: list[list[int]] = []
        rows, size = request["sources"], max(1, request["batch"] // request["n"])
        drawing = {"do_sample": True, "temperature": request["temperature"], "top_k": 0}
        for start in range(0, len(rows), size):
            ids = padded(rows[start : start + size], pad)
            out = model.generate(
                ids,
                attention_mask=(ids != pad).long(),
                num_beams=1,
                num_return_sequences=request["n"],
                max_new_tokens=request["max"],
                **({"do_sample": False} if request["greedy"] else drawing),
            )
            for row in out[:, 1:].tolist():
                found.append(row[: row.index(eos) + 1] if eos in row else row)
        return drawn(request, found)

    return answer


def ctranslate2(folder: Path, threads: int):
    """CTranslate2; the folder is a converted one."""
    from ctranslate2 import Translator

    model = Translator(str(folder), device="cpu", inter_threads=1, intra_threads=threads)

    def answer(request: dict) -> dict:
        drawing = {} if request["greedy"] else {"sampling_topk": 0, "sampling_temperature": request["temperature"]}
        results = model.translate_batch(
            request["sources"],
            beam_size=1,
            num_hypotheses=request["n"],
            max_batch_size=max(1, request["batch"] // request["n"]),
            batch_type="examples",
            max_decoding_length=request["max"],
            max_input_length=0,
            **drawing,
        )
        # EOS is not among the pieces, and a hypothesis of the greatest length has none
        hypotheses = [y for result in results for y in result.hypotheses]
        return drawn(request, [[*y, "</s>"] if len(y) < request["max"] else y for y in hypotheses])

    return answer


def training(folder: Path, threads: int):
    """A random MarianMTModel, trained in PyTorch, float32; task.json has its sizes and the pairs."""
    import torch
    from transformers import MarianConfig, MarianMTModel

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    task = json.loads((folder / "task.json").read_text())
    settings, (sources, targets) = task["settings"], task["pairs"]
    vocabulary = -(-(task["vocabulary"] + 1) // 64) * 64
    pad = vocabulary - 1
    config = MarianConfig(
        vocab_size=vocabulary, d_model=settings["width"], encoder_layers=settings["encoder_layers"],
        decoder_layers=settings["decoder_layers"], encoder_attention_heads=settings["heads"],
        decoder_attention_heads=settings["heads"], encoder_ffn_dim=settings["feed_forward"],
        decoder_ffn_dim=settings["feed_forward"], dropout=settings["dropout"], attention_dropout=0.0,
        activation_dropout=0.0, activation_function="relu", scale_embedding=True, pad_token_id=pad,
        decoder_start_token_id=pad, eos_token_id=0, max_position_embeddings=512,
    )  # fmt: skip
    model = MarianMTModel(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.98), weight_decay=0.0, fused=True)
    loss_of = torch.nn.CrossEntropyLoss(label_smoothing=0.1, ignore_index=-100)

    def batches(batch_tokens: int):
        """Endless: pairs of like lengths, in a random order of batches."""
        made = []
        for rows in like_lengths(sources, targets, batch_tokens):
            ids, labels = padded([sources[i] for i in rows], pad), padded([targets[i] for i in rows], -100)
            start = padded([[pad, *targets[i][:-1]] for i in rows], pad)
            made.append((ids, (ids != pad).long(), start, labels, sum(len(targets[i]) for i in rows)))
        shuffle = random.Random(0)
        while True:
            shuffle.shuffle(made)
            yield from made

    streams: dict = {}

    def answer(request: dict) -> dict:
        stream = streams.setdefault(request["batch_tokens"], batches(request["batch_tokens"]))
        tokens, began = 0, time.perf_counter()
        while time.perf_counter() - began < request["seconds"]:
            ids, mask, start, labels, count = next(stream)
            logits = model(input_ids=ids, attention_mask=mask, decoder_input_ids=start, use_cache=False).logits
            loss = loss_of(logits.view(-1, logits.shape[-1]), labels.view(-1))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            loss.item()
            tokens += count
        return {"tokens": tokens}

    return answer


def scoring(folder: Path, threads: int):
    """The learned reward's network in PyTorch: a linear head on features of a Marian's decoder."""
    import torch
    from transformers import MarianMTModel

    torch.set_num_threads(threads)
    model = MarianMTModel.from_pretrained(folder).eval()
    pad = model.config.pad_token_id

    @torch.inference_mode()
    def answer(request: dict) -> dict:
        """The head on the mean decoder state, the mean log p, the mean p and the lowest log p."""
        sources, targets = request["sources"], request["targets"]
        kernel, scores = torch.tensor(request["kernel"]), [0.0] * len(targets)
        for rows in like_lengths(sources, targets, request["batch_tokens"]):
            source, target = padded([sources[i] for i in rows], pad), padded([targets[i] for i in rows], pad)
            read = torch.cat([torch.full((len(rows), 1), pad), target[:, :-1]], 1)
            states = model.model(input_ids=source, attention_mask=(source != pad).long(), decoder_input_ids=read)[0]
            logits = model.lm_head(states) + model.final_logits_bias
            chosen = logits.gather(-1, target[..., None])[..., 0] - logits.logsumexp(-1)
            real = torch.arange(target.shape[1])[None] < torch.tensor([[len(targets[i])] for i in rows])
            columns = torch.cat([states, chosen[..., None], chosen.exp()[..., None]], -1)
            means = (columns * real[..., None]).sum(1) / real.sum(1, keepdim=True)
            features = torch.cat([means, chosen.masked_fill(~real, 0.0).min(1, keepdim=True).values], 1)
            for i, value in zip(rows, (features @ kernel + request["bias"]).tolist(), strict=True):
                scores[i] = value
        return {"scores": scores}

    return answer


def mbr(folder: Path, threads: int):
    """The package mbrs: chrF in Rust (fastchrf), all else by sacreBLEU in processes; the folder is not read."""
    import torch
    from mbrs.decoders import DecoderAggregateMBR, DecoderMBR
    from mbrs.metrics import MetricBLEU, MetricChrF

    torch.set_num_threads(threads)

    def answer(request: dict) -> dict:
        if request["metric"] == "bleu":
            metric = MetricBLEU(MetricBLEU.Config(num_workers=threads))
        else:
            order = request["word_order"]
            metric = MetricChrF(MetricChrF.Config(word_order=order, fastchrf=not order, num_workers=threads))
        kind = DecoderAggregateMBR if request["aggregate"] else DecoderMBR
        decoder = kind(kind.Config(), metric)
        return {"chosen": [decoder.decode(texts, texts, nbest=1).idx[0] for texts in request["samples"]]}

    return answer


TASKS = {task.__name__: task for task in (generate, ctranslate2, training, scoring, mbr)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("threads", type=int)
    given = parser.parse_args()
    serve(TASKS[given.task](given.folder, given.threads))


if __name__ == "__main__":
    main()
