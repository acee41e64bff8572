"""Scores edits by a vision-language model behind an OpenAI-compatible endpoint: four numbers from 1 to 10."""
