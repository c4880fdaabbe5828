"""The shared floor: types, errors, plugin look-up, JSON codec, tensor files, statistics and units."""
