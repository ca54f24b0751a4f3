"""Make text embeddings for `movq export --prompt-embeds DIR`: python embed_prompts.py LATENTS DIR [MODEL].

Needs transformers and sentencepiece. Embeddings are those of CogVideoX: T5 v1.1 XXL, 226 tokens, padded, without a mask.
"""

import hashlib
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoTokenizer, T5EncoderModel

from movq_cli import LatentDataset

latents, folder, model = (*sys.argv[1:], "zai-org/CogVideoX-5b")[:3]
tokenizer = AutoTokenizer.from_pretrained(model, subfolder="tokenizer")
encoder = T5EncoderModel.from_pretrained(model, subfolder="text_encoder", torch_dtype=torch.bfloat16)
encoder = encoder.to("cuda" if torch.cuda.is_available() else "cpu")
dataset = LatentDataset(latents, scale=1.0)
Path(folder).mkdir(parents=True, exist_ok=True)
for caption in sorted({" ".join(dataset.row(i).get("caption", "").split()) for i in range(len(dataset))} - {""}):
    path = Path(folder, f"{hashlib.sha256(caption.encode()).hexdigest()}.safetensors")
    if not path.exists():
        tokens = tokenizer(
            caption, padding="max_length", max_length=226, truncation=True, return_tensors="pt"
        ).input_ids
        with torch.inference_mode():
            save_file({"prompt_embeds": encoder(tokens.to(encoder.device))[0][0].cpu()}, path)
