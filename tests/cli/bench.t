# Small shapes: that the rows are there and pass their check. Times are not looked at.
$ macattn bench attend --heads 8/2 --head-dim 64 --context 100,300 --threads 1,2 --reps 2
  heads   dim         kv   context *us *p10 *p90 *GB/s *ceiling *share *
    8/2    64        f16       100 *
    8/2    64        f16       300 *
    8/2    64        f16       100 *
    8/2    64        f16       300 *
$ macattn bench attend --heads 8/2 --head-dim 64 --kv f16,bf16,q8_0,f32,f16/q8_0 --context 300 --threads 1 --reps 1 --json | fields heads=8/2 head_dim=64 kv context=300 batch=1 threads=1 us_median us_p10 us_p90 bytes gbps ceiling_gbps ceiling_share fma_peak_gflops gflops fma_share cache_us_median cache_gbps isa_fma_peak_gflops bound isa version cpu
5 rows
$ macattn bench attend --heads 4/1 --head-dim 96 --v-head-dim 64 --context 200 --batch 3 --page-size 16 --softcap 8 --threads 2 --reps 1 --json | fields head_dim=96 v_head_dim=64 batch=3 page_size=16 us_median
1 rows
$ macattn bench attend --heads 8/2 --head-dim 64 --context 200 --queries 40 --threads 2 --reps 1 --warm --isa scalar --json | fields queries=40 us_median isa=scalar layers_rotated=1
1 rows
# So few tokens are no work for so many threads.
$ macattn bench attend --heads 1/1 --head-dim 64 --context 8 --threads 16 --reps 3 --json | fields bound=overhead
1 rows
$ macattn bench mac --heads 8/2 --head-dim 64 --context 900,2k --ring 64 --band 32 --hit-ratio 0,0.5,1 --threads 1 --reps 3 --policy paper --json | fields heads=8/2 context bytes us_median exact_us_median speedup_vs_exact match_us_p90 ceiling_gbps ceiling_share policy=paper ring=64
6 rows
$ macattn bench mac --heads 8/2 --head-dim 64 --context 900 --ring 64 --band 32 --hit-ratio 1 --threads 1 --reps 3 --json | fields hit_ratio=1 tokens_skipped_share
1 rows
$ macattn bench mac --heads 8/2 --head-dim 64 --context 900 --ring 64 --band 32 --hit-ratio 0.5 --clustered --threads 2 --reps 3 --json | fields hit_ratio=0.5 misses=clustered
1 rows
$ macattn bench mac --heads 8/2 --head-dim 64 --context 900 --ring 64 --band 32 --hit-ratio 0 --threads 2 --reps 3 --json | fields hit_ratio=0 tokens_skipped_share=0
1 rows
# Under budget a call remembers some of its queries alone; hits are of those that are remembered.
$ macattn bench mac --heads 8/2 --head-dim 64 --context 900,2k --ring 64 --band 32 --hit-ratio 1 --policy budget --threads 2 --reps 9 --json | fields hit_ratio policy=budget tokens_skipped_share judge_us_mean us_median error
2 rows
$ macattn bench mac --heads 8/2 --head-dim 64 --context 2k,3k --band 32 --select-share 0.1 --threads 2 --reps 3 --json | fields heads=8/2 policy=budget select_share=0.1 us_median exact_us_median speedup_vs_exact selected_share read_share select_us_mean error
2 rows
$ macattn bench mac --heads 8/2 --head-dim 64 --context 2k,3k --band 32 --select-share 1 --threads 2 --reps 3 --json | fields select_share=1 selected_share=0 error=0 read_share us_median
2 rows
$ macattn bench match --heads 8/2 --head-dim 64 --ring 64 --band 32 --hit-ratio 0,1 --threads 1 --min-time 0.01 --isa scalar --json | fields ring=64 context=97 isa=scalar reps bytes us_p90
2 rows
