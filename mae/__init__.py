"""Everything around the model: data, training, checkpoints, pictures. See the map in README.md."""
