"""Data sets of images as token ids, from the files of a user to the batches of a training step.

Inside: `sources` (one module for each kind of source, and the registry that opens them), `datasets` and `encoded`
(`TokenDataset` and its kinds), `loading` (the train, validation and test split of a run or an evaluation, which are
`DataSplits`; `opened_data` opens what they are taken from), `dataloader`, `rng` and `shuffling` (which images a step
reads), `identity` and `hashing` (what a data set is, so that no model is scored on images it was trained on),
`augmentation`, `palettes` (loading or fitting one), and `encoding_*` (the folder of encoded images).

In: a location (a path, a name on the hub, "digits") and a processor. Out: `TokenDataset`, `DataSplits`, `Batch`.
"""
