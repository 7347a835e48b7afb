"""What a user does with an embedder on the Hub, by five libraries and without umarvel_hf.

    python five_libraries.py REPOSITORY

Prints what each found as JSON.
"""

import json
import sys

import faiss
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from PIL import Image
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoProcessor

repository, seen = sys.argv[1], {}
torch.set_num_threads(1)

# 1. datasets: a collection of pictures
colours = {"red": (200, 30, 30), "green": (30, 160, 60), "blue": (40, 60, 200), "yellow": (230, 200, 40)}
for name, colour in colours.items():
    Image.new("RGB", (56, 56), colour).save(f"{name}.png")
pictures = Dataset.from_dict({"name": list(colours), "image": [{"image": f"{name}.png"} for name in colours]})

# 2. sentence-transformers: their vectors, added to the collection
embedder = SentenceTransformer(repository, trust_remote_code=True)
pictures = pictures.map(lambda batch: {"vector": embedder.encode(batch["image"])}, batched=True)
query = embedder.encode(["a red picture"], prompt="Find an image that matches the given text.")
seen["shape"] = list(query.shape)

# 3. faiss: the search that datasets builds on it
pictures.add_faiss_index("vector", metric_type=faiss.METRIC_INNER_PRODUCT)
scores, found = pictures.get_nearest_examples("vector", embedder.encode([{"image": "blue.png"}])[0], k=2)
seen["nearest"], seen["score"] = found["name"][0], float(scores[0])

# 4. transformers: the same vector, by the model itself
processor = AutoProcessor.from_pretrained(repository, trust_remote_code=True)
model = AutoModel.from_pretrained(repository, trust_remote_code=True)
chat = [
    {"role": "system", "content": "Find an image that matches the given text."},
    {"role": "user", "content": [{"type": "text", "text": "a red picture"}]},
]
inputs = processor.apply_chat_template(chat, tokenize=True, return_dict=True, return_tensors="pt")
with torch.no_grad():
    seen["difference"] = float((model(**inputs).pooler_output - torch.from_numpy(query)).abs().max())

# 5. peft: an adapter, a step of training, saved and loaded again on the repository's weights
adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
optimizer = torch.optim.AdamW([one for one in adapted.parameters() if one.requires_grad], lr=1e-2)
loss = 1 - (adapted(**inputs).pooler_output * torch.ones(query.shape[1])).sum()
loss.backward()
optimizer.step()
adapted.save_pretrained("adapter")
again = PeftModel.from_pretrained(AutoModel.from_pretrained(repository, trust_remote_code=True), "adapter")
with torch.no_grad():
    before, after = (one.eval()(**inputs).pooler_output for one in (adapted, again))
seen["adapter"] = float((before - after).abs().max())
seen["moved"] = float((after - torch.from_numpy(query)).abs().max())
json.dump(seen, sys.stdout)
