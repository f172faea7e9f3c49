# What a wrong command line gets: a sentence and status 2.
$ macattn
Usage: macattn [OPTION...] COMMAND [OPTION...]
...
[2]
$ macattn frobnicate
macattn: there is no command 'frobnicate'
...
[2]
$ macattn --help
Usage: macattn [OPTION...] COMMAND [OPTION...]
...
  bench   measure attention: attend, mac, match
...
$ macattn --version
macattn 0.* (commit *), instruction sets: *
$ macattn bench
macattn: bench: say what: attend, mac or match (see macattn bench --help)
[2]
$ macattn bench frobnicate
macattn bench: unexpected argument 'frobnicate'
...
[2]
$ macattn bench attend --heads 6/4
macattn bench: --heads does not take '6/4'
...
[2]
$ macattn bench attend --kv f12
macattn bench: --kv does not take 'f12' (f32, f16, bf16, q8_0, f8_e4m3, q4_0, q4_1, q5_0, q5_1, iq4_nl)
...
[2]
$ macattn bench attend --context 1k,x
macattn bench: --context does not take '1k,x'
...
[2]
$ macattn bench attend --page-size 48
macattn bench: --page-size does not take '48'
...
[2]
$ macattn bench attend --isa sse9
macattn bench: --isa does not take 'sse9' (*scalar)
...
[2]
$ macattn bench attend --peer nobody
macattn bench: --peer does not take 'nobody'
...
[2]
$ macattn bench mac --ring 5000
macattn bench: --ring does not take '5000' (0 to 4096)
...
[2]
$ macattn bench match --ring 64,1
macattn: bench: --ring has to be at least 2
[2]
$ macattn bench mac --policy fastest
macattn bench: --policy does not take 'fastest' (exact, paper, budget)
...
[2]
$ macattn bench mac --policy exact
macattn: bench: --policy exact has nothing to reuse; bench attend measures it
[2]
$ macattn bench mac --hit-ratio 1.5
macattn bench: --hit-ratio does not take '1.5'
...
[2]
$ macattn bench mac --context 600 --threads 1
macattn: bench mac: a ring of 512 and a band of 256 need a --context of 769
[2]
$ macattn bench mac --batch 4
macattn: bench mac: --batch is for attend, and for mac with --device cuda
[2]
$ macattn bench match --device cuda
macattn: bench match: --device cuda is for attend and mac
[2]
$ macattn bench attend --device cuda --softcap 30
macattn: bench attend: --softcap is not for --device cuda
[2]
$ macattn bench mac --device cuda --threads 2
macattn: bench mac: --threads is not for --device cuda
[2]
$ macattn bench mac --device cuda --policy budget
macattn: bench mac: with --device cuda hits are measured under the policy paper; budget goes with --select-share
[2]
$ macattn bench mac --queries 4
macattn: bench mac: --queries is for attend
[2]
$ macattn bench mac --select 1
macattn: bench mac: --select is for --select-share
[2]
$ macattn bench mac --select-share 0.1 --clustered
macattn: bench mac: with --select-share nothing is reused, so --hit-ratio, --scattered and --clustered say nothing
[2]
$ macattn bench attend --policy exact
macattn: bench attend: --policy is for mac
[2]
$ macattn bench attend --hit-ratio 0.5
macattn: bench attend: --hit-ratio is for mac and match
[2]
$ macattn bench match --context 8k
macattn: bench match: --context is for attend and mac
[2]
$ macattn bench attend --head-dim 72 --kv q8_0 --context 64 --threads 1
macattn: *
[1]
$ macattn check --cases 0
macattn check: --cases does not take '0'
...
[2]
$ macattn check --isa sse9
macattn: check: this machine has no instruction set 'sse9'
[1]
$ macattn tasks generate --samples 0
macattn tasks: --samples does not take '0' (1 to 1000000)
...
[2]
$ macattn tasks generate --len 10
macattn tasks: --length does not take '10' (64 to 16777216)
...
[2]
$ macattn tasks generate --seed -1
macattn tasks: --seed does not take '-1' (0 to 2147483647)
...
[2]
$ macattn tasks generate --bytes 0
macattn tasks: --bytes-per-token does not take '0' (0.5 to 64)
...
[2]
