"""Common ground: errors, units, file safety and the builder of native parts; imports nothing of ours."""
