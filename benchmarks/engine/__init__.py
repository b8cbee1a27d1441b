"""The embedded engine alone.

bench_engine      next to OpenVINO GenAI, and to one engine per expert: contestants
bench_decode      a decoding step in each of its forms
bench_isa         a step with each instruction set
bench_host        a step's time on the host
bench_agreement   its tokens against those of transformers and PEFT
"""
