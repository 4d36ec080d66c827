"""Settings: every one is declared once, as a dataclass field, and read from options or TOML. No
torch."""
