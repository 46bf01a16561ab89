"""The contenders of `bench.http`: what they are, how each is started, and what has to be installed first."""
