"""Images: reading files, sources of labelled images, their parts, and generated sets."""
