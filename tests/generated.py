"""Transcripts by transformers' own `generate`, with the settings that the project promises: what ours is held to."""

import torch

from whisper_sae.model import decoding


@torch.no_grad()
def generated(whisper, mels: torch.Tensor, **options) -> list[str]:
    """Greedy, without timestamps, and cut where a transcript repeats itself; `options` are those of `generate`, such as
    `language`."""
    mask = torch.ones(len(mels), mels.shape[-1], dtype=torch.long, device=mels.device)
    ids = whisper.whole.generate(
        mels, attention_mask=mask, do_sample=False, num_beams=1, return_timestamps=False, **options
    )
    cut = [decoding.until_loop(one) for one in ids.tolist()]
    return [one.strip() for one in whisper.tokenizer.batch_decode(cut, skip_special_tokens=True)]
