# What a build without llama.cpp says.
$ macattn eval --model x.gguf
macattn: eval is not in this build: it needs llama.cpp. Build with -DMACATTN_BUILD_EVAL=ON *docs/eval.md says how
[1]
$ macattn tune --help
macattn: tune is not in this build: *
[1]
