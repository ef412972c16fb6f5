"""The peers of benchmark_grow.py: one process a system, asked line by line. Runs in .venv-benchmark.

A request is a JSON line {"sources": [[token, ...], ...], "n": N, "batch": rows at once, "temperature": T, "max": the
longest hypothesis, "greedy": bool}; the answer is one too. Sources are ids for `transformers`, pieces for CTranslate2.
"""

import json
import resource
import sys
import time


def transformers_generate(folder: str):
    """MarianMTModel.generate in PyTorch, float32."""
    import torch
    from transformers import MarianMTModel

    torch.set_num_threads(2)
    model = MarianMTModel.from_pretrained(folder).eval()
    model.generation_config.forced_eos_token_id = None  # at the greatest length it would take the place of a token
    pad, eos = model.config.pad_token_id, model.config.eos_token_id

    def run(ask: dict) -> list[list[int]]:
        found: list[list[int]] = []
        rows, size = ask["sources"], max(1, ask["batch"] // ask["n"])
        for start in range(0, len(rows), size):
            part = rows[start : start + size]
            width = max(map(len, part))
            ids = torch.tensor([row + [pad] * (width - len(row)) for row in part])
            law = (
                {"do_sample": False}
                if ask["greedy"]
                else {"do_sample": True, "temperature": ask["temperature"], "top_k": 0}
            )
            with torch.inference_mode():
                out = model.generate(
                    ids,
                    attention_mask=(ids != pad).long(),
                    num_beams=1,
                    num_return_sequences=ask["n"],
                    max_new_tokens=ask["max"],
                    **law,
                )
            for row in out[:, 1:].tolist():
                found.append(row[: row.index(eos) + 1] if eos in row else row)
        return found

    return run


def ctranslate2_translate(folder: str):
    """CTranslate2 on two threads; the folder is a converted one."""
    import ctranslate2

    model = ctranslate2.Translator(folder, device="cpu", inter_threads=1, intra_threads=2)

    def run(ask: dict) -> list[list[str]]:
        law = {} if ask["greedy"] else {"sampling_topk": 0, "sampling_temperature": ask["temperature"]}
        results = model.translate_batch(
            ask["sources"],
            beam_size=1,
            num_hypotheses=ask["n"],
            max_batch_size=max(1, ask["batch"] // ask["n"]),
            batch_type="examples",
            max_decoding_length=ask["max"],
            max_input_length=0,
            **law,
        )
        # EOS is not among the pieces, and a hypothesis of the greatest length has none
        return [[*y, "</s>"] if len(y) < ask["max"] else y for result in results for y in result.hypotheses]

    return run


def main() -> None:
    system, folder = sys.argv[1:]
    run = (transformers_generate if system == "transformers" else ctranslate2_translate)(folder)
    for line in sys.stdin:
        ask = json.loads(line)
        began = time.perf_counter()
        found = run(ask)
        answer = {
            "seconds": time.perf_counter() - began,
            "rows": len(found),
            "tokens": sum(map(len, found)),
            "megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            "found": found if ask["greedy"] else [],
        }
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
