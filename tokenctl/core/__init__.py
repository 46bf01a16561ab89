"""Pure rules: no clock, no database, no environment. Whatever a rule needs is handed in."""
