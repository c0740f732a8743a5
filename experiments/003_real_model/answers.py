"""Greedy answers of several model folders to three prompts, through transformers alone: `answers.py FOLDER...`."""

import sys

from transformers import AutoModelForCausalLM, AutoTokenizer

PROMPTS = [
    "Name three ways to save water at home.",
    "Explain in two sentences why the sky is blue.",
    "Write a polite note that declines an invitation to a dinner.",
]

for folder in sys.argv[1:]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    for prompt in PROMPTS:
        chat = [{"role": "user", "content": prompt}]
        inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        ids = model.generate(**inputs, do_sample=False, max_new_tokens=120)[0, inputs["input_ids"].shape[1] :].tolist()
        end = "ended" if len(ids) < 120 else "cut off"
        print(f"\n[{folder}] {prompt}\n({len(ids)} tokens, {end})\n{tokenizer.decode(ids, skip_special_tokens=True)}")
