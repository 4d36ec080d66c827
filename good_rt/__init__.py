"""good-rt: makes an image classifier know what it was not trained on. Importing it is light;
modules load their own."""

__version__ = "0.1.0"
