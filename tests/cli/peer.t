# A peer that is not there: which script to run.
$ MACATTN_PEER_DIR=/nonexistent macattn bench attend --context 64 --threads 1 --peer ggml
macattn: the peer 'ggml' is not at /nonexistent/libmacattn-peer-ggml.so; run fetch/get-llama.sh first
[1]
$ env -u MACATTN_PEER_DIR MACATTN_CACHE=/nonexistent macattn bench attend --context 64 --threads 1 --peer ggml
macattn: the peer 'ggml' is not at /nonexistent/llama.cpp-0.3.36/libmacattn-peer-ggml.so; run fetch/get-llama.sh first
[1]
$ d=$(mktemp -d); echo x > $d/libmacattn-peer-ggml.so; MACATTN_PEER_DIR=$d macattn bench attend --context 64 --threads 1 --peer ggml; s=$?; rm -r $d; exit $s
macattn: cannot load the peer: *; run fetch/get-llama.sh again
[1]
