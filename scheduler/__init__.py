"""Sigmas of flow matching: mu, time shifts, spacings, denoise and the steps of a run."""
