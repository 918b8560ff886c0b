"""Records: what a benchmark, an audit or a training run measured, and under which conditions."""
