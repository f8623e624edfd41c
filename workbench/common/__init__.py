"""Common ground that imports nothing of ours: errors, units, file safety, native parts."""
