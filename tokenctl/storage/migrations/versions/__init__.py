"""One file per schema version. A released one is never changed again."""
