"""Where images come from: one protocol, a file a kind (npz, folder per class, WebDataset, Hugging
Face).

`good_rt.data.sources.open.open_source` finds the kind; good_rt.data.splits divides what is there,
good_rt.data.id_data reads the parts. They need only numpy and Pillow (pyarrow for Hugging Face
datasets, imported when one is opened).
"""
