"""Greedy text by llama-cpp-python: complete.py MODEL PROMPT TOKENS."""

import sys

import llama_cpp
import llama_cpp._ggml

# The one line that llama-cpp-python needs: by itself it loads no backends, so that GGML_BACKEND_PATH would not be seen.
llama_cpp._ggml.libggml.ggml_backend_load_all()

model, prompt, tokens = sys.argv[1:]
llm = llama_cpp.Llama(model_path=model, n_ctx=256, n_threads=2, verbose=False)
print(llm(prompt, max_tokens=int(tokens), temperature=0)["choices"][0]["text"])
