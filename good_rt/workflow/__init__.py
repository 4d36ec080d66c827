"""What commands and Python users share: one file a step."""
