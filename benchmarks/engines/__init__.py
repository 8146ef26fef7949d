"""Each module is one engine, started as a process by `benchmarks.measure` and told over stdin to run its task."""
