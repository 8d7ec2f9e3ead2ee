"""Plans and artefacts carried out."""
