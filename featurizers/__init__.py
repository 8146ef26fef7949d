"""Pixels in, numbers out: specs, weights, decoding and the models. Knows no table, no Spark, no run."""
