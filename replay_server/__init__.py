"""The sequence replay: fragments in, windows out, compressed all the way."""
