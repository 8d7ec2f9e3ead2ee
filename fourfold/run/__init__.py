"""A plan carried out: engines, the race, artefacts, and the stages of the main job."""
