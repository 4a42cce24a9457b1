"""Does it help, and what does it cost: methods, data sets and models in one harness, and readers of the benchmarks."""
