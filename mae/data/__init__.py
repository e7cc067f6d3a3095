"""From a data set to batches: sources, order, reading, decoding, augmentation."""
